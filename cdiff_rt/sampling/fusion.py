"""The step of Collaborative Diffusion, written once for numpy and torch arrays. This is the definition.

The dynamic diffusers' logits become influence functions by a softmax over the modalities, per pixel; the branches'
predictions are summed with them (Huang et al., CVPR 2023, eq. 5-7); a row of the solver's table moves x_t.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import array_api_compat
import numpy as np

from cdiff_rt.sampling.solvers import C_HIST, C_NOISE, C_OUT, C_X, D_OUT, D_X
from cdiff_rt.settings import Influence

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")


@dataclass(frozen=True)
class Adjustment(Generic[Array]):
    """What inference does to the influence functions of a run, as numbers; or of one step, then ready to broadcast.

    The identity is gains 1, no anchor, factors 1.
    """

    gains: Array  # [S, M]: a modality's influence is multiplied by this at each step
    anchor: Array  # [M]: 1 for the modality that takes what the gains took away, else 0
    factors: Array  # [M]: then each is weighed by this, and their sum brought back to 1
    sharpness: "float | Array" = 1.0  # of the softmax; 0 is the plain mean
    boost: "float | Array | None" = None  # of a second softmax, over the influence functions themselves


def of_step(adjust: Adjustment[np.ndarray], step: int, ndim: int) -> Adjustment[np.ndarray]:
    """That of one step in float32, [M, 1, ...], for logits whose axes after the modalities' are `ndim`."""
    shape = (-1, *(1,) * ndim)
    parts = (adjust.gains[step], adjust.anchor, adjust.factors)
    gains, anchor, factors = (part.astype(np.float32).reshape(shape) for part in parts)
    return replace(adjust, gains=gains, anchor=anchor, factors=factors)


def decay(kind: str, timesteps: np.ndarray, train_steps: int) -> np.ndarray:
    """[S]: the gain of a decaying modality, 1 at pure noise and 0 at the image ("cosine", "linear"), or 1 ("none")."""
    done = 1 - timesteps / train_steps
    return {"none": np.ones_like(done), "linear": 1 - done, "cosine": (np.cos(np.pi * done) + 1) / 2}[kind]


def adjustment(decays: list[bool], anchor: int | None, gain: np.ndarray, asked: Influence) -> Adjustment[np.ndarray]:
    """For modalities of which some decay by `gain` [S] and are weighed by a factor, and one takes the remainder.

    Where there is none to take it, or nothing that decays, the softmax stays as it is.
    """
    count = len(decays)
    active = np.array(decays) if anchor is not None and any(decays) else np.zeros(count, bool)
    takes = np.zeros(count)
    if anchor is not None and active.any():
        takes[anchor] = 1.0
    gains, factors = np.where(active, gain[:, None], 1.0), np.where(active, asked.factor, 1.0)
    return Adjustment(gains, takes, factors, asked.sharpness, asked.boost)


def influence(logits: Array, adjust: Adjustment[Array]) -> Array:
    """logits [M, B, 1, *latent], a step's adjustment -> influence functions of that shape; they sum to 1."""
    xp = array_api_compat.array_namespace(logits)
    weights = softmax(adjust.sharpness * logits)
    kept = weights * adjust.gains * (1 - adjust.anchor)
    weights = kept + adjust.anchor * (1 - xp.sum(kept, axis=0, keepdims=True))
    weights = weights * adjust.factors
    weights = weights / xp.sum(weights, axis=0, keepdims=True)
    return weights if adjust.boost is None else softmax(adjust.boost * weights)


def softmax(logits: Array) -> Array:
    """Over the first axis, the modalities'."""
    xp = array_api_compat.array_namespace(logits)
    weights = xp.exp(logits - xp.max(logits, axis=0, keepdims=True))
    return weights / xp.sum(weights, axis=0, keepdims=True)


def fuse(outs: Array, weights: Array) -> Array:
    """outs [M, B, C, *latent], weights [M, B, 1, *latent] -> the collaborative prediction [B, C, *latent]."""
    xp = array_api_compat.array_namespace(outs)
    return xp.sum(weights * outs, axis=0)


def update(x: Array, out: Array, hist: Array, noise: Array, c: Array) -> tuple[Array, Array]:
    """One row of the solver's table -> the next x and hist."""
    following = c[C_X] * x + c[C_OUT] * out + c[C_HIST] * hist + c[C_NOISE] * noise
    return following, c[D_X] * x + c[D_OUT] * out
