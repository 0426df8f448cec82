"""Photos in other colours than those of sRGB: converted by their profile, or said to be none."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from cdiff_rt.notes import log

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by a profile's kind of colours, the pixels that it is for
_NEAR = 2  # levels: as far as profiles of sRGB itself are from each other
_AS_SRGB = "its colours are taken as those of sRGB"
_GAMMA, _PRIMARIES = 1 / 2.2, (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # of sRGB, as a PNG states them

Change = Callable[[Image.Image], Image.Image]
EIGHT_BITS = "save it with 8 bits per channel"


def mode_in_words(mode: str) -> str:
    """Of pixels, as Pillow calls them: L;4 is 4-bit grey."""
    kind, _, bits = mode.partition(";")
    kinds = {"L": "grey", "I": "grey", "LA": "grey with alpha", "F": "floating-point grey", "1": "black and white"}
    wide = bits.strip("BLNRS") or {"I": "32"}.get(kind, "")
    if wide:
        return f"{wide}-bit {kinds.get(kind, kind)}"
    return f"mode {mode}, {kinds[kind]}" if kind in kinds else f"mode {mode}"


def to_srgb(name: str, image: Image.Image, remarks: tuple[str, ...] = ()) -> Change:
    """What makes a part of this photo RGB, on white where it is transparent; says what becomes of its colours."""
    change = _by_profile(name, image) if "icc_profile" in image.info else None
    if "icc_profile" not in image.info:
        for remark in (*remarks, *_stated(image)):
            log.warning("%s: %s, and it has no profile; %s", name, remark, _AS_SRGB)
        if image.mode == "CMYK":
            log.warning("%s: it is CMYK without a profile; its colours are a guess", name)
    opaque = change or (lambda part: part.convert("RGB"))
    return (lambda part: _on_white(opaque, part)) if image.has_transparency_data else opaque


def _on_white(opaque: Change, part: Image.Image) -> Image.Image:
    layer = part.convert("RGBA")
    whole = opaque(layer)
    whole.putalpha(layer.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), whole).convert("RGB")


def _by_profile(name: str, image: Image.Image) -> Change | None:
    """Nothing where the profile is that of sRGB, or cannot be used, which is said."""
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"] or b""))
        mode = _MODES[profile.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
        called = (profile.profile.profile_description or "its profile").strip()
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError, TypeError, ImportError) as error:
        log.warning("%s: its colour profile cannot be used (%s); %s", name, error, _AS_SRGB)
        return None
    if not _fits(mode, image):
        log.warning("%s: its colour profile is for %s, its pixels are %s; %s", name, mode, image.mode, _AS_SRGB)
        return None

    def change(part: Image.Image) -> Image.Image:
        made = ImageCms.applyTransform(part.convert(mode), transform)
        assert made is not None
        return made

    if mode != "CMYK" and _is_near(mode, change):
        return None
    log.info("%s: its colours are converted from %s to sRGB", name, called)
    return change


def _fits(mode: str, image: Image.Image) -> bool:
    if mode == "L":
        return image.mode in ("1", "L", "LA")
    return (mode == "CMYK") == (image.mode == "CMYK")


def _is_near(mode: str, change: Change) -> bool:
    """Whether it leaves colours about as they are."""
    levels = np.linspace(0, 255, 16).astype(np.uint8)
    axes = np.meshgrid(levels, levels, levels) if mode == "RGB" else (levels,) * 3
    colours = np.stack(axes, -1).reshape(1, -1, 3)
    return bool(np.abs(np.asarray(change(Image.fromarray(colours))) - colours.astype(int)).max() <= _NEAR)


def _stated(image: Image.Image) -> list[str]:
    """What a PNG says of its colours with numbers, if it is not what sRGB has."""
    if "srgb" in image.info:
        return []
    gamma, primaries = image.info.get("gamma", _GAMMA), image.info.get("chromaticity", _PRIMARIES)
    told = [f"its gamma is {gamma:g}"] if abs(gamma - _GAMMA) > 0.02 else []
    off = any(abs(there - usual) > 0.01 for there, usual in zip(primaries, _PRIMARIES, strict=False))
    return told + (["its primary colours are others"] if off else [])
