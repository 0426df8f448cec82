"""The step of Collaborative Diffusion, written once for numpy and torch arrays. This is the definition.

The dynamic diffusers' logits become influence functions by a softmax over the modalities, per pixel; the branches'
predictions are summed with them (Huang et al., CVPR 2023, eq. 5-7); a row of the solver's table moves x_t. In between,
`steered` holds the influence functions to what a user asks for.
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

ABSENT = -1e30  # the score of a modality that is not there: its exponential is 0
LEAST = 1e-20  # share that is divided by, where a softmax underflows


@dataclass(frozen=True)
class Adjustment(Generic[Array]):
    """What inference does to the influence functions of a run, as numbers; or of one step, then ready to broadcast.

    The identity is gains 1, no anchor, factors 1, all present, no controls.
    """

    gains: Array  # [S, M]: a modality's influence is multiplied by this
    anchor: Array  # [S, M]: 1 for the modality that takes what the gains took away, else 0
    factors: Array  # [S, M]: then each is weighed by this, and their sum brought back to 1
    present: Array  # [S, M]: 0 where a modality is left out of this step, as if it had not been given, else 1
    sharpness: "float | Array" = 1.0  # of the softmax; 0 is the plain mean
    boost: "float | Array | None" = None  # of a second softmax, over the influence functions themselves
    controls: Array | None = None  # [S, 3, M, *latent]: a scale of each, and the least and the most that it may be


PER_MODALITY = ("gains", "anchor", "factors", "present")


def of_step(adjust: Adjustment[np.ndarray], step: int, ndim: int) -> Adjustment[np.ndarray]:
    """That of one step in float32, [M, 1, ...], for logits whose axes after the modalities' are `ndim`."""
    shape = (-1, *(1,) * ndim)
    parts = {name: getattr(adjust, name)[step].astype(np.float32).reshape(shape) for name in PER_MODALITY}
    controls = None if adjust.controls is None else adjust.controls[step][:, :, None, None]
    return replace(adjust, **parts, controls=controls)


def decay(kind: str, timesteps: np.ndarray, train_steps: int) -> np.ndarray:
    """[S]: the gain of a decaying modality, 1 at pure noise and 0 at the image ("cosine", "linear"), or 1 ("none")."""
    done = 1 - timesteps / train_steps
    return {"none": np.ones_like(done), "linear": 1 - done, "cosine": (np.cos(np.pi * done) + 1) / 2}[kind]


def adjustment(
    decays: list[bool], anchor: int | None, gain: np.ndarray, asked: Influence, present: np.ndarray | None = None
) -> Adjustment[np.ndarray]:
    """For modalities of which some decay by `gain` [S] and are weighed by a factor, and one takes the remainder.

    At steps where there is none to take it, or nothing that decays, the softmax stays as it is. `present` [S, M] is
    which modalities take part in a step, all by default.
    """
    there = np.ones((len(gain), len(decays)), bool) if present is None else present
    active, takes = there & decays, np.zeros(there.shape)
    anchored = active.any(1) & there[:, anchor] if anchor is not None else np.zeros(len(gain), bool)
    active &= anchored[:, None]
    if anchor is not None:
        takes[:, anchor] = anchored
    gains, factors = np.where(active, gain[:, None], 1.0), np.where(active, asked.factor, 1.0)
    return Adjustment(gains, takes, factors, there.astype(float), asked.sharpness, asked.boost)


def influence(logits: Array, adjust: Adjustment[Array]) -> Array:
    """logits [M, B, 1, *latent], a step's adjustment -> influence functions of that shape; they sum to 1."""
    xp = array_api_compat.array_namespace(logits)
    weights = softmax(adjust.sharpness * logits, adjust.present)
    kept = weights * adjust.gains * (1 - adjust.anchor)
    weights = kept + adjust.anchor * (1 - xp.sum(kept, axis=0, keepdims=True))
    weights = weights * adjust.factors
    weights = weights / xp.sum(weights, axis=0, keepdims=True)
    if adjust.boost is not None:
        weights = softmax(adjust.boost * weights, adjust.present)
    return weights if adjust.controls is None else steered(weights, adjust)


def softmax(scores: Array, present: Array | None = None) -> Array:
    """Over the first axis, the modalities', of those that are present."""
    xp = array_api_compat.array_namespace(scores)
    scores = scores if present is None else xp.where(present > 0, scores, ABSENT)
    weights = xp.exp(scores - xp.max(scores, axis=0, keepdims=True))
    return weights / xp.sum(weights, axis=0, keepdims=True)


def steered(shares: Array, adjust: Adjustment[Array]) -> Array:
    """Influence functions [M, B, 1, *latent] that sum to 1 -> those that obey the step's controls, and sum to 1.

    Scales weigh the shares anew (MultiDiffusion, Bar-Tal et al. 2023, eq. 5, with regions as scales). What is beyond
    least or most is held there, and the others give or take the difference by the room that they have. A scale below 0
    leads away from what its expert predicts (Composable Diffusion, Liu et al. 2022, eq. 12): of equal shares and scales
    that sum to 1, the result is the scales.
    """
    xp = array_api_compat.array_namespace(shares)
    assert adjust.controls is not None
    scale, least, most = adjust.controls
    wanted = xp.clip(scale, 0, None) * xp.clip(shares, LEAST, None)
    held = xp.clip(wanted / xp.sum(wanted, axis=0, keepdims=True), least, most)
    missing = 1 - xp.sum(held, axis=0, keepdims=True)
    room = xp.where(missing > 0, most - held, held - least)
    held = held + missing * room / xp.clip(xp.sum(room, axis=0, keepdims=True), LEAST, None)
    away = xp.clip(scale, None, 0) * shares * xp.sum(adjust.present, axis=0, keepdims=True)
    return held * (1 - xp.sum(away, axis=0, keepdims=True)) + away


def fuse(outs: Array, weights: Array, present: Array | None = None) -> Array:
    """outs [M, B, C, *latent], weights [M, B, 1, *latent] -> the collaborative prediction [B, C, *latent].

    What stands in the place of a modality that is not present may be no number.
    """
    xp = array_api_compat.array_namespace(outs)
    outs = outs if present is None else xp.where(present > 0, outs, 0)
    return xp.sum(weights * outs, axis=0)


def update(x: Array, out: Array, hist: Array, noise: Array, c: Array) -> tuple[Array, Array]:
    """One row of the solver's table -> the next x and hist."""
    following = c[C_X] * x + c[C_OUT] * out + c[C_HIST] * hist + c[C_NOISE] * noise
    return following, c[D_X] * x + c[D_OUT] * out
