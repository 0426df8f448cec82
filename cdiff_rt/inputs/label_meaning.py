"""What number each colour of a mask stands for. Its colours count, not the order in which a program stored them."""

from collections.abc import Collection

import numpy as np

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.label_causes import Seen, likely
from cdiff_rt.inputs.label_colours import NEAR, Colours, is_black_and_white, is_grey, nearest_of, packed
from cdiff_rt.notes import log

NUMBERS = "pixel values are labels"
FEW = 4  # colours that another palette may share with the table by chance, black among them


def numbers_of(name: str, picture: Colours, known: Collection[int]) -> tuple[np.ndarray, str]:
    """The number of each colour in use, and how it was found out: greys, the table's colours, or the palette's order.

    Raises BadInput for whatever has neither.
    """
    used, rgb = picture.used, picture.rgb[picture.used]
    if not picture.index.size:
        raise _no_mask(name, picture, known)
    table, off = nearest_of(rgb)
    if not _repeats(rgb):
        if is_grey(rgb) and set(rgb[:, 0].tolist()) <= set(known):
            return rgb[:, 0], f"{picture.form}, {NUMBERS}"
        if off.max() <= NEAR:
            return table, f"{picture.form}{_by_colour(name, picture, known, table, off)}"
    if picture.numbered and set(used.tolist()) <= set(known) and _keeps_its_order(used, rgb):
        told = "its palette is none that is known, so its numbers are taken as labels"
        log.warning("mask %s: %s; they are wrong if a program sorted the colours anew", name, told)
        return used, f"{picture.form}, {NUMBERS}"
    raise _no_mask(name, picture, known)


def _repeats(rgb: np.ndarray) -> bool:
    return len(np.unique(rgb, axis=0)) < len(rgb)


def _by_colour(name: str, picture: Colours, known: Collection[int], table: np.ndarray, off: np.ndarray) -> str:
    used = picture.used
    if off.max():
        moved = int(picture.counts[used][off > 0].sum())
        log.warning("mask %s: %d pixels are up to %d levels off the colours of docs/masks.md", name, moved, off.max())
    if picture.numbered and np.array_equal(table, used):
        return f", {NUMBERS}"
    if picture.numbered and len(used) <= FEW and set(used.tolist()) <= set(known):
        log.warning("mask %s: all its %d colours are the table's, so these count and not its numbers", name, len(used))
    return " in the CelebAMask-HQ colours"


def _keeps_its_order(used: np.ndarray, rgb: np.ndarray) -> bool:
    """Whether nothing says that the numbers of an unknown palette are not those that its maker gave."""
    if is_grey(rgb) and not _repeats(rgb):  # labels made visible are proportional to these; others are labels
        slope = rgb[used.argmax(), 0] / max(used.max(), 1)
        return not is_black_and_white(rgb) and bool((np.abs(rgb[:, 0] - slope * used) <= 1).all())
    _, first, times = np.unique(rgb, axis=0, return_index=True, return_counts=True)
    once = first[times == 1]  # a colour of several numbers says nothing of them
    for colours in (rgb[once], rgb[once, ::-1]):
        table, off = nearest_of(colours)
        if 2 * np.count_nonzero((off <= NEAR) & (table != used[once])) > len(used):
            return False
    return True


def _no_mask(name: str, picture: Colours, known: Collection[int]) -> BadInput:
    """The error that says what was seen, and the likely cause."""
    used, rgb = picture.used, picture.rgb[picture.used]
    coloured = 2 * picture.counts[used][nearest_of(rgb)[1] <= NEAR].sum() > picture.counts.sum()
    by_number = picture.numbered and not coloured and not set(used.tolist()) <= set(known)
    levels = used if by_number and not is_black_and_white(rgb) else rgb[:, 0] if is_grey(rgb) else None
    if levels is None:
        strange = packed(rgb[nearest_of(rgb)[1] > 0])
        count = f"{len(strange)}" if picture.index.size else f"more than {len(strange)}"
        seen = f"{count} colours off the palette ({', '.join(f'#{colour:06x}' for colour in strange[:5])})"
    else:
        bad = np.isin(picture.index, used[~np.isin(levels, list(known))])
        seen = strange_label(picture.index, bad, known, dict(zip(used.tolist(), levels.tolist(), strict=True)))
    cause, remedy = likely(Seen(rgb, picture.counts[used], levels))
    return BadInput(f"mask {name}", f"{picture.form}, {seen}; {cause}", remedy)


def strange_label(
    index: np.ndarray, bad: np.ndarray, known: Collection[int], levels: dict[int, int] | None = None
) -> str:
    """A label that is not known, with its first place."""
    y, x = divmod(int(bad.argmax()), bad.shape[1])
    label = int(index[y, x])
    such = f"label {levels[label] if levels else label} at x {x}, y {y} ({np.count_nonzero(bad)} such pixels)"
    return f"{such}; {'the model knows' if is_usual(known) else '--labels names'} {ranges(known)}"


def redraw(known: Collection[int]) -> str:
    """The remedy for numbers that are not known: those of the usual order, or what `--labels` names."""
    again = "draw it again with the labels or colours of docs/masks.md"
    return again if is_usual(known) else f"{again}, or add them to --labels"


def is_usual(known: Collection[int]) -> bool:
    return [*known] == [*range(len(known))]


def ranges(numbers: Collection[int]) -> str:
    """0-3, 7, 9-10."""
    ordered = sorted(numbers)
    starts = [n for n in ordered if n - 1 not in numbers]
    ends = [n for n in ordered if n + 1 not in numbers]
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))
