"""Checks of what a run is asked for and of what it made; each raises an error that names the value and the remedy."""

from typing import get_args, get_type_hints

import numpy as np

from cdiff_rt.errors import BadRequest, check_choice, check_range
from cdiff_rt.manifest import Influence
from cdiff_rt.sampling import noise

LARGEST_BATCH = 256


def check_numbers(seed: int, first: int, batch: int) -> range:
    """The numbers of a run's images. Raises BadRequest."""
    noise.check_seed(seed)
    check_range("batch", batch, 1, LARGEST_BATCH)
    check_range("first", first, 0, 2**31)
    return range(first, first + batch)


def check_influence(influence: Influence) -> Influence:
    """Raises BadRequest unless it is one."""
    check_choice("decay", influence.decay, get_args(get_type_hints(Influence)["decay"]))
    for name in ("factor", "sharpness", "boost"):
        value = getattr(influence, name)
        if value is not None:
            check_range(name, value, 0.0, 1e6)
    return influence


def check_start(x_T: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if x_T.shape != shape or not np.isfinite(x_T).all():
        raise BadRequest("x_T", f"shape {x_T.shape}", f"give finite numbers of shape {shape}")
    return x_T.astype(np.float32)
