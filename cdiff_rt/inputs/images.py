"""Pictures that come in: photos and regions, from files, bytes, Pillow's images or arrays."""

import io
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cdiff_rt.errors import BadInput
from cdiff_rt.notes import log

ORIENTATION = 0x0112  # the EXIF tag
LARGEST_FILE = 64 * 2**20  # bytes
LARGEST_IMAGE = 25_000_000  # pixels; checked before decoding
PHOTO_FORMATS = ("PNG", "JPEG", "WEBP")  # by Pillow's names


Picture = str | Path | bytes | Image.Image | np.ndarray  # a path, a file's content, or pixels


def name_of(picture: Picture) -> str:
    """What a picture is called in messages and parameters: a file's name without the folders it lay in."""
    if isinstance(picture, np.ndarray):
        return f"array {'x'.join(map(str, picture.shape))}"
    if isinstance(picture, Image.Image):
        return f"image {picture.width}x{picture.height}"
    if isinstance(picture, bytes):
        return f"{len(picture)} bytes"
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
    help_, name = "give a PNG, JPEG or WebP file", name_of(picture)
    with opened(picture, "photo", help_) as image:
        frames = getattr(image, "n_frames", 1)
        if image.format not in (*PHOTO_FORMATS, None) or frames > 1:
            raise BadInput(f"photo {name}", f"format {image.format}, {frames} frames", help_)
        check_size(name, "photo", image)
        image.load()
        if image.mode.startswith(("I", "F")):
            raise BadInput(f"photo {name}", f"pixels of mode {image.mode}", "save it with 8 bits per channel")
        turned = ImageOps.exif_transpose(image)
        square = Image.fromarray(centre_square(np.asarray(_opaque(turned))))
        _tell(name, image, turned, size)
    return np.asarray(square if square.width == size else square.resize((size, size), Image.Resampling.LANCZOS))


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _tell(name: str, image: Image.Image, turned: Image.Image, size: int) -> None:
    """What becomes of a photo."""
    width, height = turned.size
    if image.getexif().get(ORIENTATION, 1) != 1:
        log.info("photo %s: turned as its EXIF data says", name)
    if turned.has_transparency_data:
        log.warning("photo %s: it is partly transparent; it lies on white", name)
    if width != height:
        log.warning("photo %s: %dx%d is not square, its centre is used", name, width, height)
    if min(width, height) < size:
        log.warning("photo %s: %dx%d is small, it is enlarged to %dx%d", name, width, height, size, size)


def read_region(picture: Picture) -> np.ndarray:
    """A black and white PNG -> [S, S] float32, its centre square: 1 where it is white, 0 where it is black.

    An array is such a square already, of zeros and ones.
    """
    if isinstance(picture, np.ndarray):
        if picture.ndim != 2 or picture.shape[0] != picture.shape[1] or not set(np.unique(picture)) <= {0, 1}:
            raise BadInput("region array", f"shape {picture.shape}", "give a square of zeros and ones")
        return picture.astype(np.float32)
    help_, name = "paint it in black and white only and save it as PNG", name_of(picture)
    with opened(picture, "region", help_) as image:
        if image.format not in ("PNG", None) or image.mode not in ("1", "L", "P", "RGB"):
            raise BadInput(f"region {name}", f"format {image.format}, mode {image.mode}", help_)
        check_size(name, "region", image)
        image.load()
        grey = np.asarray(image.convert("L"))
    levels = set(np.unique(grey).tolist())
    if not levels <= {0, 255}:
        strange = ", ".join(map(str, sorted(levels - {0, 255})[:5]))
        raise BadInput(f"region {name}", f"grey levels {strange} besides black and white", help_)
    return (centre_square(grey) == 255).astype(np.float32)


def read_array(value: Picture, what: str) -> np.ndarray:
    """The array of a .npy file, or of its content, numbers only. Raises BadInput."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Image.Image):
        raise BadInput(what, "a picture", "give an array or a .npy file")
    if isinstance(value, str | Path):
        check_plain_file(Path(value), what)
    try:
        return np.load(io.BytesIO(value) if isinstance(value, bytes) else value, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        seen = f"it cannot be read as an array ({error})"
        raise BadInput(f"{what} {name_of(value)}", seen, "write it by numpy.save") from None


@contextmanager
def opened(picture: str | Path | bytes | Image.Image, what: str, help_: str) -> Iterator[Image.Image]:
    """A picture of somebody's to read; whatever Pillow has against it is BadInput."""
    if not isinstance(picture, str | Path | bytes | Image.Image):
        seen = f"a {type(picture).__name__}"
        raise BadInput(what, seen, "give a path, a file's content as bytes, a Pillow image or an array")
    if isinstance(picture, str | Path):
        check_plain_file(Path(picture), what)
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, about what is refused in our own words
            if isinstance(picture, Image.Image):
                yield picture
            else:
                with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
                    yield image
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise BadInput(f"{what} {name_of(picture)}", f"it cannot be read as an image ({error})", help_) from None


def check_plain_file(path: Path, what: str, largest: int = LARGEST_FILE) -> None:
    """Raises BadInput unless it is one and has 1 to `largest` bytes."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        raise BadInput(f"{what} {path}", "there is no such file", "check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{what} {path}", "this is not a file", "give the path of a file")
    if not 0 < status.st_size <= largest:
        raise BadInput(f"{what} {path.name}", f"{status.st_size} bytes", f"a {what} has 1 to {largest} bytes")


def check_size(name: str, what: str, image: Image.Image) -> None:
    width, height = image.size
    if width * height > LARGEST_IMAGE:
        most = f"scale it to at most {LARGEST_IMAGE // 1_000_000} megapixels"
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
