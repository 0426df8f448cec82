"""What a picture probably is that cannot be read as a mask: one row of `CAUSES` for each guess."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cdiff_rt.inputs.label_colours import HELP, NEAR, TABLE, is_black_and_white, is_grey, nearest_of

SOFT = 25  # levels: what a soft edge or JPEG leaves of a colour's own pixels
SNAP = 'read it with --snap (snap=True; in a row of jobs "snap": true)'
WITH_SNAP = f"draw it with hard edges, or {SNAP}"
WITH_ORDER = "say what its numbers are by --labels FILE (docs/masks.md)"
WHITE = np.array([[255, 255, 255]], np.int16)
LUMA = np.array([299, 587, 114])


@dataclass(frozen=True, eq=False)
class Seen:
    """The colours in use `rgb` [n, 3], their `counts` [n], and the `levels` [n] that would be labels, if any."""

    rgb: np.ndarray
    counts: np.ndarray
    levels: np.ndarray | None = None

    def share(self, of: np.ndarray) -> float:
        return float(self.counts[of].sum() / self.counts.sum())


def black_and_white(seen: Seen) -> bool:
    return is_black_and_white(seen.rgb)


def swapped(seen: Seen) -> bool:
    return not is_grey(seen.rgb) and bool((nearest_of(seen.rgb[:, ::-1])[1] <= NEAR).all())


def turned_grey(seen: Seen) -> bool:
    greys = {0, *(TABLE.astype(int) @ LUMA // 1000).tolist()}
    near = {grey + by for grey in greys for by in (-1, 0, 1)}
    return is_grey(seen.rgb) and len(seen.rgb) > 2 and set(seen.rgb[:, 0].tolist()) <= near


def stretched(seen: Seen) -> bool:
    step = 0 if seen.levels is None else np.gcd.reduce(seen.levels.astype(int))
    return step > 1 and len(seen.rgb) > 2 and seen.levels is not None and seen.levels.max() // step < len(TABLE)


def shifted(seen: Seen) -> bool:
    return seen.levels is not None and seen.levels.min() == 1 and seen.levels.max() == len(TABLE)


def many_classes(seen: Seen) -> bool:
    return seen.levels is not None and seen.levels[seen.levels < 255].max(initial=0) < 200


def white_behind(seen: Seen) -> bool:
    off = nearest_of(seen.rgb)[1]
    return bool((off <= NEAR).any() and (np.abs(seen.rgb[off > NEAR] - WHITE) <= NEAR).all())


def soft(seen: Seen) -> bool:
    off = nearest_of(seen.rgb, np.concatenate([TABLE, WHITE]))[1]
    return seen.share(off <= SOFT) > 0.5 and not is_grey(seen.rgb)


def photo(seen: Seen) -> bool:
    return len(seen.rgb) > 1000


CAUSES: tuple[tuple[Callable[[Seen], bool], str, str], ...] = (
    (black_and_white, "it is black and white, as the mask of one part is", f"put the parts together, or {WITH_ORDER}"),
    (swapped, "they are the table's with red and blue exchanged (BGR)", "exchange the channels, and save it again"),
    (turned_grey, "these are the table's colours turned to grey", "save the colours or the labels, not their greys"),
    (stretched, "these look like labels times a number, to be seen better", f"divide them, or {WITH_ORDER}"),
    (shifted, "its labels seem to begin with 1", f"subtract 1, or {WITH_ORDER}"),
    (many_classes, "it may have the classes of other data, such as ADE20K's 150", WITH_ORDER),
    (white_behind, "white is none of the table's", "paint the background black, or read it with --snap (snap=True)"),
    (soft, "it has soft edges, as a brush, a change of size or JPEG leaves them", WITH_SNAP),
    (photo, "it looks like a photo", HELP),
    (lambda seen: True, "it is drawn in other colours", HELP),
)


def likely(seen: Seen) -> tuple[str, str]:
    """The cause, and what to do about it."""
    return next((cause, remedy) for looks_so, cause, remedy in CAUSES if looks_so(seen))
