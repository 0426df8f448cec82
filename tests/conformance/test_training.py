"""Gradients: the dynamic diffusers' training loss, and Imagic's two stages on the text branch. On torch alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdiff_rt.nets import imagic
from cdiff_rt.nets.collaborative import Expert, build_part
from cdiff_rt.sampling import fusion
from cdiff_rt.sampling.schedule import Schedule

ALPHA_BARS = torch.from_numpy(Schedule().alpha_bars()).float()


@pytest.fixture
def case(golden):
    return golden.arrays("tiny512_train_edit")


def expert_of(checkpoint, name) -> Expert:
    expert = build_part(checkpoint.description.config, f"experts.{name}")
    expert.load_state_dict({key: checkpoint.weights[f"experts.{name}.{key}"] for key in expert.state_dict()})
    assert isinstance(expert, Expert)
    return expert


def diffuse(z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """q(x_t | x_0)."""
    a = ALPHA_BARS[t][:, None, None, None]
    return a.sqrt() * z + (1 - a).sqrt() * noise


def variational_weights(golden) -> np.ndarray:
    """[T]: of each timestep's squared error in the variational bound (Ho et al. 2020, eq. 12)."""
    given = {key: value.astype(np.float64) for key, value in golden.schedule.items()}
    betas, a = given["betas"], given["alphas_cumprod"]
    with np.errstate(divide="ignore"):
        weights = betas**2 / (2 * given["posterior_variance"] * (1 - betas) * (1 - a))
    return np.concatenate([weights[1:2], weights[1:]])


def test_the_dynamic_diffusers_loss_and_gradients(golden, three, conditions, case, measures):
    """Plain softmax, mean squared error of the fused prediction (Collaborative Diffusion, section 3.3)."""
    z, noise, t = (torch.from_numpy(case[f"train/{name}"]) for name in ("z", "noise", "t"))
    x = diffuse(z, t, noise)
    outs, logits, experts = [], [], {name: expert_of(three, name) for name in ("mask", "text")}
    for name, expert in experts.items():
        with torch.no_grad():
            tokens = expert.encoder(torch.from_numpy(conditions[name]))
            outs.append(expert.unet(x, t, tokens))
        logits.append(expert.diffuser(x, t, tokens))
    fused = fusion.fuse(torch.stack(outs), fusion.softmax(torch.stack(logits)))
    loss = F.mse_loss(fused, noise)
    loss.backward()
    measures.check("tiny512_train_edit", "loss", "torch", loss.detach().numpy(), case["train/loss"])
    each = ((fused.detach() - noise) ** 2).mean((1, 2, 3)).numpy()
    bound = (variational_weights(golden)[case["train/t"]] * each).mean()
    measures.check("tiny512_train_edit", "loss", "torch", bound, case["train/loss_vlb"])
    for name, official in (("mask", "seg_mask"), ("text", "text")):
        grads = {key: p.grad for key, p in experts[name].diffuser.named_parameters() if p.grad is not None}
        found = {
            "gradnorm": ("gradient norm", torch.stack([grad.norm() for grad in grads.values()]).norm()),
            "grad_out2w": ("gradient", grads["out.2.weight"]),
            "grad_in0w": ("gradient", grads["input_blocks.0.0.weight"]),
        }
        for part, (quantity, ours) in found.items():
            expected = case[f"train/{official}_{part}"]
            measures.check("tiny512_train_edit", quantity, "torch", ours.numpy(), expected)


def test_both_stages_of_imagic(three, golden, case, measures):
    """First the embedding towards the image, the branch frozen; then the branch, the embedding frozen."""
    expert = expert_of(three, "text")
    z0, t, noises = (torch.from_numpy(case[name]) for name in ("z0", "t", "noise"))
    with torch.no_grad():
        target = expert.encoder(torch.from_numpy(golden.arrays("tokens")["input_ids"][2:3]))
    measures.check("tiny512_train_edit", "embedding", "torch", target.numpy(), case["emb_tgt"])
    embedding = nn.Parameter(target.clone())
    expert.requires_grad_(False)

    diffusion = imagic.Diffusion(ALPHA_BARS, "eps")

    def descend(parameters, learning_rate, steps) -> tuple[list[float], Tensor]:
        """Losses, and the first parameter's first gradient."""
        optimizer, losses, gradients = imagic.adam(parameters, learning_rate), [], []
        draws = ((int(t[i]), noises[i]) for i in steps)
        for loss in imagic.descend(expert.unet, embedding, optimizer, z0, draws, diffusion):
            losses.append(loss)
            gradients.append(parameters[0].grad.clone())
        return losses, gradients[0]

    losses, gradient = descend([embedding], 1e-3, range(5))
    measures.check("tiny512_train_edit", "loss", "torch", np.array(losses), case["stage1_loss"])
    measures.check("tiny512_train_edit", "prediction", "torch", gradient.numpy(), case["stage1_grad0"])
    near = np.abs(embedding.detach().numpy() - case["emb_opt"]) <= 2e-5
    assert near.mean() >= 0.99  # where the gradient is nearly 0, Adam's first steps go by its sign
    embedding = nn.Parameter(torch.from_numpy(case["emb_opt"]), requires_grad=False)
    expert.unet.requires_grad_(True)
    losses, _ = descend(list(expert.unet.parameters()), 1e-4, range(5, 9))
    measures.check("tiny512_train_edit", "loss", "torch", np.array(losses), case["stage2_loss"])
    with torch.no_grad():
        after = expert.unet(z0, torch.tensor([501]), embedding)
    measures.check("tiny512_train_edit", "after training", "torch", after.numpy(), case["eps_after"])
