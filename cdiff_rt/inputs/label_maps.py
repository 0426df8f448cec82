"""Label maps that come in, and how the pixels of a picture are read as labels."""

import numpy as np
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.images import ORIENTATION, Picture, check_size, name_of, opened
from cdiff_rt.inputs.palette import PALETTE

MASK_HELP = "a mask is a PNG of labels 0-18 (palette or grey) or of the 19 CelebAMask-HQ colours, see docs/masks.md"


def read_labels(picture: Picture, classes: int) -> tuple[np.ndarray, str]:
    """A label map -> [H, W] uint8 in 0..classes-1, and how it was read.

    Arrays hold labels, and so do the pixels of palette and grey PNGs; RGB must use the palette's colours exactly. Raises
    BadInput.
    """
    if isinstance(picture, np.ndarray):
        return check_labels(picture, classes), ""
    name = name_of(picture)
    with opened(picture, "mask", MASK_HELP) as image:
        _check_header(name, image)
        image.load()
        labels, how = _labels_of(name, image)
    return check_labels(labels, classes, name), how


def check_labels(labels: np.ndarray, classes: int, name: str = "array") -> np.ndarray:
    """Raises BadInput unless `labels` is a map [H, W] of whole numbers below `classes`."""
    if labels.ndim != 2 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        raise BadInput(f"mask {name}", f"{labels.dtype} of shape {labels.shape}", "a mask is [H, W] of whole numbers")
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        y, x = np.argwhere(bad)[0]
        seen = f"label {labels[y, x]} at x {x}, y {y} ({bad.sum()} such pixels); the model knows 0-{classes - 1}"
        raise BadInput(f"mask {name}", seen, "draw it again with the labels or colours of docs/masks.md")
    return labels.astype(np.uint8)


def _check_header(file: str, image: Image.Image) -> None:
    name = f"mask {file}"
    if image.format not in ("PNG", None):
        reason = ", which changes labels at their borders" if image.format in ("JPEG", "WEBP") else ""
        raise BadInput(name, f"format {image.format}{reason}", MASK_HELP)
    check_size(file, "mask", image)
    tiles = getattr(image, "tile", None)
    stored = tiles[0][3] if tiles else image.mode  # "L;4" for four bits, which Pillow would scale to 0-255
    if image.mode in ("L", "LA", "RGB", "RGBA") and stored != image.mode:
        raise BadInput(name, f"pixels stored as {stored}", "save it with 8 bits per channel")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadInput(name, f"an animation of {frames} frames", "save one frame of it")
    if image.getexif().get(ORIENTATION, 1) != 1:
        raise BadInput(name, "its EXIF data asks for a rotation", "rotate the pixels and save it without EXIF")


def _labels_of(name: str, image: Image.Image) -> tuple[np.ndarray, str]:
    if image.mode in ("RGBA", "LA"):
        if np.asarray(image)[..., -1].min() < 255:
            raise BadInput(f"mask {name}", "it is partly transparent", "save it without an alpha channel")
        image = image.convert(image.mode[:-1])
    if image.mode == "P":
        return _labels_of_palette(name, image)
    if image.mode == "L":
        return np.asarray(image), "grey PNG, pixel values are labels"
    if image.mode == "RGB":
        return _labels_of_colours(name, np.asarray(image)), "RGB PNG in the CelebAMask-HQ colours"
    raise BadInput(f"mask {name}", f"pixels of mode {image.mode}", MASK_HELP)


def _labels_of_palette(name: str, image: Image.Image) -> tuple[np.ndarray, str]:
    """Pixel values are labels, unless an editor has sorted the 19 colours anew: then the colours are."""
    values = np.asarray(image)
    entries = (image.getpalette("RGB") or [])[: 3 * 256]
    colours = dict(enumerate(zip(entries[0::3], entries[1::3], entries[2::3], strict=True)))
    used = {int(value): colours.get(int(value)) for value in np.unique(values)}
    distinct = len(set(used.values())) == len(used) > 1
    if distinct and set(used.values()) <= set(PALETTE) and any(PALETTE[v : v + 1] != (c,) for v, c in used.items()):
        return _labels_of_colours(name, np.asarray(image.convert("RGB"))), "palette PNG in the CelebAMask-HQ colours"
    return values, "palette PNG, pixel values are labels"


def _labels_of_colours(name: str, pixels: np.ndarray) -> np.ndarray:
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)  # [H, W]
    table = {(r << 16) | (g << 8) | b: label for label, (r, g, b) in enumerate(PALETTE)}
    colours, inverse = np.unique(packed, return_inverse=True)
    strange = [int(colour) for colour in colours if int(colour) not in table]
    if strange:
        named = ", ".join(f"#{colour:06x}" for colour in strange[:5])
        raise BadInput(f"mask {name}", f"{len(strange)} colours off the palette ({named})", MASK_HELP)
    return np.array([table[int(colour)] for colour in colours], np.uint8)[inverse].reshape(packed.shape)
