"""Train `faces-128`, stage by stage. Each stage needs the ones before it; each can be stopped and resumed.

python -m recipes.faces.train STAGE --minutes N --data data --out trained

README.md beside this file has the order and the minutes.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cdiff_rt.nets.autoencoder import AutoencoderKL
from cdiff_rt.nets.collaborative import CollaborativeModel, Expert, ModelConfig
from cdiff_rt.nets.dynamic import mixing_error
from cdiff_rt.nets.mask_encoder import MaskEncoder
from cdiff_rt.nets.text_encoder import TextEncoder
from recipes.faces.config import FACES_128, MASK_SIZE, SCHEDULE
from recipes.faces.data import Portraits
from recipes.faces.examples import Examples, Stage, encode_all, images_of
from recipes.faces.judge import train_judge
from recipes.faces.training import Loss, Plan, fit, load_state
from recipes.faces.weights import load_weights, parts_of, save_weights

LATENT_NOISE = 0.05  # the sampler leaves errors of this size, so the decoder must not read finer detail


def peak_signal_to_noise(squared_error: Tensor) -> float:
    """In dB, for images in [-1, 1]."""
    return -10 * math.log10(squared_error.item() / 4)


def begin(stage: Stage, parts: list[str], fresh: Callable[[], None]) -> None:
    """Gives the parts that a stage trains their first weights."""
    if stage.again:
        for part in parts:
            load_weights(stage.model, stage.plan.folder, part)
    else:
        fresh()


# --- vae -------------------------------------------------------------------------------------------------------------


def start_at_pca(model: CollaborativeModel, images: Tensor) -> None:
    """The linear code of the autoencoder becomes the principal components of image blocks, partly whitened."""
    vae, side = model.vae, model.vae.config.factor
    blocks = F.pixel_unshuffle(images, side).permute(0, 2, 3, 1).flatten(0, 2)  # [n, 3 * side^2]
    values, vectors = torch.linalg.eigh(torch.cov((blocks - blocks.mean(0)).T))
    count = vae.config.z_channels
    basis = vectors.flip(1)[:, :count].T.reshape(count, 3, side, side)
    scale = values.flip(0)[:count].sqrt().pow(0.6).reshape(-1, 1, 1, 1)
    colour = images.mean((0, 2, 3))
    quant = vae.quant_conv.bias
    assert vae.linear_in.bias is not None and vae.linear_out.bias is not None and quant is not None
    with torch.no_grad():
        vae.linear_in.weight.copy_(basis / scale)
        vae.linear_in.bias.copy_(-(basis / scale * colour[:, None, None]).sum((1, 2, 3)))
        vae.linear_out.weight.copy_(basis * scale)
        vae.linear_out.bias.copy_(colour)
        zero_weights(vae.encoder.conv_out)
        zero_weights(vae.decoder.conv_out)
        quant[:count] = 0
        quant[count:] = -6


def edges(image: Tensor) -> tuple[Tensor, Tensor]:
    return image[..., 1:] - image[..., :-1], image[..., 1:, :] - image[..., :-1, :]


def vae_loss(stage: Stage) -> Loss:
    vae = stage.model.vae

    def loss(indices: Tensor, generator: torch.Generator) -> Tensor:
        image = images_of(stage.portraits, indices)
        mean, logvar = (part.float() for part in vae.encode(image))
        std = (0.5 * logvar).exp() + LATENT_NOISE
        again = vae.decode(mean + std * torch.randn(mean.shape, generator=generator)).float()
        sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(again), edges(image), strict=True))
        divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return F.l1_loss(again, image) + F.mse_loss(again, image) + 0.7 * sharp + 1e-6 * divergence

    return loss


def train_vae(stage: Stage) -> None:
    first = torch.arange(1500).clamp(max=stage.portraits.train_count - 1)
    begin(stage, ["vae"], lambda: start_at_pca(stage.model, images_of(stage.portraits, first)))
    fit(stage.plan, stage.model.vae, vae_loss(stage))
    save_weights(stage.model, stage.plan.folder, "vae")


# --- branches and diffusers ------------------------------------------------------------------------------------------


ALPHA_BARS = torch.from_numpy(SCHEDULE.alpha_bars())


def diffuse(z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A random timestep and noise for each latent -> x_t, t and the v that a branch should predict."""
    return at_timestep(z, torch.randint(SCHEDULE.train_steps, (len(z),), generator=generator), generator)


