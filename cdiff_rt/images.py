"""Pictures in and out: label maps from PNG files, finished images to PNG files with their parameters inside."""

import json
import os
import stat
import struct
import tempfile
import warnings
from pathlib import Path

import array_api_compat
import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from cdiff_rt.errors import BadInput, OutOfResource
from cdiff_rt.palette import PALETTE

LARGEST_FILE = 64 * 2**20  # bytes
LARGEST_IMAGE = 25_000_000  # pixels; checked before decoding
MASK_HELP = "a mask is a PNG of labels 0-18 (palette or grey) or of the 19 CelebAMask-HQ colours, see docs/masks.md"


def read_labels(path: Path, classes: int) -> tuple[np.ndarray, str]:
    """A label map from a PNG file -> [H, W] uint8 in 0..classes-1, and how it was read.

    Pixel values of palette and grey PNGs are labels; RGB must use the palette's colours exactly. Raises BadInput.
    """
    _check_plain_file(path)
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # Pillow's, about what is refused below in our own words
            Image.open(path) as image,
        ):
            _check_header(path, image)
            image.load()
            labels, how = _labels_of(path, image)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise BadInput(f"mask {path.name}", f"it cannot be read as an image ({error})", MASK_HELP) from None
    return check_labels(labels, classes, path.name), how


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


def _check_plain_file(path: Path) -> None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        raise BadInput(f"mask {path}", "there is no such file", "check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"mask {path}", "this is not a file", "give the path of a PNG file")
    if not 0 < status.st_size <= LARGEST_FILE:
        raise BadInput(f"mask {path.name}", f"{status.st_size} bytes", f"a mask has 1 to {LARGEST_FILE} bytes")


def _check_header(path: Path, image: ImageFile.ImageFile) -> None:
    name, (width, height) = f"mask {path.name}", image.size
    if image.format != "PNG":
        reason = ", which changes labels at their borders" if image.format in ("JPEG", "WEBP") else ""
        raise BadInput(name, f"format {image.format}{reason}", MASK_HELP)
    if width * height > LARGEST_IMAGE:
        raise BadInput(name, f"{width}x{height} pixels", f"scale it to at most {LARGEST_IMAGE // 1_000_000} megapixels")
    stored = image.tile[0][3]  # "L;4" for four bits, which Pillow would scale to 0-255
    if image.mode in ("L", "LA", "RGB", "RGBA") and stored != image.mode:
        raise BadInput(name, f"pixels stored as {stored}", "save it with 8 bits per channel")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadInput(name, f"an animation of {frames} frames", "save one frame of it")
    if image.getexif().get(0x0112, 1) != 1:
        raise BadInput(name, "its EXIF data asks for a rotation", "rotate the pixels and save it without EXIF")


def _labels_of(path: Path, image: Image.Image) -> tuple[np.ndarray, str]:
    if image.mode in ("RGBA", "LA"):
        if np.asarray(image)[..., -1].min() < 255:
            raise BadInput(f"mask {path.name}", "it is partly transparent", "save it without an alpha channel")
        image = image.convert(image.mode[:-1])
    if image.mode == "P":
        return _labels_of_palette(path, image)
    if image.mode == "L":
        return np.asarray(image), "grey PNG, pixel values are labels"
    if image.mode == "RGB":
        return _labels_of_colours(path, np.asarray(image)), "RGB PNG in the CelebAMask-HQ colours"
    raise BadInput(f"mask {path.name}", f"pixels of mode {image.mode}", MASK_HELP)


def _labels_of_palette(path: Path, image: Image.Image) -> tuple[np.ndarray, str]:
    """Pixel values are labels, unless an editor has sorted the 19 colours anew: then the colours are."""
    values = np.asarray(image)
    entries = (image.getpalette("RGB") or [])[: 3 * 256]
    colours = dict(enumerate(zip(entries[0::3], entries[1::3], entries[2::3], strict=True)))
    used = {int(value): colours.get(int(value)) for value in np.unique(values)}
    distinct = len(set(used.values())) == len(used) > 1
    if distinct and set(used.values()) <= set(PALETTE) and any(PALETTE[v : v + 1] != (c,) for v, c in used.items()):
        return _labels_of_colours(path, np.asarray(image.convert("RGB"))), "palette PNG in the CelebAMask-HQ colours"
    return values, "palette PNG, pixel values are labels"


def _labels_of_colours(path: Path, pixels: np.ndarray) -> np.ndarray:
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)  # [H, W]
    table = {(r << 16) | (g << 8) | b: label for label, (r, g, b) in enumerate(PALETTE)}
    colours, inverse = np.unique(packed, return_inverse=True)
    strange = [int(colour) for colour in colours if int(colour) not in table]
    if strange:
        named = ", ".join(f"#{colour:06x}" for colour in strange[:5])
        raise BadInput(f"mask {path.name}", f"{len(strange)} colours off the palette ({named})", MASK_HELP)
    return np.array([table[int(colour)] for colour in colours], np.uint8)[inverse].reshape(packed.shape)


def centre_square(pixels: np.ndarray) -> np.ndarray:
    """[H, W, ...] -> the centre square of it."""
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def nearest(labels: np.ndarray, size: int) -> np.ndarray:
    """[..., S, S] -> [..., size, size], the pixel at floor((i + 0.5) * S / size), as Pillow's NEAREST."""
    centres = np.floor((np.arange(size) + 0.5) * labels.shape[-1] / size).astype(int)
    return labels[..., centres[:, None], centres]


def to_uint8(images):  # noqa: ANN001, ANN201 - numpy or torch array, like its input
    """[B, 3, H, W] in [-1, 1] -> [B, H, W, 3] in 0..255, truncated as the reference does."""
    xp = array_api_compat.array_namespace(images)
    return xp.astype(xp.clip(xp.permute_dims((images + 1) * 127.5, (0, 2, 3, 1)), 0, 255), xp.uint8)


def check_folder(folder: Path) -> None:
    """Raises BadInput unless files can be written into `folder`, which need not exist yet; leaves nothing behind."""
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".cdiff-rt-"):
            pass
    except OSError as error:
        raise BadInput(f"output folder {folder}", error.strerror or str(error), "choose one you may write to") from None


def write_png(path: Path, image: np.ndarray, texts: dict[str, str]) -> None:
    """Writes [H, W, 3] uint8 with `texts` as PNG text chunks, making the folder; it appears whole or not at all."""
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value) if not value.isascii() else info.add_text(key, value)
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".cdiff-rt-", suffix=".png", delete=False) as file:
            partial = file.name
            Image.fromarray(image).save(file, "PNG", pnginfo=info)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException as error:
        if partial:
            Path(partial).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise OutOfResource(
            f"writing {path}", error.strerror or str(error), "free some space or choose another folder"
        ) from None


def _umask() -> int:
    """What the user's files lack in permissions; a temporary file would lack more."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def parameters_text(record: dict) -> dict[str, str]:
    """The PNG texts of one image: the A1111 line that galleries read, and our own JSON."""
    shown = {
        "Steps": record["steps"],
        "Sampler": "DDIM",
        "Eta": record["eta"],
        "Seed": record["seed"],
        "Image": record["image"],
        "Size": f"{record['size']}x{record['size']}",
        "Model": record["model"],
        "Model hash": record["model_hash"][:10],
        "Version": f"cdiff-rt {record['version']}",
    }
    line = ", ".join(f"{key}: {value}" for key, value in shown.items())
    return {"parameters": f"{record['prompt']}\n{line}".lstrip(), "cdiff_rt": json.dumps(record)}
