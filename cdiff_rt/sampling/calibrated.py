"""Weights that follow from how wrong experts are together: of all that sum to 1, those of least squared error.

The errors of M experts have the mean products E [M, M], so a mix has the squared error w^T E w; at weights of sum 1 that is
least where E w is the same for all. It is found at levels of noise and at coarse places, each for itself.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from cdiff_rt.errors import BadArtefact, BadRequest, without_file
from cdiff_rt.sampling.schedule import Schedule, half_log_snr
from cdiff_rt.schema import from_json, parse

MOST_CELLS, LARGEST_FILE = 64, 2**26  # places in all; bytes
AGREE, LEAST = 1e-9, 1e-30  # of the variance of experts that agree: a share of the error, and in all
REMEDY = "make it anew with calibrate"
CLEANEST = 1e-9  # of 1 - alpha_bar, and of alpha_bar
BEYOND = 0.5  # of half the log-SNR, by which a schedule may end noisier than the noisiest level


@dataclass(frozen=True)
class Calibration:
    """What `cdiff_rt.calibrate` found, as `influence` of a run: `generate(..., influence=calibration)`, or its file.

    The weights are those of the experts that take part, whichever of `names` these are; some may be below 0.
    """

    names: tuple[str, ...]  # of M experts
    latent: tuple[int, ...]  # the axes of the latents, but for the channels
    alpha_bars: tuple[float, ...]  # [K] ascending, the levels of noise
    cells: int  # along each axis, each with weights of its own
    pull: float  # towards equal weights, in the variance of the experts
    errors: tuple[float, ...]  # [K, cells ** axes, M, M]
    pairs: int
    table: dict[str, float]  # the squared error on pairs held out: of each expert alone, of their mean, and of this
    file: str = field(default="", compare=False)  # where it was read, as pictures tell
    content: bytes = field(default=b"", compare=False, repr=False)  # of that file

    def __str__(self) -> str:
        return self.file or "calibrated.json"

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Of a file that `calibrate` wrote. Raises BadRequest or BadArtefact."""
        try:
            if Path(path).stat().st_size > LARGEST_FILE:
                raise ValueError(f"it has more than {LARGEST_FILE} bytes")
            return cls.of(Path(path).read_bytes(), str(path))
        except FileNotFoundError:
            raise BadRequest(f"calibration {path}", *without_file(path)) from None
        except (OSError, ValueError) as error:
            raise BadArtefact(f"calibration {path}", f"{error!s:.200}", REMEDY) from None

    @classmethod
    def of(cls, content: bytes, file: str) -> "Calibration":
        """The content of such a file. Raises BadArtefact."""
        try:
            found = from_json(cls, parse(content.decode()), "calibration")
            found.check()
        except (ValueError, TypeError) as error:  # a UnicodeDecodeError is a ValueError
            raise BadArtefact(f"calibration {file}", f"{error!s:.200}", REMEDY) from None
        return replace(found, file=file, content=content)

    def to_json(self) -> str:
        return json.dumps({name: value for name, value in vars(self).items() if name not in ("file", "content")})

    def check(self) -> None:
        """Raises ValueError for numbers that cannot be those of a calibration."""
        count, levels, bars = len(self.names), len(self.alpha_bars), self.alpha_bars
        if not 0 < count == len(set(self.names)) or not levels or any(a >= b for a, b in pairwise(bars)):
            raise ValueError("its names or levels are none, or not apart")
        if not (bars[0] > 0 and bars[-1] < 1 and self.pull > 0 and min(self.latent, default=1) > 0):
            raise ValueError("its levels, its pull or its places are out of range")
        places = self.cells ** len(self.latent) if 0 < self.cells <= MOST_CELLS else 0
        if not 0 < places <= MOST_CELLS or len(self.errors) != levels * places * count**2:
            raise ValueError(f"it has {len(self.errors)} numbers for {count} experts at {levels} levels")
        with np.errstate(all="ignore"):
            weights = self.weights(self.names)
        if not np.isfinite(weights).all():
            raise ValueError("no finite weights follow from its numbers")

    def check_fits(self, names: Sequence[str], schedule: Schedule, latent: tuple[int, ...]) -> None:
        """Raises BadRequest for other experts, other latents, or a schedule with noise that no level comes near."""
        asked = float(schedule.alpha_bars()[-1])
        self.scales(names, np.array([asked]), latent)
        noisiest, end = half_log_snr(np.clip([self.alpha_bars[0], asked], CLEANEST, 1 - CLEANEST))
        if noisiest - end > BEYOND:
            seen = f"{self} knows noise down to alpha_bar {self.alpha_bars[0]:.3g}, the schedule goes to {asked:.3g}"
            raise BadRequest("influence", seen, "calibrate this pipeline")

    def weights(self, names: Sequence[str]) -> np.ndarray:
        """[K, cells ** axes, len(names)] of sum 1, of those experts alone. Raises BadRequest for one it lacks."""
        if unknown := [name for name in names if name not in self.names]:
            raise BadRequest("influence", f"{self} knows no {unknown[0]}", f"it is of {', '.join(self.names)}")
        count, which = len(self.names), [self.names.index(name) for name in names]
        errors = np.reshape(self.errors, (len(self.alpha_bars), -1, count, count))
        return least_error(errors[:, :, which][..., which], self.pull)

    def scales(self, names: Sequence[str], alpha_bars: np.ndarray, latent: tuple[int, ...]) -> np.ndarray:
        """[S, M, *latent]: the weights at the steps of a run, between levels on a line in log-SNR. Raises BadRequest."""
        if tuple(latent) != self.latent:
            seen = f"{self} is of latents {list(self.latent)}, these are {list(latent)}"
            raise BadRequest("influence", seen, "calibrate this pipeline")
        weights = self.weights(names)
        known, asked = (half_log_snr(np.clip(a, CLEANEST, 1 - CLEANEST)) for a in (self.alpha_bars, alpha_bars))
        at = np.interp(asked, known, np.arange(len(known)))
        below = np.floor(at).astype(int)
        above, share = np.minimum(below + 1, len(known) - 1), (at - below)[:, None, None]
        of_steps = (1 - share) * weights[below] + share * weights[above]  # [S, cells, M]
        return np.moveaxis(of_steps[:, cell_of(self.latent, self.cells)], -1, 1)


