"""Masks as people's programs write them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cdiff_rt.inputs.palette import CLASSES, ORDERS, PALETTE

ROOT = Path(__file__).parents[1]
TABLE = np.array(PALETTE, np.uint8)
GREYS = np.repeat(np.arange(256)[:, None], 3, 1)
OTHER = np.random.default_rng(3).integers(0, 255, (19, 3))  # a palette of nobody's


def example(number: int, side: int = 128) -> np.ndarray:
    """Labels [side, side] of a mask of `examples`."""
    return np.asarray(Image.open(ROOT / "examples" / f"{number}.png").resize((side, side), Image.Resampling.NEAREST))


def saved(picture: np.ndarray | Image.Image, kind: str = "PNG", **how: object) -> bytes:
    content = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(content, kind, **how)
    return content.getvalue()


def palette_png(numbers: np.ndarray, colours: object, **how: object) -> bytes:
    picture = Image.new("P", numbers.shape[::-1])
    picture.putdata(numbers.ravel().tolist())
    picture.putpalette(np.asarray(colours).clip(0, 255).astype(np.uint8).ravel().tolist())
    return saved(picture, **how)


def sorted_anew(labels: np.ndarray, colours: np.ndarray) -> bytes:
    """As an optimiser stores it: only the colours in use, in another order."""
    used = np.random.default_rng(1).permutation(np.unique(labels))
    place = np.zeros(256, int)
    place[used] = np.arange(len(used))
    return palette_png(place[labels], np.asarray(colours)[used])


def in_order(labels: np.ndarray, order: str) -> np.ndarray:
    """The same map with the numbers of another order."""
    return np.array([ORDERS[order].index(name) for name in CLASSES], np.uint8)[labels]
