"""Train `faces-128`, stage by stage. Each stage needs the ones before it; each can be stopped and resumed.

python -m recipes.faces.train STAGE --minutes N --data data --out trained

README.md beside this file has the order and the minutes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cdiff_rt.images import nearest
from cdiff_rt.manifest import sha256
from cdiff_rt.nets.collaborative import CollaborativeModel, Expert
from cdiff_rt.nets.text_encoder import TextEncoder
from recipes.faces.config import FACES_128, MASK_CLASSES, MASK_SIZE, SCHEDULE, VOCABULARY
from recipes.faces.data import Portraits, token_ids
from recipes.faces.training import Loss, Plan, fit
from recipes.faces.weights import load_weights, parts_of, save_weights

LATENT_NOISE = 0.05  # the sampler leaves errors of this size, so the decoder must not read finer detail
UNKNOWN_WORDS = 0.03  # share of words hidden in training, so that the model bears words it doesn't know


@dataclass(frozen=True)
class Stage:
    plan: Plan
    portraits: Portraits
    model: CollaborativeModel
    again: bool = False  # begin with the weights that lie in the folder, not with fresh ones


def images_of(portraits: Portraits, indices: Tensor) -> Tensor:
    """[B, 3, 128, 128] in [-1, 1]."""
    pixels = torch.from_numpy(portraits.images[indices.numpy()])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


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


@dataclass(frozen=True)
class Examples:
    """All that the diffusion stages read: latents of unit variance, and each modality's condition."""

    latents: Tensor  # [N, C, h, w]
    conditions: dict[str, Tensor]  # mask: [N, 1024] labels; text: [N, TOKENS] ids

    def condition(
        self, modality: str, indices: Tensor, generator: torch.Generator, hide: float = UNKNOWN_WORDS
    ) -> Tensor:
        """What the modality's encoder takes; `hide` is the share of words made unknown."""
        rows = self.conditions[modality][indices]
        if modality == "mask":
            return F.one_hot(rows.long(), MASK_CLASSES).transpose(1, 2).float()
        hidden = (torch.rand(rows.shape, generator=generator) < hide) & (rows >= 4)
        return torch.where(hidden, VOCABULARY.index("[UNK]"), rows)


def encode_all(stage: Stage) -> Examples:
    """Encodes every training portrait, once for each autoencoder and data set."""
    cache = stage.plan.folder / "latents.safetensors"
    made_of = {"vae": sha256(stage.plan.folder / "vae.safetensors"), "portraits": stage.portraits.name}
    if not cache.exists() or _made_of(cache) != made_of:
        load_weights(stage.model, stage.plan.folder, "vae")
        indices = torch.arange(stage.portraits.train_count)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            parts = [stage.model.vae.encode(images_of(stage.portraits, part))[0].float() for part in indices.split(64)]
        latents = torch.cat(parts)
        scale = 1 / latents.std()
        save_file({"latents": (latents * scale).contiguous(), "scale": scale}, cache, metadata=made_of)
    return Examples(load_file(cache)["latents"], conditions_of(stage.portraits, slice(stage.portraits.train_count)))


def _made_of(cache: Path) -> dict[str, str] | None:
    with safe_open(cache, "pt") as file:
        return file.metadata()


def conditions_of(portraits: Portraits, chosen: slice) -> dict[str, Tensor]:
    labels = nearest(portraits.labels[chosen], MASK_SIZE)
    return {
        "mask": torch.from_numpy(labels.reshape(len(labels), -1)),
        "text": torch.from_numpy(token_ids(portraits.captions[chosen])),
    }


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


def start_at_cosines(linear: nn.Linear) -> None:
    """The mask encoder begins as the lowest two-dimensional cosines, so class tokens say at once where things are."""
    k = torch.arange(MASK_SIZE)
    waves = torch.cos(math.pi / MASK_SIZE * (k[None] + 0.5) * k[:, None]) * (2 / MASK_SIZE) ** 0.5
    waves[0] /= 2**0.5
    planes = torch.einsum("ay,bx->abyx", waves, waves).reshape(MASK_SIZE**2, -1)
    lowest = (k[:, None] ** 2 + k[None] ** 2).flatten().argsort()[: linear.out_features]
    with torch.no_grad():
        linear.weight.copy_(0.35 * planes[lowest])
        linear.bias.zero_()


