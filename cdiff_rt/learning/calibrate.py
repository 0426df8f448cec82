"""`calibrate`: weights of experts in closed form, from what they predict of some hundred pairs. Nothing is trained.

One pass over the pairs, at a few levels of noise, gives the mean products of the experts' errors
(sampling/calibrated.py). How many places have weights of their own, and how far these are held towards equal ones, is
found by cross-validation, with errors relative to how much the experts differ. A fifth of the pairs is held out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cdiff_rt.errors import BadRequest, check_range, whole
from cdiff_rt.learning.pairs import Answer, Given, Pairs, ask, levels, read_pairs
from cdiff_rt.notes import collected, log
from cdiff_rt.outputs.files import all_or_nothing, check_folder, check_free, check_names
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling import noise
from cdiff_rt.sampling.calibrated import Calibration, cell_of, finest, least_error, mixed, spread
from cdiff_rt.sampling.loop import Noise
from cdiff_rt.settings import check_seed

LEAST_PAIRS, AT_ONCE = 20, 16
LEVELS, MOST_LEVELS = 12, 100
FOLDS = 5  # the last is held out
IN_TABLE = 500  # pairs that the table of `train` is of, at most
PULLS = (10.0, 1.0, 0.1, 1e-2, 1e-3)
MEAN, CALIBRATED = "plain mean", "calibrated"  # rows of the table, beside the experts' names


@dataclass(frozen=True, eq=False)
class Sums:
    """Products of the experts' errors, summed over pairs and places; mean over the channels."""

    errors: np.ndarray  # [folds, K, cells, M, M]
    count: np.ndarray  # [folds, cells]: over how many

    def means(self, folds: slice) -> np.ndarray:
        """[K, cells, M, M] of some of the folds."""
        return self.errors[folds].sum(0) / self.count[folds].sum(0)[:, None, None]

    def without(self, fold: int) -> "Sums":
        return Sums(np.delete(self.errors, fold, 0), np.delete(self.count, fold, 0))


