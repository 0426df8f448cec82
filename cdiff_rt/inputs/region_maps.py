"""Regions that come in: black and white for what is kept of a photo, shades of grey for how much a condition decides."""

import numpy as np
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.colours import mode_in_words
from cdiff_rt.inputs.images import Picture, centre_square, check_size, is_opaque, name_of, opened, read_array
from cdiff_rt.notes import log

COLOURED = ("P", "RGB", "RGBA")
MODES = ("1", "L", "LA", *COLOURED)
SHADES = "paint it in shades of grey, white where the region is, and save it as PNG"


def read_region(picture: Picture) -> np.ndarray:
    """A black and white PNG -> [S, S] float32, its centre square: 1 where it is white, 0 where it is black.

    An array is such a square already, of zeros and ones.
    """
    if isinstance(picture, np.ndarray):
        if picture.ndim != 2 or picture.shape[0] != picture.shape[1] or not set(np.unique(picture)) <= {0, 1}:
            raise BadInput("region array", f"shape {picture.shape}", "give a square of zeros and ones")
        return picture.astype(np.float32)
    help_, name = "paint it in black and white only and save it as PNG", name_of(picture)
    grey = _grey(picture, "region", help_)
    levels = np.unique(grey)
    if not set(levels) <= {0, 255}:
        strange = ", ".join(map(str, [level for level in levels if level not in (0, 255)][:5]))
        raise BadInput(f"region {name}", f"grey levels {strange} besides black and white", help_)
    return (centre_square(grey) == 255).astype(np.float32)


def read_map(picture: Picture, what: str, latent: tuple[int, ...]) -> np.ndarray:
    """A region with soft edges -> shares [*latent] float32: 1 where it is white, 0 where it is black.

    A picture's centre square is brought to the latents' size by the mean of what each covers, and so is an array [H, W]
    of shares (uint8: of 255); one of the latents' own shape stays as it is. Raises BadInput.
    """
    of_numbers = isinstance(picture, np.ndarray) or name_of(picture).endswith(".npy")
    shares = _shares(picture, what) if of_numbers else _grey(picture, what, SHADES) / np.float32(255)
    if shares.shape != latent:
        shares = _scaled(shares, what, latent)
    if not shares.any():
        log.warning("%s: it is black everywhere, so nothing lies in it", what)
    return shares


def _shares(picture: Picture, what: str) -> np.ndarray:
    array = read_array(picture, what)
    of_numbers = array.dtype.kind in "biuf" and array.size
    shares = array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1) if of_numbers else array
    if not of_numbers or shares.min() < 0 or shares.max() > 1:
        seen = f"{array.dtype} of shape {array.shape}"
        raise BadInput(what, seen, "give shares of 0 to 1, or uint8 of 0 to 255")
    return shares


def _scaled(shares: np.ndarray, what: str, latent: tuple[int, ...]) -> np.ndarray:
    if shares.ndim != 2 or len(latent) != 2:
        raise BadInput(what, f"its shape is {shares.shape}", f"give an array of the latents' shape {latent}")
    if shares.shape[0] != shares.shape[1]:
        log.warning("%s: %dx%d is not square, its centre is used", what, *shares.shape[::-1])
    square = Image.fromarray(np.ascontiguousarray(centre_square(shares)))
    return np.asarray(square.resize(latent[::-1], Image.Resampling.BOX)).clip(0, 1)


def _grey(picture: Picture, what: str, help_: str) -> np.ndarray:
    """[H, W] uint8 of an opaque PNG without colours."""
    name = f"{what} {name_of(picture)}"
    assert not isinstance(picture, np.ndarray)
    with opened(picture, what, help_) as image:
        if image.format not in ("PNG", None) or image.mode not in MODES:
            raise BadInput(name, f"format {image.format}, {mode_in_words(image.mode)}", help_)
        check_size(name_of(picture), what, image)
        image.load()
        if not is_opaque(image):
            raise BadInput(name, "it is partly transparent", help_)
        shades = image.convert("RGB" if image.mode in COLOURED else "L")
    grey = np.asarray(shades.getchannel(0))
    if any(not np.array_equal(grey, np.asarray(shades.getchannel(band))) for band in shades.getbands()[1:]):
        raise BadInput(name, "it has colours", help_)
    return grey