def at_timestep(z: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """z [B, C, H, W] at timesteps t [B] with random noise -> x_t, t and v = sqrt(a) noise - sqrt(1 - a) z."""
    noise = torch.randn(z.shape, generator=generator)
    signal = ALPHA_BARS[t].sqrt().float()[:, None, None, None]
    spread = (1 - ALPHA_BARS[t]).sqrt().float()[:, None, None, None]
    return signal * z + spread * noise, t, signal * noise - spread * z


def cosines(side: int, count: int) -> Tensor:
    """The lowest two-dimensional cosines on a square of `side` cells, orthonormal: [count, side * side]."""
    k = torch.arange(side)
    waves = torch.cos(math.pi / side * (k[None] + 0.5) * k[:, None]) * (2 / side) ** 0.5
    waves[0] /= 2**0.5
    planes = torch.einsum("ay,bx->abyx", waves, waves).reshape(side**2, -1)
    return planes[(k[:, None] ** 2 + k[None] ** 2).flatten().argsort()[:count]]


def start_at_cosines(linear: nn.Linear) -> None:
    """The mask encoder begins as the lowest cosines, so class tokens say at once where things are."""
    with torch.no_grad():
        linear.weight.copy_(0.35 * cosines(MASK_SIZE, linear.out_features))
        linear.bias.zero_()


def zero_weights(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def branch_loss(expert: Expert, modality: str, examples: Examples) -> Loss:
    def loss(indices: Tensor, generator: torch.Generator) -> Tensor:
        x, t, v = diffuse(examples.latents[indices], generator)
        tokens = expert.encoder(examples.condition(modality, indices, generator))
        error = ((expert.unet(x, t, tokens).float() - v) ** 2).mean((1, 2, 3))
        return (importance(t) * error).mean()

    return loss


def importance(t: Tensor) -> Tensor:
    """[B]: the weight of v's error, between a constant and min-SNR (Hang et al., 2303.09556, with gamma 5).

    The constant alone spends most of the gradient on what nothing can predict from pure noise, min-SNR alone none on
    where the conditions decide.
    """
    snr = (ALPHA_BARS[t] / (1 - ALPHA_BARS[t])).float()
    return 0.5 + snr.clamp(max=5) / (snr + 1)


def fresh_branch(stage: Stage, modality: str) -> None:
    """Text starts from the mask's UNet as far as its training has come, for it already draws faces."""
    expert = stage.model.expert(modality)
    if isinstance(expert.encoder, TextEncoder):
        expert.unet.load_state_dict(load_state(stage.plan.folder, "mask", "unet"))
        nn.init.normal_(expert.encoder.transformer.token_emb.weight, std=0.1)
        nn.init.normal_(expert.encoder.transformer.pos_emb.emb.weight, std=0.1)
    elif isinstance(expert.encoder, MaskEncoder):
        start_at_cosines(expert.encoder.linear)
        zero_weights(expert.unet.out[2])


def train_branch(stage: Stage, modality: str) -> None:
    """One modality's encoder and UNet."""
    examples, expert = encode_all(stage), stage.model.expert(modality)
    parts = parts_of(modality)[:2]
    begin(stage, parts, lambda: fresh_branch(stage, modality))
    branch = nn.ModuleDict({"encoder": expert.encoder, "unet": expert.unet})
    expert.unet.compile()  # fewer passes over memory; loss and gradients were held against eager's first
    fit(stage.plan, branch, branch_loss(expert, modality, examples))
    for part in parts:
        save_weights(stage.model, stage.plan.folder, part)


def visibility(vae: AutoencoderKL) -> Tensor:
    """[C, 1, 1]: how much an error of each latent channel shows, squared, in an image; 1 on average.

    By the decoder's linear part, which makes most of the image.
    """
    seen = vae.linear_out.weight.detach().square().sum((1, 2, 3))
    return (seen / seen.mean())[:, None, None]


def diffusers_loss(
    experts: dict[str, Expert], visible: Tensor, examples: Examples, subsets: Sequence[Sequence[str]] = ()
) -> Loss:
    """The loss of the fused prediction under the plain softmax (Collaborative Diffusion, eq. 5-7 and section 3.3).

    Each batch is of one of `subsets` of the modalities, or of all.
    """

    def loss(indices: Tensor, generator: torch.Generator) -> Tensor:
        x, t, v = diffuse(examples.latents[indices], generator)
        which = int(torch.randint(len(subsets), (), generator=generator)) if subsets else 0
        outs, logits = [], []
        for modality in subsets[which] if subsets else experts:
            expert = experts[modality]
            with torch.no_grad():
                tokens = expert.encoder(examples.condition(modality, indices, generator))
                outs.append(expert.unet(x, t, tokens).float())
            logits.append(expert.diffuser(x, t, tokens).float())
        influence = torch.softmax(torch.stack(logits), dim=0)
        return mixing_error(influence, torch.stack(outs), v, visible).mean()

    return loss


def train_diffusers(stage: Stage) -> None:
    examples = encode_all(stage)
    experts = {modality: stage.model.expert(modality) for modality in stage.model.experts}
    stage.model.requires_grad_(False)
    load_weights(stage.model, stage.plan.folder, "vae")
    for modality, expert in experts.items():
        encoder, unet, diffuser = parts_of(modality)
        load_weights(stage.model, stage.plan.folder, encoder)
        load_weights(stage.model, stage.plan.folder, unet)
        begin(stage, [diffuser], lambda expert=expert: zero_weights(expert.diffuser.out[2]))  # type: ignore[misc]
        expert.diffuser.requires_grad_(True)
        expert.unet.compile()  # as in train_branch
    diffusers = nn.ModuleDict({modality: expert.diffuser for modality, expert in experts.items()})
    fit(stage.plan, diffusers, diffusers_loss(experts, visibility(stage.model.vae), examples))
    for modality in experts:
        save_weights(stage.model, stage.plan.folder, f"experts.{modality}.diffuser")


Stages = dict[str, tuple[Callable[[Stage], None], dict[str, Any]]]  # what trains each, and settings of its plan
STAGES: Stages = {
    "vae": (train_vae, {"batch": 16, "learning_rate": 1e-3, "ema": 0.999}),
    "mask": (lambda stage: train_branch(stage, "mask"), {"batch": 32, "learning_rate": 1.5e-3, "ema": 0.999}),
    "text": (lambda stage: train_branch(stage, "text"), {"batch": 32, "learning_rate": 1.2e-3, "ema": 0.999}),
    "judge": (train_judge, {"batch": 32, "learning_rate": 2e-3}),
    "diffusers": (train_diffusers, {"batch": 32, "learning_rate": 1e-3}),
}


def trainer(stages: Stages, config: ModelConfig) -> click.Command:
    """The command that trains a stage of a model."""

    @click.command()
    @click.argument("stage", type=click.Choice(list(stages)))
    @click.option("--minutes", type=click.FloatRange(min=0), required=True, help="Of computing, over all resumed runs.")
    @click.option("--resume", is_flag=True, help="Go on from the state in OUT.")
    @click.option("--again", is_flag=True, help="Begin with the weights in OUT, such as the shipped ones (unpack.py).")
    @click.option(
        "--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Default: the stage's, for fresh weights."
    )
    @click.option("--seed", default=0, show_default=True)
    @click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
    @click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
    def main(
        stage: str,
        minutes: float,
        resume: bool,
        again: bool,
        learning_rate: float | None,
        seed: int,
        data: Path,
        out: Path,
    ) -> None:
        """Train one STAGE and leave its weights in OUT."""
        torch.manual_seed(seed)
        torch.set_flush_denormal(True)
        out.mkdir(parents=True, exist_ok=True)
        portraits = Portraits.load(data)
        run, settings = stages[stage]
        settings = settings | ({"learning_rate": learning_rate} if learning_rate else {})
        plan = Plan(stage, out, minutes, resume, seed, examples=portraits.train_count, **settings)
        plan.check()
        with sdpa_kernel(SDPBackend.MATH):  # faster than the fused kernel for these few tokens, forwards and backwards
            run(Stage(plan, portraits, CollaborativeModel(config), again))

    return main


main = trainer(STAGES, FACES_128)

if __name__ == "__main__":
    main()
