"""A picture as an index into its colours, and which colours of the table these are near to."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.colours import mode_in_words
from cdiff_rt.inputs.palette import PALETTE

NEAR = 8  # levels of 255 that a colour may be off the table's, which are at least 51 apart
MANY = 2**16  # colours
ABSENT = -256  # the channels of a palette's entry that is not there
TABLE = np.array(PALETTE, np.int16)
HELP = "a mask is a PNG of labels 0-18 (palette or grey) or of the 19 CelebAMask-HQ colours, see docs/masks.md"
LOSSY = ("JPEG", "WEBP")
FORMS = {"P": "palette", "L": "grey", "1": "mode 1", "RGB": "RGB"}


@dataclass(frozen=True, eq=False)
class Colours:
    """A picture `index` [H, W] into `rgb` [n, 3] int16, each of which has `counts` [n] pixels."""

    form: str  # as it is called in messages
    index: np.ndarray
    rgb: np.ndarray
    counts: np.ndarray

    @property
    def numbered(self) -> bool:
        """Whether the file itself numbers its colours."""
        return self.form.startswith(FORMS["P"])

    @property
    def used(self) -> np.ndarray:
        return np.flatnonzero(self.counts)


def colours_of(name: str, image: Image.Image) -> Colours:
    """Raises BadInput for pixels of another kind."""
    if image.mode.startswith("I"):
        image = _narrowed(name, image)
    elif image.mode not in FORMS:
        raise BadInput(f"mask {name}", f"pixels of {mode_in_words(image.mode)}", HELP)
    form = f"{FORMS[image.mode]} {image.format or 'PNG'}"
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    if image.mode == "RGB":
        return _numbered(form, pixels)
    rgb = np.repeat(np.arange(256, dtype=np.int16)[:, None], 3, 1)
    if image.mode == "P":
        entries = np.array(image.getpalette("RGB") or [], np.int16).reshape(-1, 3)
        rgb = np.concatenate([entries, np.full((256 - len(entries), 3), ABSENT, np.int16)])
    return Colours(form, pixels, rgb, _counts(pixels, 256))


def _narrowed(name: str, image: Image.Image) -> Image.Image:
    """Grey of 16 bits as one of 8, which holds every label."""
    pixels = np.asarray(image)
    if not 0 <= pixels.min() <= pixels.max() < 256:
        seen = f"{mode_in_words(image.mode)} with values from {pixels.min()} to {pixels.max()}, which are no labels"
        raise BadInput(
            f"mask {name}", seen, "save it as 8-bit grey or with a palette, so that each value is a label 0-18"
        )
    return Image.fromarray(pixels.astype(np.uint8))


def bands(pixels: np.ndarray) -> Iterator[slice]:
    """Rows, about a million pixels at a time: what is made of them for a while stays small."""
    step = max(1, 2**20 // pixels.shape[1])
    return (slice(top, top + step) for top in range(0, len(pixels), step))


def packed(pixels: np.ndarray) -> np.ndarray:
    """[..., 3] uint8 -> [...] int32, one number for each colour."""
    return pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def distinct(pixels: np.ndarray) -> np.ndarray:
    """The colours of a picture [H, W, 3], packed and in order."""
    seen = np.zeros(2**24, bool)
    for rows in bands(pixels):
        seen[packed(pixels[rows])] = True
    return np.flatnonzero(seen)


def unpacked(colours: np.ndarray) -> np.ndarray:
    return np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1).astype(np.int16)


def nearest_of(rgb: np.ndarray, table: np.ndarray = TABLE) -> tuple[np.ndarray, np.ndarray]:
    """The place in the table that is nearest to each colour [n, 3] int16, and how many levels off it is."""
    place, off = np.zeros(len(rgb), np.uint8), np.full(len(rgb), 1000, np.int16)
    for i, colour in enumerate(table):
        its = np.abs(rgb - colour).max(-1)
        place[its < off], off = i, np.minimum(its, off)
    return place, off


def _numbered(form: str, pixels: np.ndarray) -> Colours:
    """Of pixels [H, W, 3]; of too many colours some, and nothing of where they are."""
    found = distinct(pixels)
    if len(found) > MANY:
        some = unpacked(found[:: len(found) // MANY + 1])
        return Colours(form, np.zeros((0, 0), np.uint16), some, np.ones(len(some), int))
    place = np.zeros(2**24, np.uint16)
    place[found] = np.arange(len(found))
    index = np.concatenate([place[packed(pixels[rows])] for rows in bands(pixels)])
    return Colours(form, index, unpacked(found), _counts(index, len(found)))


def _counts(index: np.ndarray, length: int) -> np.ndarray:
    return np.sum([np.bincount(index[rows].ravel(), minlength=length) for rows in bands(index)], 0)


def is_grey(rgb: np.ndarray) -> bool:
    return bool((rgb == rgb[:, :1]).all())


def is_black_and_white(rgb: np.ndarray) -> bool:
    return is_grey(rgb) and set(rgb[:, 0].tolist()) == {0, 255}
