"""Label maps that come in: files, and how their pixels are read as labels."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.colours import EIGHT_BITS, mode_in_words
from cdiff_rt.inputs.images import ORIENTATION, Picture, check_size, is_opaque, name_of, opened
from cdiff_rt.inputs.label_causes import SNAP
from cdiff_rt.inputs.label_colours import HELP, LOSSY, colours_of
from cdiff_rt.inputs.label_meaning import numbers_of, redraw, strange_label
from cdiff_rt.inputs.label_orders import labels_by_number
from cdiff_rt.inputs.label_snap import snapped
from cdiff_rt.inputs.palette import USUAL_ORDER
from cdiff_rt.inputs.traces import loaded
from cdiff_rt.notes import log

FORMATS = ("PNG", None)  # None is a picture that was never a file
WITH_SNAP_ALSO = (*LOSSY, "BMP")


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map as it was given, how it is to be read, and once it was read, its labels."""

    picture: Picture
    classes: int
    order: str = USUAL_ORDER
    snap: bool = False
    given: bool = True  # by somebody, who is told what is doubtful; not seen in a photo or made for a benchmark

    @cached_property
    def content(self) -> Picture:
        """The picture, of a file what it holds. Raises BadInput."""
        return loaded(self.picture, "mask")

    @cached_property
    def labels(self) -> np.ndarray:
        """[H, W] uint8. Raises BadInput."""
        return self._read[0]

    @property
    def was_read(self) -> bool:
        return "_read" in vars(self)

    @property
    def how(self) -> str:
        """How its pixels became labels; nothing for an array."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[np.ndarray, str]:
        return read_labels(self.content, self.classes, self.order, self.snap)


def read_labels(picture: Picture, classes: int, order: str = USUAL_ORDER, snap: bool = False) -> tuple[np.ndarray, str]:
    """A label map -> [H, W] uint8 in 0..classes-1, and how it was read.

    An array's numbers, or those that the colours of a picture stand for, mean labels by the `order` (label_orders.py).
    With `snap` a picture's pixels need only be near to the table's colours, or to others that are. Raises BadInput.
    """
    known = labels_by_number(order, classes)
    if isinstance(picture, np.ndarray):
        return _translated(check_labels(picture, known), known), ""
    name = name_of(picture)
    with opened(picture, "mask", HELP) as image:
        _check_header(name, image, snap)
        image.load()
        numbers, how = _numbers_of(name, image, known, snap)
    how += "" if order == USUAL_ORDER else f", labels {order if len(order) < 40 else 'of a file'}"
    return _translated(check_labels(numbers, known, name), known), how


def check_labels(labels: np.ndarray, known: Collection[int], name: str = "array") -> np.ndarray:
    """Raises BadInput unless `labels` is a map [H, W] of whole numbers that are known."""
    if labels.ndim != 2 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        raise BadInput(f"mask {name}", f"{labels.dtype} of shape {labels.shape}", "a mask is [H, W] of whole numbers")
    strange = [number for number in np.unique(labels).tolist() if number not in known]
    if strange:
        seen, remedy = strange_label(labels, np.isin(labels, strange), known), redraw(known)
        raise BadInput(f"mask {name}", seen, remedy)
    return labels


def _translated(numbers: np.ndarray, known: dict[int, int]) -> np.ndarray:
    table = np.zeros(max(known) + 1, np.uint8)
    table[list(known)] = list(known.values())
    return table[numbers]


def _check_header(file: str, image: Image.Image, snap: bool) -> None:
    name = f"mask {file}"
    if image.format not in FORMATS and not (snap and image.format in WITH_SNAP_ALSO):
        reason = ", which usually changes labels at their borders" if image.format in LOSSY else ""
        remedy = f"save it as PNG, or {SNAP}" if image.format in WITH_SNAP_ALSO else HELP
        raise BadInput(name, f"format {image.format}{reason}", remedy)
    check_size(file, "mask", image)
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None
    stored = tiles[0][3] if tiles else image.mode  # "L;4" for four bits, which Pillow would scale to 0-255
    if image.mode in ("L", "LA", "RGB", "RGBA") and stored != image.mode:
        raise BadInput(name, f"it is {mode_in_words(stored)}", EIGHT_BITS)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadInput(name, f"an animation of {frames} frames", "save one frame of it")
    if image.getexif().get(ORIENTATION, 1) != 1:
        raise BadInput(name, "its EXIF data asks for a rotation", "rotate the pixels and save it without EXIF")


def _numbers_of(name: str, image: Image.Image, known: Collection[int], snap: bool) -> tuple[np.ndarray, str]:
    """Each pixel's number, [H, W], and how it was found out."""
    if snap and (moved := snapped(name, image)):
        return moved
    hidden = None if is_opaque(image) else np.asarray(image.convert("RGBA").getchannel("A")) < 255
    if hidden is not None and image.mode in ("RGBA", "LA"):
        remedy = f"save it without an alpha channel, or {SNAP}, to which transparent is background"
        seen = f"{np.count_nonzero(hidden)} of its {hidden.size} pixels are partly transparent"
        raise BadInput(f"mask {name}", seen, remedy)
    picture = colours_of(name, image.convert(image.mode[:-1]) if image.mode in ("RGBA", "LA") else image)
    numbers, how = numbers_of(name, picture, known)
    table = np.zeros(len(picture.rgb), np.uint8)
    table[picture.used] = numbers
    if hidden is not None and table[picture.index[hidden]].any():  # by a palette or a colour key: a way to show it
        log.warning("mask %s: it is shown partly transparent, but the labels there count too", name)
    return table[picture.index], how
