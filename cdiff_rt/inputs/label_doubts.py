"""What of a label map makes one doubt that it says what its maker meant. It is read all the same."""

from collections.abc import Iterator

import numpy as np

from cdiff_rt.inputs.images import nearest
from cdiff_rt.inputs.palette import CLASSES, NEEDED, ORDERS, PLACES, THIN, USUAL_ORDER

LOOK = 256  # pixels at most, a side, for where things lie
MARGIN = 0.02  # of a side, by which they may be on the wrong one
RAMP_SHARE = 0.5  # of a label's pixels; of real ones, thin as they are, fewer lie between two others


def doubts(labels: np.ndarray, small: np.ndarray, classes: int, order: str = USUAL_ORDER) -> Iterator[str]:
    """Of a square label map [S, S] read in an `order`, and what the model is given of it, [size, size]."""
    names = CLASSES if classes == len(CLASSES) else tuple(f"label {label}" for label in range(classes))
    counts = np.bincount(labels.ravel(), minlength=classes)
    found = np.flatnonzero(counts)
    if len(found) == 1:
        yield f"every pixel has label {found[0]}"
        return
    between = _between(labels, counts)
    if len(between) > 2 or any(names[label] not in THIN for label in between):
        told = "as where the numbers of labels were averaged; resize masks by nearest neighbour"
        yield f"{', '.join(names[label] for label in between)} lie only between others, {told}"
    if lost := sorted({*found.tolist()} - {*small.ravel().tolist()}):
        told = ", ".join(names[label] for label in lost)
        yield f"too small to be seen at {len(small)}x{len(small)}, so left out: {told}; draw them larger"
    if classes == len(CLASSES):
        yield from _of_faces(nearest(labels, min(LOOK, len(labels))), order)


def _between(labels: np.ndarray, counts: np.ndarray) -> list[int]:
    """Labels most of whose pixels are neither the highest nor the lowest of the three across or down."""
    ramp = np.zeros(labels.shape, bool)
    for view, mark in ((labels, ramp), (labels.T, ramp.T)):
        before, here, after = view[:-2], view[1:-1], view[2:]
        mark[1:-1] |= ((before < here) & (here < after)) | ((before > here) & (here > after))
    inside = np.bincount(labels[ramp], minlength=len(counts))
    return np.flatnonzero((counts > 0) & (inside > RAMP_SHARE * counts)).tolist()


def _of_faces(labels: np.ndarray, order: str) -> Iterator[str]:
    if CLASSES.index(NEEDED) not in labels:
        yield f"it has no {NEEDED}; are its numbers or colours those of docs/masks.md?"
    elif wrong := misplaced(labels, CLASSES):
        numbers = np.array([ORDERS[order].index(name) for name in CLASSES])[labels] if order in ORDERS else labels
        others = [name for name, its in ORDERS.items() if name != order and not misplaced(numbers, its)]
        remedy = f"with --labels {others[0]} it can" if others else "is it turned or mirrored, or its order another?"
        yield f"{', '.join(wrong[:3])}: it cannot be an upright face as it is read; {remedy}"


def misplaced(labels: np.ndarray, order: tuple[str, ...]) -> list[str]:
    """Which of `PLACES` a map of numbers in that order does not keep to, in words."""
    centres = {name: np.argwhere(labels == number).mean(0) for number, name in enumerate(order) if number in labels}
    margin, words = MARGIN * len(labels), ("below", "right of")
    return [
        f"{first} lies {words[axis]} {second}"
        for axis, first, second in PLACES
        if first in centres and second in centres and centres[first][axis] > centres[second][axis] + margin
    ]
