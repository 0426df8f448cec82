"""Inpainting: a region of a photo is kept, the rest is made anew."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cdiff_rt.inputs import images
from cdiff_rt.inputs.region_maps import read_region
from cdiff_rt.inputs.traces import Input, loaded, trace_of


class Painted(NamedTuple):
    """An inpainting as it was read, and what it was read from."""

    photo: np.ndarray  # [size, size, 3] uint8
    keep: np.ndarray  # [latent, latent] float32: what to keep of the latents
    inputs: dict[str, Input]


@dataclass(frozen=True, eq=False)
class Inpainting:
    """`keep` is 1 (in a picture: white) where the photo stays. Arrays: photo [S, S, 3] uint8, keep [S, S] of 0 and 1."""

    photo: images.Picture
    keep: images.Picture

    def read(self, size: int, latent: int) -> Painted:
        """Raises BadInput."""
        photo, region = loaded(self.photo, "photo"), loaded(self.keep, "region")
        pixels, keep = images.read_photo(photo, size), images.nearest(read_region(region), latent)
        whole = {"inpaint.photo": (photo, pixels), "inpaint.keep": (region, keep.astype(np.uint8))}
        return Painted(pixels, keep, {role: Input(trace_of(given), array) for role, (given, array) in whole.items()})
