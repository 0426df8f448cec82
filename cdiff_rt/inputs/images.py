"""Pictures that come in: photos and regions, from files, bytes, Pillow's images or arrays."""

import io
import math
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from cdiff_rt.errors import BadInput, without_file
from cdiff_rt.inputs import containers
from cdiff_rt.inputs.colours import EIGHT_BITS, mode_in_words, to_srgb
from cdiff_rt.inputs.containers import ORIENTATION
from cdiff_rt.notes import log

LARGEST_FILE = 64 * 2**20  # bytes
LARGEST_IMAGE = 25_000_000  # pixels; checked before decoding
LONGEST_SIDE = 2**16 - 1  # pixels, that of JPEG; decoders take memory for some rows at once
LARGEST_DECODED = 2**23  # pixels of a JPEG; a larger one is decoded at half its width and height
STRIP = 2**20  # pixels that are converted at once
REMARKS = "remarks"  # on a picture's colours, among Pillow's infos
PHOTO_FORMATS = ("PNG", "JPEG", "WEBP")  # by Pillow's names
FORMATS = (*PHOTO_FORMATS, "BMP")  # that a decoder sees; of others, the name is told
# What Pillow raises, whose readers of headers check little.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
REAL = "give real numbers, e.g. of type float32"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Picture = str | Path | bytes | Image.Image | np.ndarray  # a path, a file's content, or pixels


def name_of(picture: Picture) -> str:
    """What a picture is called in messages and parameters: a file's name without the folders it lay in."""
    if isinstance(picture, np.ndarray):
        return f"array {'x'.join(map(str, picture.shape))}"
    if isinstance(picture, Image.Image):
        return f"image {picture.width}x{picture.height}"
    if isinstance(picture, bytes):
        return getattr(picture, "name", f"{len(picture)} bytes")  # traces.py names what it read of a file
    return Path(picture).name if isinstance(picture, str | Path) else f"a {type(picture).__name__}"


def read_photo(picture: Picture, size: int) -> np.ndarray:
    """The centre square of a PNG, JPEG or WebP file, as its EXIF data turns it, scaled to [size, size, 3] uint8.

    Says so where that leaves something out. What is transparent lies on white. An array is that already.
    """
    if isinstance(picture, np.ndarray):
        if picture.shape != (size, size, 3) or picture.dtype != np.uint8:
            seen = f"{picture.dtype} of shape {picture.shape}"
            raise BadInput("photo array", seen, f"give uint8 {(size, size, 3)}")
        return picture
    square = read_square(picture, "photo", size)
    return np.asarray(square if square.width == size else square.resize((size, size), Image.Resampling.LANCZOS))


