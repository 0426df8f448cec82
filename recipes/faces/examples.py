"""What the stages read: portraits as images, as latents and as conditions, encoded once."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cdiff_rt.inputs.images import nearest
from cdiff_rt.manifest import sha256
from cdiff_rt.nets.collaborative import CollaborativeModel
from recipes.faces.config import MASK_CLASSES, MASK_SIZE, VOCABULARY
from recipes.faces.data import Portraits, token_ids
from recipes.faces.freehand import freehand
from recipes.faces.sketches import clean, drawn, edges
from recipes.faces.training import Plan
from recipes.faces.weights import load_weights

UNKNOWN_WORDS = 0.03  # share of words hidden in training, so that the model bears words it doesn't know
FREEHAND_MASKS = 0.35  # share of masks redrawn in training, so that the model bears those that a user draws


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


@dataclass(frozen=True)
class Examples:
    """All that the diffusion stages read: latents of unit variance, and each modality's condition."""

    latents: Tensor  # [N, C, h, w]
    conditions: dict[str, Tensor]  # mask: [N, 1024] labels; text: [N, TOKENS] ids; sketch: [N, 128, 128] bool

    def condition(self, modality: str, indices: Tensor, generator: torch.Generator, rough: bool = True) -> Tensor:
        """What the modality's encoder takes; `rough` as in training, where conditions look as users may give them."""
        rows = self.conditions[modality][indices]
        if modality == "mask":
            labels = redraw(rows, generator) if rough else rows
            return F.one_hot(labels.long(), MASK_CLASSES).transpose(1, 2).float()
        if modality == "sketch":
            return drawn(rows, generator) if rough else clean(rows)
        return hide_words(rows, generator) if rough else rows


def redraw(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Masks [B, 1024], some of them as a hand would draw them."""
    some = torch.rand(len(rows), generator=generator) < FREEHAND_MASKS
    drawn = rows.clone()
    drawn[some] = freehand(rows[some].unflatten(1, (MASK_SIZE, MASK_SIZE)), generator).flatten(1).to(rows.dtype)
    return drawn


def hide_words(ids: Tensor, generator: torch.Generator) -> Tensor:
    hidden = (torch.rand(ids.shape, generator=generator) < UNKNOWN_WORDS) & (ids >= 4)
    return torch.where(hidden, VOCABULARY.index("[UNK]"), ids)


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


def lines_of(portraits: Portraits, count: int) -> Tensor:
    """The edges of the first portraits, [count, 128, 128] bool."""
    return torch.cat([edges(images_of(portraits, part)) for part in torch.arange(count).split(64)])
