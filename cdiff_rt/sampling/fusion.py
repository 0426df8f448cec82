"""The step of Collaborative Diffusion, written once for numpy and torch arrays. This is the definition.

The dynamic diffusers' logits become influence functions by a softmax over the modalities, per pixel; the branches'
predictions are summed with them (Huang et al., CVPR 2023, eq. 5-7); a row of the solver's table moves x_t.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import array_api_compat
import numpy as np

from cdiff_rt.sampling.solvers import C_HIST, C_NOISE, C_OUT, C_X, D_OUT, D_X

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")


@dataclass(frozen=True)
class Adjustment:
    """What inference does to the influence functions, as numbers; the identity is gains 1, no anchor, factors 1."""

    gains: np.ndarray  # [S, M]: a modality's influence is multiplied by this at each step
    anchor: np.ndarray  # [M]: 1 for the modality that takes what the gains took away, else 0
    factors: np.ndarray  # [M]: then each is weighed by this, and their sum brought back to 1
    sharpness: float = 1.0  # of the softmax; 0 is the plain mean
    boost: float | None = None  # of a second softmax, over the influence functions themselves


def decay(kind: str, timesteps: np.ndarray, train_steps: int) -> np.ndarray:
    """[S]: the gain of a decaying modality, 1 at pure noise and 0 at the image ("cosine", "linear"), or 1 ("none")."""
    done = 1 - timesteps / train_steps
    return {"none": np.ones_like(done), "linear": 1 - done, "cosine": (np.cos(np.pi * done) + 1) / 2}[kind]


def adjustment(
    decays: list[bool],
    anchor: int | None,
    gain: np.ndarray,
    factor: float,
    sharpness: float = 1.0,
    boost: float | None = None,
) -> Adjustment:
    """For modalities of which some decay by `gain` [S] and are weighed by `factor`, and one takes the remainder.

    Where there is none to take it, or nothing that decays, the softmax stays as it is.
    """
    count = len(decays)
    active = np.array(decays) if anchor is not None and any(decays) else np.zeros(count, bool)
    takes = np.zeros(count)
    if anchor is not None and active.any():
        takes[anchor] = 1.0
    return Adjustment(np.where(active, gain[:, None], 1.0), takes, np.where(active, factor, 1.0), sharpness, boost)


def influence(
    logits: Array,
    gains: Array,
    anchor: Array,
    factors: Array,
    sharpness: Array | float = 1.0,
    boost: Array | float | None = None,
) -> Array:
    """logits [M, B, 1, *latent]; the others broadcast to it -> influence functions of that shape; they sum to 1."""
    xp = array_api_compat.array_namespace(logits)
    weights = softmax(sharpness * logits)
    kept = weights * gains * (1 - anchor)
    weights = kept + anchor * (1 - xp.sum(kept, axis=0, keepdims=True))
    weights = weights * factors
    weights = weights / xp.sum(weights, axis=0, keepdims=True)
    return weights if boost is None else softmax(boost * weights)


def softmax(logits: Array) -> Array:
    """Over the first axis, the modalities'."""
    xp = array_api_compat.array_namespace(logits)
    weights = xp.exp(logits - xp.max(logits, axis=0, keepdims=True))
    return weights / xp.sum(weights, axis=0, keepdims=True)


def fuse(outs: Array, weights: Array) -> Array:
    """outs [M, B, C, *latent], weights [M, B, 1, *latent] -> the collaborative prediction [B, C, *latent]."""
    xp = array_api_compat.array_namespace(outs)
    return xp.sum(weights * outs, axis=0)


def update(x: Array, out: Array, hist: Array, noise: Array, row: Array) -> tuple[Array, Array]:
    """One row of the solver's table -> the next x and hist."""
    following = row[C_X] * x + row[C_OUT] * out + row[C_HIST] * hist + row[C_NOISE] * noise
    return following, row[D_X] * x + row[D_OUT] * out
