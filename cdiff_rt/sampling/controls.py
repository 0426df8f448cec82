"""What a user's weights and regions make of each step: scales and bounds of every modality's influence, per place.

A modality that weighs nothing anywhere in a step is not present in it: its expert is not called.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdiff_rt.controls import Region, Weight
from cdiff_rt.errors import BadRequest

ROUNDING = 1e-6  # of sums of float32
NOTHING = 1e-12  # a smaller weight is none: times the share that a softmax leaves it would underflow
SCALE, LEAST, MOST = range(3)  # of `Controls.values`
NEUTRAL = (1.0, 0.0, 1.0)  # of each, where nothing is asked for


@dataclass(frozen=True)
class Controls:
    """Of the M modalities of a run, at each of its S steps."""

    values: np.ndarray | None  # [S, 3, M, *latent] float32: scale, least, most; None where nothing is asked for
    present: np.ndarray  # [S, M] bool


def places_of(timesteps: np.ndarray, train_steps: int) -> np.ndarray:
    """[S]: the share of the way from noise, 0, to image, 1, that lies behind at each step."""
    return 1 - timesteps / train_steps


def weight_at(weight: Weight, places: np.ndarray) -> np.ndarray:
    """[S]: between keyframes on a line, outside start and end 0."""
    at, values = zip(*weight.keys, strict=True)
    return np.interp(places, at, values) * _within(weight, places)


def controls(
    names: Sequence[str],
    weights: Sequence[Weight],
    regions: Sequence[tuple[Region, np.ndarray]],
    places: np.ndarray,
    latent: tuple[int, ...],
    scales: np.ndarray | None = None,
) -> Controls:
    """`regions` come with their maps [*latent], shares of 1; `scales` [S, M, *latent] weigh beside weights.

    Raises BadRequest for what cannot hold.
    """
    if not weights and not regions and scales is None:
        return Controls(None, np.ones((len(places), len(names)), bool))
    along = (slice(None), *(None,) * len(latent))  # [S] -> [S, 1, ...]
    values = np.zeros((len(places), 3, len(names), *latent))
    for row, nothing_asked in enumerate(NEUTRAL):
        values[:, row] = nothing_asked
    if scales is not None:
        values[:, SCALE] = scales
    for weight in weights:
        values[:, SCALE, names.index(weight.condition)] *= weight_at(weight, places)[along]
    for region, map_ in regions:
        of = values[:, :, names.index(region.condition)]
        painted = _within(region, places)[along] * map_
        if region.rule == "only":
            of[:, SCALE] *= np.where(_within(region, places)[along], map_, 1.0)
        elif region.rule == "weight":
            of[:, SCALE] *= 1 + (region.value - 1) * painted
        elif region.rule == "at-least":
            of[:, LEAST] = np.maximum(of[:, LEAST], region.value * painted)
        else:
            of[:, MOST] = np.minimum(of[:, MOST], 1 - (1 - region.value) * painted)
    values[:, SCALE] *= np.abs(values[:, SCALE]) >= NOTHING
    decides = values[:, SCALE] > 0  # who weighs nothing at a place, or leads away from it, has no share there
    values[:, LEAST:] *= decides[:, None]
    _check(names, values)
    present = (values[:, SCALE] != 0).reshape(*values[:, SCALE].shape[:2], -1).any(2)
    return Controls(values.astype(np.float32), present)


def _within(what: Weight | Region, places: np.ndarray) -> np.ndarray:
    return (what.start <= places) & (places <= what.end)


def _check(names: Sequence[str], values: np.ndarray) -> None:
    """Raises BadRequest unless at every place somebody decides, and shares of sum 1 lie within all bounds."""
    scale, least, most = values[:, SCALE], values[:, LEAST], values[:, MOST]
    _refuse(
        "influence",
        np.all(scale <= 0, axis=1),
        f"no weight above 0 for {' or '.join(names)}",
        "give one there, or another condition",
    )
    _refuse("region", least.sum(1) > 1 + ROUNDING, "what is asked for at least is more than all", "lower :at-least")
    _refuse("region", most.sum(1) < 1 - ROUNDING, "what is allowed at most is less than all", "raise :at-most")
    _refuse("region", np.any(least > most + ROUNDING, axis=1), "at least is more than at most", "lower :at-least")


def _refuse(what: str, where: np.ndarray, seen: str, remedy: str) -> None:
    """`where` [S, *latent] it is so."""
    steps = where.reshape(len(where), -1).mean(1)
    if steps.any():
        first = int(np.flatnonzero(steps)[0])
        place = "" if steps[first] == 1 else f" at {steps[first]:.0%} of the places"
        raise BadRequest(what, f"in step {first + 1} of {len(where)}{place}, {seen}", remedy)
