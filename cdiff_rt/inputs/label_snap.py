"""Masks with soft edges: pixels whose colour is none of the table's take the label of the nearest that has one."""

import numpy as np
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.label_causes import SOFT, WHITE, Seen, likely
from cdiff_rt.inputs.label_colours import (
    HELP,
    LOSSY,
    NEAR,
    TABLE,
    bands,
    distinct,
    is_grey,
    nearest_of,
    packed,
    unpacked,
)
from cdiff_rt.notes import log

OPEN, QUEUED, EDGE = 253, 254, 255  # of a pixel without a label yet, one that is about to get it, and one outside
MANY = 2**19  # colours, more than soft edges and JPEG make
CLEAN_SHARE = 0.5  # of the pixels, at least
WIDEST = 16  # a soft edge is at most this part of the picture's size
CLEAR = 128  # of 255: what is less opaque is background
FLAT_OTHER = 2  # levels by which neighbours may differ where another colour must be meant
FLAT, OF_WIDTH = (12, 40), 6000  # and where one of the table is: the larger a picture, the wider its soft edges
OTHER_SHARE = 0.01  # of the pixels, at most


def snapped(name: str, image: Image.Image) -> tuple[np.ndarray, str] | None:
    """The labels [H, W] of a picture in the table's colours, more or less, and how they were read.

    None if it needs no help. Transparent and white are background. Raises BadInput if too little is near to the table.
    """
    pixels, hidden = _layers(image)
    found = distinct(pixels)
    if len(found) > MANY:
        raise BadInput(f"mask {name}", f"it has {len(found)} colours, as a photo", HELP)
    colours, lossless = unpacked(found), image.format not in LOSSY
    if not hidden and (is_grey(colours) and lossless or not nearest_of(colours)[1].any()):
        return None
    if is_grey(colours):
        raise BadInput(f"mask {name}", f"{image.format} of greys, which are no labels any more", HELP)
    near, exact = _near(pixels, found, colours)
    _check_flat(name, pixels, near)
    flat = int(np.clip(OF_WIDTH // max(near.shape), *FLAT))
    labels = near if exact else np.where(_of_flat(near, pixels, flat) & (near != OPEN), near, np.uint8(OPEN))
    unclear = np.count_nonzero(labels == OPEN)
    if unclear > (1 - CLEAN_SHARE) * labels.size or not grow(labels, max(labels.shape) // WIDEST + 1):
        seen = f"{unclear} of its {labels.size} pixels are far from the colours of the table, more than soft edges are"
        raise BadInput(f"mask {name}", seen, HELP)
    moved = sum(np.count_nonzero((pixels[rows] != TABLE[labels[rows]]).any(-1)) for rows in bands(pixels)) + hidden
    return labels, f"{image.format or 'picture'} in soft colours, {moved} of {labels.size} pixels moved to the table's"


def _layers(image: Image.Image) -> tuple[np.ndarray, int]:
    """Its colours [H, W, 3], black where it is transparent, and how many pixels are."""
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")), 0
    both = np.asarray(image.convert("RGBA"))
    clear = both[..., 3] < CLEAR
    return np.where(clear[..., None], np.uint8(0), both[..., :3]), int(np.count_nonzero(both[..., 3] < 255))


def _near(pixels: np.ndarray, found: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, bool]:
    """The label whose colour is near to each pixel's, or OPEN, [H, W]; and whether all are those colours."""
    place, off = nearest_of(colours, np.concatenate([TABLE, WHITE]))
    place[place == len(TABLE)] = 0  # white
    table = np.full(2**24, OPEN, np.uint8)
    table[found[off <= SOFT]] = place[off <= SOFT]
    return np.concatenate([table[packed(pixels[rows])] for rows in bands(pixels)]), off.max() <= NEAR


def _check_flat(name: str, pixels: np.ndarray, near: np.ndarray) -> None:
    """Warns of areas of other colours, which are no edges. Raises BadInput for more than a few pixels."""
    flat = _flat(near, pixels, FLAT_OTHER)
    other = _inside(flat, near.shape) & (near == OPEN)
    if not (refused := np.count_nonzero(other) > OTHER_SHARE * other.size):
        wide = flat[:-1, :-1] & flat[1:, :-1] & flat[:-1, 1:] & flat[1:, 1:]  # squares of 3 x 3
        other = _inside(_inside(wide, flat.shape), near.shape) & (near == OPEN)
    if not other.any():
        return
    colours, counts = np.unique(packed(pixels[other]), return_counts=True)
    most = ", ".join(f"#{colour:06x}" for colour in colours[np.argsort(-counts)[:5]])
    seen = f"{counts.sum()} of its {other.size} pixels are areas of other colours ({most})"
    if refused:
        cause, remedy = likely(Seen(unpacked(colours), counts))
        raise BadInput(f"mask {name}", f"{seen}; {cause}", remedy)
    log.warning("mask %s: %s, and get the labels around them; if they are parts, draw them in the table's", name, seen)


def _of_flat(near: np.ndarray, pixels: np.ndarray, by: int) -> np.ndarray:
    """Which pixels lie in a square of 2 x 2 that is all near to one label and whose channels differ by no more than that.

    From one colour to another a soft edge may pass through a third, but it is flat nowhere.
    """
    return _inside(_flat(near, pixels, by), near.shape)


def _flat(near: np.ndarray, pixels: np.ndarray, by: int) -> np.ndarray:
    """Which squares of 2 x 2 are so, [H - 1, W - 1]."""
    flat = _same(near, 0)
    for channel in range(3):
        flat &= _same(pixels[..., channel], by)
    return flat


def _inside(squares: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What lies in any of these squares of 2 x 2."""
    inside = np.zeros(shape, bool)
    for y in (0, 1):
        for x in (0, 1):
            inside[y : shape[0] - 1 + y, x : shape[1] - 1 + x] |= squares
    return inside


def _same(values: np.ndarray, by: int) -> np.ndarray:
    """Whether the four of each square of [H, W] differ by no more than that, [H - 1, W - 1]."""
    four = (values[:-1, :-1], values[1:, :-1], values[:-1, 1:], values[1:, 1:])
    highest = np.maximum(np.maximum(four[0], four[1]), np.maximum(four[2], four[3]))
    return highest - np.minimum(np.minimum(four[0], four[1]), np.minimum(four[2], four[3])) <= by


def grow(labels: np.ndarray, rings: int) -> bool:
    """Gives every OPEN pixel of [H, W] the label of the nearest that has one, ring by ring; whether all got one."""
    padded = np.pad(labels, 1, constant_values=EDGE)
    flat, width = padded.ravel(), padded.shape[1]
    steps = (-width, width, -1, 1, -width - 1, -width + 1, width - 1, width + 1)
    ring = np.flatnonzero(flat == OPEN)
    ring = ring[np.any([flat[ring + step] < OPEN for step in steps], 0)]
    while ring.size and (rings := rings - 1) >= 0:
        found = np.full(ring.size, OPEN, np.uint8)
        for step in steps:
            found = np.where((found == OPEN) & (flat[ring + step] < OPEN), flat[ring + step], found)
        flat[ring] = found
        following = []
        for step in steps:
            following.append((ring + step)[flat[ring + step] == OPEN])
            flat[following[-1]] = QUEUED
        ring = np.concatenate(following)
        flat[ring] = OPEN
        ring = np.unique(ring)
    labels[:] = padded[1:-1, 1:-1]
    return not (labels == OPEN).any()