def cell_of(latent: Sequence[int], cells: int) -> np.ndarray:
    """[*latent]: the number of the cell at each place, of so many along each axis; those of `2 cells` lie within."""
    if not latent:
        return np.zeros((), int)
    axes = np.meshgrid(*(np.arange(size) * cells // size for size in latent), indexing="ij")
    return np.ravel_multi_index(tuple(axes), (cells,) * len(axes))


def finest(latent: Sequence[int]) -> int:
    """The most cells along an axis, a power of 2."""
    if not latent:
        return 1
    most = min(min(latent), int(MOST_CELLS ** (1 / len(latent)) + 1e-9))
    return 2 ** int(math.log2(most))


def least_error(errors: np.ndarray, pull: float) -> np.ndarray:
    """[..., M, M] -> [..., M] of sum 1 and least w^T E w, held towards 1 / M by `pull` times the experts' variance.

    What is wrong with all alike has no part in it: weights differ from 1 / M in directions of sum 0 alone.
    """
    count = errors.shape[-1]
    equal, differ = np.full(count, 1 / count), _differences(count)
    held = pull * spread(errors)[..., None, None] * np.eye(count - 1)
    away = np.linalg.solve(differ.T @ errors @ differ + held, (differ.T @ errors @ equal)[..., None])[..., 0]
    return equal - away @ differ.T


def spread(errors: np.ndarray) -> np.ndarray:
    """[..., M, M] -> [...]: the variance of the experts' predictions; where they agree, what rounding makes of none."""
    count = errors.shape[-1]
    differ = _differences(count)
    found = np.trace(differ.T @ errors @ differ, axis1=-2, axis2=-1) / max(count - 1, 1)
    return np.maximum(found, AGREE * np.trace(errors, axis1=-2, axis2=-1) / count + LEAST)


def _differences(count: int) -> np.ndarray:
    """[M, M - 1]: an orthonormal basis of what sums to 0."""
    return np.linalg.qr(np.eye(count) - 1 / count)[0][:, : count - 1]


def mixed(errors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[..., M, M], [..., M] -> [...]: w^T E w, the squared error of a mix."""
    return np.einsum("...i,...ij,...j->...", weights, errors, weights)
