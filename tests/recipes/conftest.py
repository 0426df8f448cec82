import pytest
import torch

from cdiff_rt.nets.collaborative import CollaborativeModel
from recipes.faces.config import FACES_128
from recipes.faces.weights import save_weights


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def work(tmp_path):
    """A folder of weights with an untrained autoencoder."""
    torch.manual_seed(0)
    save_weights(CollaborativeModel(FACES_128), tmp_path, "vae")
    return tmp_path
