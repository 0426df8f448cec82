"""Noise that depends on the seed, the image's number and the draw's number, and on nothing else."""

import numpy as np

from cdiff_rt.errors import BadRequest

LARGEST_SEED = 2**63 - 1
SAMPLING, INPAINTING, EDITING, TUNING = 0, 1, 2, 3  # streams: what one draws does not move the other


def check_seed(seed: int) -> int:
    if not 0 <= seed <= LARGEST_SEED:
        raise BadRequest("seed", f"{seed} is outside 0-2^63-1", "choose a number of that range")
    return seed


def normal(seed: int, images: range, draw: int, shape: tuple[int, ...], stream: int = SAMPLING) -> np.ndarray:
    """[len(images), *shape] float32 standard normal; draw 0 is x_T, draw k the noise added by the k-th step.

    Counter-based (Philox, Salmon et al. 2011): image i's noise is the same in any batch, on any backend.
    """
    return np.stack([_one(seed, (0, stream, image, draw), shape) for image in images])


def _one(seed: int, counter: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=seed, counter=counter))
    return generator.standard_normal(shape, dtype=np.float32)
