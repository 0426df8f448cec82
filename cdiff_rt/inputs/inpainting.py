"""Inpainting: a region of a photo is kept, the rest is made anew."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs import images


@dataclass(frozen=True, eq=False)
class Inpainting:
    """`keep` is 1 (a file: white) where the photo stays. Arrays: photo [S, S, 3] uint8, keep [S, S] of 0 and 1."""

    photo: str | Path | np.ndarray
    keep: str | Path | np.ndarray

    def read(self, size: int, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """The photo [size, size, 3] uint8, and what to keep of its latents [latent, latent] float32."""
        photo, keep = self.photo, self.keep
        pixels = photo if isinstance(photo, np.ndarray) else images.read_photo(Path(photo), size)
        if pixels.shape != (size, size, 3) or pixels.dtype != np.uint8:
            raise BadInput("photo array", f"{pixels.dtype} of shape {pixels.shape}", f"give uint8 {(size, size, 3)}")
        region = keep.astype(np.float32) if isinstance(keep, np.ndarray) else images.read_region(Path(keep))
        if region.ndim != 2 or region.shape[0] != region.shape[1] or not set(np.unique(region)) <= {0, 1}:
            raise BadInput("region array", f"shape {region.shape}", "give a square of zeros and ones")
        return pixels, images.nearest(region, latent)

    def shown(self) -> dict[str, str]:
        """As it stands in a picture's parameters: names without the folders they lay in."""
        parts = {"photo": self.photo, "keep": self.keep}
        return {name: "array" if isinstance(part, np.ndarray) else Path(part).name for name, part in parts.items()}
