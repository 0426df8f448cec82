"""Inpainting: a region of a photo is kept, the rest is made anew."""

from dataclasses import dataclass

import numpy as np

from cdiff_rt.inputs import images
from cdiff_rt.inputs.region_maps import read_region


@dataclass(frozen=True, eq=False)
class Inpainting:
    """`keep` is 1 (in a picture: white) where the photo stays. Arrays: photo [S, S, 3] uint8, keep [S, S] of 0 and 1."""

    photo: images.Picture
    keep: images.Picture

    def read(self, size: int, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """The photo [size, size, 3] uint8, and what to keep of its latents [latent, latent] float32. Raises BadInput."""
        return images.read_photo(self.photo, size), images.nearest(read_region(self.keep), latent)

    def shown(self) -> dict[str, str]:
        """As it stands in a picture's parameters."""
        return {"photo": images.name_of(self.photo), "keep": images.name_of(self.keep)}
