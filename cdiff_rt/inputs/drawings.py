"""Drawings that come in: dark lines on white paper, as files or arrays -> a grey square of the size a model reads."""

import numpy as np
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.images import Picture, centre_square, name_of, read_square
from cdiff_rt.notes import log

LEAST_INK, MOST_INK = 0.1, 0.5  # of a line, from white 0 to black 1; of a whole drawing, on average
DARKEST = 90  # the percentile of a drawing's inked pixels that says how dark its lines are
HELP = "give [H, W] or [H, W, 3] of uint8, or of real numbers from 0 (black) to 1 (white)"


def read_drawing(picture: Picture, size: int, what: str) -> np.ndarray:
    """[size, size] float32 from 0, black, to 1, white. Lines stay as dark as they were. Raises BadInput.

    Warns of one without lines, and of one that is light on dark.
    """
    name = f"{what} {name_of(picture)}"
    if isinstance(picture, np.ndarray):
        grey = _grey_of(picture, name)
    else:
        grey = np.asarray(read_square(picture, what, size).convert("L"), np.float32) / 255
    ink = _resized(1 - grey, size)
    if ink.max() - ink.min() < LEAST_INK:
        log.warning("%s: there is no line in it; draw dark lines on white paper", name)
    elif ink.mean() > MOST_INK:
        log.warning("%s: most of it is dark; it is read as dark lines on white paper: invert it if it isn't", name)
    return (1 - ink).astype(np.float32)


def _grey_of(array: np.ndarray, name: str) -> np.ndarray:
    """The centre square of an array [H, W] or of so many colours, which on alpha lie on white."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)) or not array.size:
        raise BadInput(name, f"{array.dtype} of shape {array.shape}", HELP)
    square = centre_square(array if array.ndim == 3 else array[..., None])
    if array.dtype != np.uint8 and array.dtype.kind not in "bf":
        raise BadInput(name, f"elements of type {array.dtype}", HELP)
    values = square.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise BadInput(name, "its numbers are not all between 0 and 1", HELP)
    if array.shape[0] != array.shape[1]:
        log.warning("%s: %dx%d is not square, its centre is used", name, array.shape[1], array.shape[0])
    return _on_white(values)


def _on_white(values: np.ndarray) -> np.ndarray:
    """[S, S, 1 to 4] -> [S, S]; grey as Pillow makes it."""
    channels = values.shape[2]
    grey = values[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) if channels > 2 else values[..., 0]
    return 1 - values[..., -1] * (1 - grey) if channels in (2, 4) else grey


def _resized(ink: np.ndarray, size: int) -> np.ndarray:
    """[S, S] -> [size, size]. Thin lines would become pale in a smaller square, so that is made up for."""
    if len(ink) == size:
        return ink
    small = np.asarray(Image.fromarray(ink).resize((size, size), Image.Resampling.BILINEAR))
    before, after = (_darkness(values) for values in (ink, small))
    return np.clip(small * max(1.0, before / after), 0, 1) if after else small


def _darkness(ink: np.ndarray) -> float:
    """Of its lines."""
    inked = ink[ink > LEAST_INK * ink.max()]
    return float(np.percentile(inked, DARKEST)) if len(inked) else 0.0
