"""A stage of training over portraits of random pixels."""

from pathlib import Path

import numpy as np

from cdiff_rt.nets.collaborative import CollaborativeModel
from recipes.faces.config import FACES_128
from recipes.faces.data import HELD_OUT, Portraits
from recipes.faces.examples import Stage
from recipes.faces.training import Plan


def portraits(first_seed: int) -> Portraits:
    """Four to train on and the held-out rest."""
    count = HELD_OUT + 4
    rng = np.random.default_rng(first_seed)
    images = rng.integers(0, 256, (count, 128, 128, 3), np.uint8)
    labels = rng.integers(0, 19, (count, 128, 128), np.uint8)
    return Portraits(images, labels, ["This man has a long beard."] * count, [{}] * count, first_seed)


def stage(folder: Path, first_seed: int = 0) -> Stage:
    return Stage(Plan("mask", folder, 1, False, 0, 4), portraits(first_seed), CollaborativeModel(FACES_128))