def calibrate(
    pipeline: Pipeline,
    pairs: Given,
    out: str | Path | None = None,
    *,
    levels: int = LEVELS,
    channels: Sequence[float] | None = None,
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> Calibration:
    """The weights at which the experts' mix has the least squared error on `pairs`, 20 or more, of (x_0, {name: condition}).

    Of arrays, (x_0 [N, ...], {name: [N, ...]}) will do, and so will whatever gives pairs one by one. x_0 are latents as the pipeline gives them, or pictures if it encodes such. They are noised at so many `levels`. An
    error counts as `channels` say of each, by default alike. The file `out` has the result, for `influence=` of any run;
    `progress` is called after every 16 pairs. Raises BadRequest or BadInput.
    """
    path = _checked_out(out)
    check_range("levels", whole("levels", levels), 2, MOST_LEVELS)
    check_seed(whole("seed", seed))
    with collected():
        read = read_pairs(pipeline, pairs, LEAST_PAIRS)
    if len(read.modalities) < 2:
        raise BadRequest("pairs", f"{read.names[0]} is the only expert that takes part", "give conditions of more")
    visible = read_channels(channels, read.x0.shape[1])
    found = calibrated(pipeline, read, visible, count=levels, seed=seed, progress=progress)
    tell(found.table)
    if path:
        with all_or_nothing(path) as folder:
            (folder / path.name).write_text(found.to_json())
        found = replace(found, file=str(path))
    return found


def calibrated(
    pipeline: Pipeline,
    pairs: Pairs,
    visible: np.ndarray,
    *,
    count: int = LEVELS,
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> Calibration:
    """The same of pairs that were read, and channels [C] of mean 1."""
    timesteps = spread_levels(pipeline, count)
    sums = _sums(pipeline, pairs, timesteps, visible, seed, progress)
    return _fitted(pairs, sums, pipeline.manifest.schedule.alpha_bars()[timesteps])


def read_channels(given: Sequence[float] | None, count: int) -> np.ndarray:
    """[C] of mean 1. Raises BadRequest."""
    try:
        found = np.ones(count) if given is None else np.asarray(given, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (count,) or not np.isfinite(found).all() or found.min() < 0 or not found.max() > 0:
        raise BadRequest(
            "channels", f"{given!r:.80}", f"give {count} numbers of 0 or more, what an error of each counts"
        )
    return found / found.mean()


def tell(table: dict[str, float]) -> None:
    """Says how the rows of a table compare, and warns if the last is none the better."""
    *_, last = table
    log.info("squared error on pairs held out: %s", ", ".join(f"{name} {value:.4g}" for name, value in table.items()))
    if table[last] >= table[MEAN]:
        log.warning("%s: on pairs held out no better than the plain mean; give more pairs, or leave it out", last)


def _checked_out(out: str | Path | None) -> Path | None:
    if out is None:
        return None
    path = Path(out)
    if path.suffix != ".json":
        raise BadRequest("out", f"{str(out)!r:.80}", "give the name of a .json file")
    check_names(path)
    check_free(path)
    check_folder(path.parent)
    return path


def spread_levels(pipeline: Pipeline, count: int) -> np.ndarray:
    """[K] timesteps, from noise to image, the cleanest 1."""
    schedule = pipeline.manifest.schedule
    return schedule.spread(min(count, schedule.train_steps - 1), 0.5)[::-1]


def draw_of(seed: int, rows: np.ndarray, shape: tuple[int, ...]) -> Noise:
    """The noise of pairs at each level: each pair has its own, whichever are asked of at a time."""
    one = lambda row, i: noise.normal(seed, range(row, row + 1), i + 1, shape, noise.CALIBRATING)
    return lambda i: np.concatenate([one(int(row), i) for row in rows])


def _sums(
    pipeline: Pipeline,
    pairs: Pairs,
    timesteps: np.ndarray,
    visible: np.ndarray,
    seed: int,
    progress: Callable[[], object] | None,
) -> Sums:
    shape, latent = pairs.x0.shape[1:], pairs.x0.shape[2:]
    cells = finest(latent)
    into = np.eye(cells ** len(latent))[cell_of(latent, cells).ravel()]  # [P, cells]
    count, table = len(pairs.modalities), levels(pipeline, timesteps)
    errors = np.zeros((FOLDS, len(timesteps), into.shape[1], count, count))
    for first in range(0, len(pairs.x0), AT_ONCE):
        rows = np.arange(first, min(first + AT_ONCE, len(pairs.x0)))
        draw = draw_of(seed, rows, shape)

        def see(answer: Answer, rows: np.ndarray = rows) -> None:
            wrong = (answer.outs - answer.wanted).astype(np.float64).reshape(count, len(rows), shape[0], -1)
            products = np.einsum("ibcp,jbcp,c->bpij", wrong, wrong, visible / shape[0], optimize=True)
            of_cells = np.einsum("bpij,pk->bkij", products, into, optimize=True)
            np.add.at(errors[:, answer.step], rows % FOLDS, of_cells)

        ask(pipeline, pairs, rows, table, draw, see)
        if progress:
            progress()
    in_fold = np.bincount(np.arange(len(pairs.x0)) % FOLDS, minlength=FOLDS)
    return Sums(errors, in_fold[:, None] * into.sum(0))


def _fitted(pairs: Pairs, sums: Sums, alpha_bars: np.ndarray) -> Calibration:
    latent, held = pairs.x0.shape[2:], slice(FOLDS - 1, None)
    mine = Sums(sums.errors[: FOLDS - 1], sums.count[: FOLDS - 1])
    cells, pull = _chosen(mine, latent)
    best = _coarser(sums, latent, cells)
    errors = best.means(slice(FOLDS - 1))
    share = best.count[held].sum(0) / best.count[held].sum()
    error = lambda weights: float((mixed(best.means(held), weights) @ share).mean())
    count = len(pairs.modalities)
    table = {name: error(np.eye(count)[m]) for m, name in enumerate(pairs.names)}
    table |= {MEAN: error(np.full(count, 1 / count)), CALIBRATED: error(least_error(errors, pull))}
    numbers = tuple(errors.ravel().tolist())
    bars = tuple(alpha_bars.tolist())
    return Calibration(tuple(pairs.names), latent, bars, cells, pull, numbers, len(pairs.x0), table)


def _chosen(sums: Sums, latent: tuple[int, ...]) -> tuple[int, float]:
    """How many cells, and which pull: the plainest that are worse than the best by no more than folds differ in that."""
    halvings = range(finest(latent).bit_length())
    candidates = [(2**power, pull) for power in halvings for pull in PULLS]
    scores = np.array([_scores(_coarser(sums, latent, cells), pull) for cells, pull in candidates])  # [N, folds]
    worse = scores - scores[scores.mean(1).argmin()]
    in_doubt = worse.mean(1) <= worse.std(1, ddof=1) / scores.shape[1] ** 0.5
    return candidates[int(in_doubt.argmax())]


def _coarser(sums: Sums, latent: tuple[int, ...], cells: int) -> Sums:
    """The same over so many places along each axis."""
    most = finest(latent)
    if cells == most:
        return sums
    fine = np.indices((most,) * len(latent)).reshape(len(latent), -1)  # [axes, cells]
    into = np.ravel_multi_index(tuple(fine * cells // most), (cells,) * len(latent))
    together = np.eye(cells ** len(latent))[into]  # [finest, cells]
    return Sums(np.einsum("fkcij,cd->fkdij", sums.errors, together), sums.count @ together)


def _scores(sums: Sums, pull: float) -> list[float]:
    """What the weights of the other folds come to on each, relative to how the experts differ at a level of noise."""
    found = []
    for fold in range(len(sums.count)):
        weights = least_error(sums.without(fold).means(slice(None)), pull)
        own, share = sums.means(slice(fold, fold + 1)), sums.count[fold] / sums.count[fold].sum()
        found.append(float(((mixed(own, weights) @ share) / (spread(own) @ share)).mean()))
    return found
