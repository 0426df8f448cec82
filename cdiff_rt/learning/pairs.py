"""Pairs of clean data and conditions, and what a pipeline's experts predict of them, noised.

The experts are asked by the loop of every run, of which all is known beforehand: so this holds on every backend.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdiff_rt.errors import BadRequest, check_type, named_as
from cdiff_rt.inputs.modalities import KINDS, asked, chosen_of
from cdiff_rt.manifest import Modality
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.run import Run, adjustment_of
from cdiff_rt.sampling.loop import KnownRegion, Noise, StepState
from cdiff_rt.sampling.solvers import SolverTable
from cdiff_rt.settings import Settings

Pair = tuple[Any, Mapping[str, Any]]  # x_0 [C, *latent], or a picture if the model encodes such; conditions by name
Given = Iterable[Pair] | tuple[np.ndarray, Mapping[str, Sequence[Any] | np.ndarray]]  # or of all, one behind the other
MOST_PAIRS = 10**6


@dataclass(frozen=True, eq=False)
class Pairs:
    """N of them, as the experts take them."""

    modalities: list[Modality]  # [M]
    x0: np.ndarray  # [N, C, *latent]
    inputs: list[list[np.ndarray]]  # [N][M], what their encoders take

    def first(self, count: int) -> "Pairs":
        return Pairs(self.modalities, self.x0[:count], self.inputs[:count])

    @property
    def names(self) -> list[str]:
        return [modality.name for modality in self.modalities]


@dataclass(frozen=True, eq=False)
class Answer:
    """At one level of noise."""

    step: int
    x: np.ndarray  # [B, C, *latent]
    outs: np.ndarray  # [M, B, C, *latent], each expert's prediction
    wanted: np.ndarray  # [B, C, *latent], what they predict, eps or v, as it is


def read_pairs(pipeline: Pipeline, pairs: Given, least: int) -> Pairs:
    """Raises BadRequest or BadInput for fewer than `least`, or for one that does not fit, by its number."""
    x0, inputs, modalities = [], [], list[Modality]()
    for number, pair in enumerate(_one_by_one(pairs)):
        if number == MOST_PAIRS:
            raise BadRequest("pairs", f"more than {MOST_PAIRS} of them", "give fewer, some hundred are good")
        with named_as(f"pair {number}"):
            if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], Mapping):
                raise BadRequest("form", f"a {type(pair).__name__}", "give (x_0, {name: condition})")
            x0.append(_clean(pipeline, pair[0]))
            given = asked({name: value for name, value in pair[1].items() if value is not None}, pipeline.manifest)
            chosen = chosen_of(pipeline.manifest, given)
            if modalities and chosen != modalities:
                seen = (
                    f"it has {', '.join(m.name for m in chosen)}, the first has {', '.join(m.name for m in modalities)}"
                )
                raise BadRequest("conditions", seen, "give all pairs the same ones")
            modalities = chosen
            inputs.append([KINDS[m.kind].read(given.get(m.name), m, pipeline.bundle) for m in chosen])
    if len(x0) < least:
        raise BadRequest("pairs", f"{len(x0)} of them", f"give {least} or more, some hundred are good")
    return Pairs(modalities, np.stack(x0), inputs)


def _one_by_one(pairs: Given) -> Iterable[Any]:
    """Raises BadRequest for what is none."""
    if not (isinstance(pairs, tuple) and len(pairs) == 2 and isinstance(pairs[1], Mapping)):
        check_type("pairs", pairs, Iterable, "give a list of (x_0, {name: condition})")
        return pairs
    x0, conditions = pairs
    for name, column in {"x_0": x0, **conditions}.items():
        check_type(f"pairs, {name}", column, Sequence | np.ndarray, "give an array or a list")
        if len(column) != len(x0):
            raise BadRequest("pairs", f"{len(column)} of {name}, {len(x0)} of x_0", "give as many of each")
    return ((x, {name: column[row] for name, column in conditions.items()}) for row, x in enumerate(x0))


def _clean(pipeline: Pipeline, value: Any) -> np.ndarray:
    """[C, *latent] of latents, or of a picture."""
    shape, pixels = pipeline.manifest.latent_shape, "vae.encode" in pipeline.manifest.networks
    if pixels and not (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
        return pipeline.encode(pipeline.read_photo(value))[0]
    try:
        found = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise BadRequest("x_0", f"a {type(value).__name__}", f"give numbers of shape {shape}") from None
    if found.shape != shape or not np.isfinite(found).all():
        seen = "not all finite" if found.shape == shape else f"of shape {found.shape}"
        raise BadRequest("x_0", f"numbers {seen}", f"give finite numbers of shape {shape}")
    return found


def levels(pipeline: Pipeline, timesteps: np.ndarray) -> SolverTable:
    """These timesteps, from noise to image, of which none moves x."""
    alpha_bars = pipeline.manifest.schedule.alpha_bars()[timesteps]
    return SolverTable(timesteps, alpha_bars, np.zeros((len(timesteps), 8)))


def contexts_of(pipeline: Pipeline, pairs: Pairs, rows: np.ndarray) -> list[np.ndarray]:
    """[M][B, tokens, width]: what the experts are told of the conditions of the pairs `rows`; numbers are told as they are."""
    inputs = [np.concatenate([pairs.inputs[row][m] for row in rows]) for m in range(len(pairs.modalities))]
    with pipeline._turns.take():
        call = pipeline._runner.call
        return [call(f"condition.{n}", inputs=v)["context"] for n, v in zip(pairs.names, inputs, strict=True)]


def ask(
    pipeline: Pipeline,
    pairs: Pairs,
    rows: np.ndarray,
    table: SolverTable,
    noise: Noise,
    see: Callable[[Answer], None],
    contexts: list[np.ndarray] | None = None,
) -> None:
    """Shows what the experts predict of the pairs `rows`, at each level of the table, with its own noise [B, C, *latent].

    Their `contexts` are found if none are given.
    """
    known = KnownRegion(pairs.x0[rows], np.ones(pairs.x0.shape[2:], np.float32), noise)
    signed = 1 if pipeline.manifest.schedule.prediction == "v" else 0

    def shown(state: StepState) -> None:
        i = state.step
        if not np.isfinite(state.predictions).all():
            raise BadRequest("experts", "their predictions are not finite", "correct them, or the pairs")
        signal, spread = np.sqrt(table.alpha_bars[i]), np.sqrt(1 - table.alpha_bars[i])
        drawn = noise(i)
        wanted = np.float32(signal) * drawn - np.float32(spread) * known.x0 if signed else drawn
        see(Answer(i, known.noisy(i, table.alpha_bars[i]), state.predictions, wanted))

    # Weights of 1 change nothing, and tell whoever decides without weights that some are looked for.
    plain = Settings(sharpness=0.0, influence=dict.fromkeys(pairs.names, 1.0))  # type: ignore[arg-type]
    with pipeline._turns.take(), named_as("pipeline,"):
        adjust = adjustment_of(pipeline.manifest, pairs.modalities, table, plain)
        told = contexts or contexts_of(pipeline, pairs, rows)
        start = np.zeros_like(known.x0)
        run = Run(pairs.modalities, pairs.inputs[0], start, noise, table, adjust, known, told)
        pipeline._runner.sample(run, shown)
