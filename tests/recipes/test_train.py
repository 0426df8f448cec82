from dataclasses import replace

import click
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from cdiff_rt.nets.autoencoder import AutoencoderConfig
from cdiff_rt.nets.collaborative import CollaborativeModel, ModelConfig
from recipes.faces import examples, train
from recipes.faces.config import FACES_128, MASK_SIZE, SCHEDULE
from recipes.faces.painter import portrait
from recipes.faces.training import fit
from tests.recipes.random_portraits import stage
from tests.tiny import CONFIG, tiny_model

VAE = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=16, patch=4, linear=True)


@pytest.fixture(scope="module")
def images():
    pixels = np.stack([portrait(seed, 64).image for seed in range(6)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(image, reference):
    return -10 * torch.log10(F.mse_loss(image, reference) / 4).item()


def test_the_autoencoder_starts_at_the_principal_components_of_blocks(images):
    torch.manual_seed(0)
    model = CollaborativeModel(ModelConfig({}, VAE))
    train.start_at_pca(model, images)
    with torch.no_grad():
        mean, logvar = model.vae.encode(images)
        again = model.vae.decode(mean)
    colour = images.mean((0, 2, 3), keepdim=True)
    blocks = (images - colour).unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 192)
    centred = blocks - blocks.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:16]
    projected = (blocks @ basis.T @ basis).reshape(6, 8, 8, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(6, 3, 64, 64)
    assert (again - (projected + colour)).abs().max() < 1e-3
    assert psnr(again, images) > psnr(colour.expand_as(images), images) + 8
    assert torch.allclose(logvar, torch.full_like(logvar, -6))


def test_x_t_and_v_say_what_x_0_is(generator):
    z = torch.randn(64, 3, 4, 4, generator=generator)
    x, t, v = train.diffuse(z, generator)
    a = torch.from_numpy(SCHEDULE.alpha_bars())[t].float()[:, None, None, None]
    assert torch.allclose(a.sqrt() * x - (1 - a).sqrt() * v, z, atol=1e-5)
    noise = (1 - a).sqrt() * x + a.sqrt() * v
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert len(t.unique()) > 32
    assert 0 <= t.min() <= t.max() < SCHEDULE.train_steps


def test_mask_tokens_start_as_orthogonal_waves():
    linear = nn.Linear(MASK_SIZE**2, 64)
    train.start_at_cosines(linear)
    gram = linear.weight @ linear.weight.T
    assert torch.allclose(gram, 0.35**2 * torch.eye(64), atol=1e-5)
    assert linear.weight[0].std() < 1e-6  # the mean
    assert linear.bias.abs().max() == 0


def test_a_network_whose_last_layer_is_zeroed_predicts_zero():
    expert = tiny_model().experts["mask"]
    train.zero_weights(expert.unet.out[2])
    x, rows = torch.randn(1, 3, 8, 8), expert.time(torch.tensor([5]))
    out, logit = expert(x, rows, expert.condition(torch.rand(1, 5, 16)))
    assert out.abs().max() == 0
    assert logit.abs().max() > 0


@pytest.mark.parametrize("again", [False, True])
def test_a_stage_begins_fresh_or_with_the_weights_that_are_there(again, work):
    given = replace(stage(work), again=again)
    begun = []
    train.begin(given, ["vae"], lambda: begun.append("fresh"))
    saved = load_file(work / "vae.safetensors")["encoder.conv_in.weight"]
    assert begun == ([] if again else ["fresh"])
    assert torch.equal(given.model.vae.encoder.conv_in.weight, saved) == again


def tiny_examples():
    torch.manual_seed(0)
    conditions = {"mask": torch.randint(5, (8, 16)), "text": torch.randint(4, 12, (8, 6))}
    return examples.Examples(torch.randn(8, 3, 8, 8), conditions)


@pytest.fixture
def tiny_masks(monkeypatch):
    """Masks of five classes, which nobody draws freehand."""
    monkeypatch.setattr(examples, "MASK_CLASSES", 5)
    monkeypatch.setattr(examples, "redraw", lambda rows, generator: rows)


def test_diffusers_learn_and_nothing_else_does(tiny_masks, generator):
    model = CollaborativeModel(CONFIG).requires_grad_(False)
    for expert in model.experts.values():
        expert.diffuser.requires_grad_(True)
    train.diffusers_loss(model.experts, torch.ones(3, 1, 1), tiny_examples())(torch.arange(8), generator).backward()
    touched = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    assert {name.split(".")[2] for name in touched} == {"diffuser"}
    assert {name.split(".")[1] for name in touched} == {"mask", "text"}


def test_the_mix_starts_as_the_plain_mean_and_can_become_either_expert(tiny_masks, monkeypatch):
    monkeypatch.setattr(train, "importance", torch.ones_like)
    model, given = CollaborativeModel(CONFIG).requires_grad_(False), tiny_examples()
    experts = {name: model.expert(name) for name in ("mask", "text")}

    def value(loss):
        return loss(torch.tensor([3]), torch.Generator().manual_seed(3)).item()

    def mixed(logit):
        experts["mask"].diffuser.out[2].bias.fill_(logit)
        return value(train.diffusers_loss(experts, torch.ones(3, 1, 1), given))

    for expert in experts.values():
        train.zero_weights(expert.diffuser.out[2])
    plain, mask, text = mixed(0.0), mixed(50.0), mixed(-50.0)
    alone = [value(train.branch_loss(expert, name, given)) for name, expert in experts.items()]
    assert mask / text == pytest.approx(alone[0] / alone[1], rel=1e-4)
    assert plain == pytest.approx((mask + text) / 2 - 1, rel=1e-4)  # the experts' errors, less their variance


def test_an_error_counts_as_much_as_it_shows(images):
    torch.manual_seed(0)
    model = CollaborativeModel(ModelConfig({}, VAE))
    train.start_at_pca(model, images)
    z = torch.zeros(1, 16, 8, 8)
    with torch.no_grad():
        seen = [F.mse_loss(model.vae.decode(z + unit), model.vae.decode(z)) for unit in torch.eye(16)[:, :, None, None]]
    expected = torch.stack(seen) / torch.stack(seen).mean()
    assert torch.allclose(train.visibility(model.vae).flatten(), expected, rtol=1e-3)


def test_the_error_of_a_mix_counts_what_shows_relative_to_how_the_experts_differ():
    outs = torch.tensor([[[3.0, 0.0]], [[1.0, 8.0]]])[..., None, None]  # two experts, one example, two channels
    influence, v = torch.tensor([0.75, 0.25]).reshape(2, 1, 1, 1, 1), torch.zeros(1, 2, 1, 1)
    for visible, expected in (((1, 0), 2.5**2 / 1), ((0, 1), 2.0**2 / 16), ((2, 1), (2 * 2.5**2 + 4) / (2 * 1 + 16))):
        weights = torch.tensor(visible, dtype=torch.float)[:, None, None]
        assert train.mixing_error(influence, outs, v, weights).tolist() == pytest.approx([expected])


def test_errors_count_most_where_signal_and_noise_are_alike():
    weights = train.importance(torch.tensor([999, 300, 200, 0]))
    assert weights[0] == pytest.approx(0.5, abs=0.001)
    assert weights.argmax() in (1, 2)
    assert 0.5 < weights[3] < 0.6


def test_text_starts_from_the_masks_unet_while_that_is_in_training(work):
    given = stage(work)
    torch.manual_seed(5)
    branch = nn.ModuleDict({"encoder": nn.Linear(2, 2), "unet": CollaborativeModel(FACES_128).expert("mask").unet})
    fit(replace(given.plan, minutes=0), branch, None)
    train.fresh_branch(given, "text")
    text = given.model.expert("text").unet.state_dict()
    assert all(torch.equal(text[name], weight) for name, weight in branch["unet"].state_dict().items())


def test_text_without_the_mask_says_what_to_train_first(work):
    with pytest.raises(click.UsageError, match=r"mask\.pt to begin from; train mask first"):
        train.fresh_branch(stage(work), "text")