def read_square(picture: str | Path | bytes | Image.Image, what: str, size: int) -> Image.Image:
    """The centre square of it as it is, in sRGB, turned and on white; of less than `size` pixels a side that is told."""
    help_, file = "give a PNG, JPEG or WebP file", name_of(picture)
    with opened(picture, what, help_) as image:
        frames, name = getattr(image, "n_frames", 1), f"{what} {file}"
        if image.format not in (*PHOTO_FORMATS, None) or frames > 1:
            raise BadInput(name, f"format {image.format}, {frames} frames", help_)
        check_size(file, what, image)
        width, height = image.size
        if image.format == "JPEG" and width * height > LARGEST_DECODED:
            image.draft(None, (width // 2, height // 2))
        image.load()
        if image.mode.startswith(("I", "F")):
            raise BadInput(name, f"it is {mode_in_words(image.mode)}", EIGHT_BITS)
        square, turn = _centre(name, image), _turn_of(name, image)
        _tell(name, image, (width, height), size)
    del image  # its pixels take as much memory as those of the square, turned
    return square.transpose(turn) if turn is not None else square


def _centre(name: str, image: Image.Image) -> Image.Image:
    """The centre square as sRGB, of which few rows at once need more memory than they take."""
    change = to_srgb(name, image, image.info.get(REMARKS, ()))
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    square = Image.new("RGB", (side, side))
    rows = max(1, STRIP // side)
    for row in range(0, side, rows):
        end = min(row + rows, side)
        square.paste(change(image.crop((left, top + row, left + side, top + end))), (0, row))
    return square


def _turn_of(name: str, image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except DAMAGE as error:
        log.warning("%s: its EXIF data cannot be read (%s); it is taken as upright", name, error)
        return None
    if turn := _TURNS.get(orientation):
        log.info("%s: turned as its EXIF data says", name)
    return turn


def _tell(name: str, image: Image.Image, shape: tuple[int, int], size: int) -> None:
    """What becomes of a photo."""
    width, height = shape
    if not is_opaque(image):
        log.warning("%s: it is partly transparent; it lies on white", name)
    if width != height:
        log.warning("%s: %dx%d is not square, its centre is used", name, width, height)
    if min(width, height) < size:
        log.warning("%s: %dx%d is small, it is enlarged to %dx%d", name, width, height, size, size)


def is_opaque(image: Image.Image) -> bool:
    """Whether every pixel is, also in a picture that could be transparent."""
    if not image.has_transparency_data:
        return True
    alpha = image if "A" in image.getbands() else image.convert("RGBA")
    return alpha.getchannel("A").getextrema() == (255, 255)


def read_array(value: Picture, what: str) -> np.ndarray:
    """The array of a .npy file, or of its content: real numbers, all finite in float32. Raises BadInput."""
    name = f"{what} {name_of(value)}"
    if isinstance(value, Image.Image):
        raise BadInput(what, "a picture", "give an array or a .npy file")
    array = value if isinstance(value, np.ndarray) else _parse_array(read_file(value, what), name)
    if array.dtype.kind == "c":
        raise BadInput(name, f"elements of type {array.dtype}", REAL)
    with np.errstate(over="ignore"):
        if array.dtype.kind == "f" and not np.isfinite(array.astype(np.float32)).all():
            raise BadInput(name, "some numbers are not finite, or too large for float32", "correct them")
    return array


def _parse_array(data: bytes, name: str) -> np.ndarray:
    """Of as many elements as are there: what a header says takes no memory."""
    help_ = "write one array of numbers by numpy.save"
    if data.startswith(b"PK"):
        raise BadInput(name, "it is an archive, as numpy.savez writes, not one array", help_)
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version > (3, 0):
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
        of_version = np.lib.format.read_array_header_1_0 if version < (2, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings(action="ignore"):  # about headers of Python 2
            shape, fortran, dtype = of_version(file)
    except Exception as error:  # noqa: BLE001 - its header is a Python expression, and numpy says little of what it raises
        raise BadInput(name, f"it cannot be read as an array ({error})", help_) from None
    if dtype.kind not in "iuf" or min(shape, default=0) < 0:
        raise BadInput(name, f"elements of type {dtype}, shape {shape}", REAL)
    count, there = math.prod(shape), len(data) - file.tell()
    if count * dtype.itemsize != there:
        seen = f"its header promises {count} elements of type {dtype}, and {there} bytes follow"
        raise BadInput(name, seen, "it is damaged or cut short; write it again by numpy.save")
    values = np.frombuffer(data, dtype, count, file.tell()).astype(dtype.newbyteorder("="))
    return values.reshape(shape, order="F" if fortran else "C")


@contextmanager
def opened(picture: str | Path | bytes | Image.Image, what: str, help_: str) -> Iterator[Image.Image]:
    """A picture of somebody's to read; whatever Pillow has against it is BadInput.

    A file is read once. It is whole, and has at most LARGEST_IMAGE pixels, before memory is taken for them.
    """
    if not isinstance(picture, str | Path | bytes | Image.Image):
        seen = f"a {type(picture).__name__}"
        raise BadInput(what, seen, "give a path, a file's content as bytes, a Pillow image or an array")
    name = name_of(picture)
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, about what is refused in our own words
            if isinstance(picture, Image.Image):
                yield picture
                return
            content = containers.read(read_file(picture, what))
            if content.format not in FORMATS:
                raise BadInput(f"{what} {name}", f"format {content.format}", help_)
            check_size(name, what, content)
            content.check_pixels()
            with Image.open(io.BytesIO(content.data), formats=(content.format,)) as image:
                image.info[REMARKS] = content.remarks
                yield image
    except DAMAGE as error:
        raise BadInput(f"{what} {name}", f"it cannot be read as an image ({error})", help_) from None


def read_file(file: str | Path | bytes, what: str) -> bytes:
    """The content of a plain file, or of what is one's content. Raises BadInput."""
    if isinstance(file, bytes):
        _check_length(len(file), what, f"{what} of {len(file)} bytes", LARGEST_FILE)
        return file
    check_given(file, what)
    with _opened_plain(Path(file), what, LARGEST_FILE) as stream:
        return stream.read(LARGEST_FILE)


def check_given(path: str | Path, what: str) -> None:
    """Raises BadInput for an empty one, which as a path would be the current folder."""
    if not str(path):
        raise BadInput(what, "its path is empty", "give the path of a file")


def check_plain_file(path: Path, what: str, largest: int = LARGEST_FILE) -> None:
    """Raises BadInput unless it is one, can be read, and has 1 to `largest` bytes."""
    with _opened_plain(path, what, largest):
        pass


@contextmanager
def _opened_plain(path: Path, what: str, largest: int) -> Iterator[BinaryIO]:
    """A device is not even opened, and nobody is waited for if it becomes a pipe meanwhile."""
    try:
        _check_kind(path, what, os.stat(path))
        flags = getattr(os, "O_NONBLOCK", 0)
        with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
            _check_kind(path, what, os.fstat(file.fileno()))
            _check_length(os.fstat(file.fileno()).st_size, what, f"{what} {path.name}", largest)
            yield file
    except FileNotFoundError:
        raise BadInput(f"{what} {path}", *without_file(path)) from None
    except ValueError as error:  # a NUL
        raise BadInput(f"{what} {path}", f"there is no such file ({error})", "check the path") from None
    except OSError as error:
        raise BadInput(f"{what} {path}", f"it cannot be read ({error.strerror})", "check the path") from None


def _check_kind(path: Path, what: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise BadInput(f"{what} {path}", f"this is not a file, but {kind}", "give the path of a file")


def _check_length(length: int, what: str, name: str, largest: int) -> None:
    if not 0 < length <= largest:
        raise BadInput(name, f"{length} bytes", f"give one of 1 to {largest} bytes")


def check_size(name: str, what: str, image: Image.Image | containers.Content) -> None:
    width, height = image.size
    if not min(width, height):
        raise BadInput(f"{what} {name}", f"{width}x{height} pixels", "give one that is not empty")
    if width * height > LARGEST_IMAGE or max(width, height) > LONGEST_SIDE:
        most = f"scale it to at most {LARGEST_IMAGE // 1_000_000} megapixels, and {LONGEST_SIDE} pixels a side"
        raise BadInput(f"{what} {name}", f"{width}x{height} pixels", most)


def centre_square(pixels: np.ndarray) -> np.ndarray:
    """[H, W, ...] -> the centre square of it."""
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def nearest(labels: np.ndarray, size: int) -> np.ndarray:
    """[..., S, S] -> [..., size, size], the pixel at floor((i + 0.5) * S / size), as Pillow's NEAREST."""
    centres = np.floor((np.arange(size) + 0.5) * labels.shape[-1] / size).astype(int)
    return labels[..., centres[:, None], centres]


def from_uint8(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 -> [1, 3, H, W] float32 in [-1, 1]."""
    return (pixels.astype(np.float32) / np.float32(127.5) - 1).transpose(2, 0, 1)[None]