def zero_weights(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def branch_loss(expert: Expert, modality: str, examples: Examples) -> Loss:
    def loss(indices: Tensor, generator: torch.Generator) -> Tensor:
        x, t, v = diffuse(examples.latents[indices], generator)
        tokens = expert.encoder(examples.condition(modality, indices, generator))
        return F.mse_loss(expert.unet(x, t, tokens).float(), v)

    return loss


def fresh_branch(stage: Stage, modality: str) -> None:
    """Text starts from the mask's UNet, which already draws faces."""
    expert = stage.model.expert(modality)
    if isinstance(expert.encoder, TextEncoder):
        load_weights(stage.model, stage.plan.folder, f"experts.{modality}.unet", "experts.mask.unet")
        nn.init.normal_(expert.encoder.transformer.token_emb.weight, std=0.1)
        nn.init.normal_(expert.encoder.transformer.pos_emb.emb.weight, std=0.1)
    else:
        start_at_cosines(expert.encoder.linear)
        zero_weights(expert.unet.out[2])


def train_branch(stage: Stage, modality: str) -> None:
    """One modality's encoder and UNet."""
    examples, expert = encode_all(stage), stage.model.expert(modality)
    parts = parts_of(modality)[:2]
    begin(stage, parts, lambda: fresh_branch(stage, modality))
    branch = nn.ModuleDict({"encoder": expert.encoder, "unet": expert.unet})
    fit(stage.plan, branch, branch_loss(expert, modality, examples))
    for part in parts:
        save_weights(stage.model, stage.plan.folder, part)


def diffusers_loss(experts: dict[str, Expert], examples: Examples) -> Loss:
    """The loss of the fused prediction under the plain softmax (Collaborative Diffusion, eq. 5-7 and section 3.3)."""

    def loss(indices: Tensor, generator: torch.Generator) -> Tensor:
        x, t, v = diffuse(examples.latents[indices], generator)
        outs, logits = [], []
        for modality, expert in experts.items():
            with torch.no_grad():
                tokens = expert.encoder(examples.condition(modality, indices, generator))
                outs.append(expert.unet(x, t, tokens).float())
            logits.append(expert.diffuser(x, t, tokens).float())
        influence = torch.softmax(torch.stack(logits), dim=0)
        return F.mse_loss((influence * torch.stack(outs)).sum(0), v)

    return loss


def train_diffusers(stage: Stage) -> None:
    examples = encode_all(stage)
    experts = {modality: stage.model.expert(modality) for modality in stage.model.experts}
    stage.model.requires_grad_(False)
    for modality, expert in experts.items():
        encoder, unet, diffuser = parts_of(modality)
        load_weights(stage.model, stage.plan.folder, encoder)
        load_weights(stage.model, stage.plan.folder, unet)
        begin(stage, [diffuser], lambda expert=expert: zero_weights(expert.diffuser.out[2]))  # type: ignore[misc]
        expert.diffuser.requires_grad_(True)
    diffusers = nn.ModuleDict({modality: expert.diffuser for modality, expert in experts.items()})
    fit(stage.plan, diffusers, diffusers_loss(experts, examples))
    for modality in experts:
        save_weights(stage.model, stage.plan.folder, f"experts.{modality}.diffuser")


STAGES: dict[str, tuple[Callable[[Stage], None], dict[str, Any]]] = {
    "vae": (train_vae, {"batch": 16, "learning_rate": 1e-3, "ema": 0.999}),
    "mask": (lambda stage: train_branch(stage, "mask"), {"batch": 32, "learning_rate": 1.5e-3}),
    "text": (lambda stage: train_branch(stage, "text"), {"batch": 32, "learning_rate": 1.2e-3}),
    "diffusers": (train_diffusers, {"batch": 32, "learning_rate": 1e-3}),
}


@click.command()
@click.argument("stage", type=click.Choice(list(STAGES)))
@click.option("--minutes", type=click.FloatRange(min=0), required=True, help="Of computing, over all resumed runs.")
@click.option("--resume", is_flag=True, help="Go on from the state in OUT.")
@click.option("--again", is_flag=True, help="Begin with the weights in OUT, such as the shipped ones (unpack.py).")
@click.option("--seed", default=0, show_default=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(stage: str, minutes: float, resume: bool, again: bool, seed: int, data: Path, out: Path) -> None:
    """Train one STAGE and leave its weights in OUT."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    out.mkdir(parents=True, exist_ok=True)
    portraits = Portraits.load(data)
    run, settings = STAGES[stage]
    plan = Plan(stage, out, minutes, resume, seed, examples=portraits.train_count, **settings)
    plan.check()
    with sdpa_kernel(SDPBackend.MATH):  # faster than the fused kernel for these few tokens, forwards and backwards
        run(Stage(plan, portraits, CollaborativeModel(FACES_128), again))


if __name__ == "__main__":
    main()
