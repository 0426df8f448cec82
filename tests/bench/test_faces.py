import importlib.util

import numpy as np
import pytest

from cdiff_rt.bench.faces import face_finder
from recipes.faces.painter import portrait


@pytest.fixture(scope="module")
def find():
    return face_finder()


@pytest.mark.parametrize("seed", range(4))
def test_a_painted_portrait_has_a_face(find, seed):
    assert find(portrait(seed).image) is True


def test_an_upside_down_portrait_has_none(find):
    assert find(portrait(0).image[::-1]) is False


@pytest.mark.parametrize("value", [0, 127, 255])
def test_a_flat_image_has_no_face(find, value):
    assert find(np.full((128, 128, 3), value, np.uint8)) is False


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_no_face(find, seed):
    assert find(np.random.default_rng(seed).integers(0, 256, (128, 128, 3), np.uint8)) is False


def test_without_the_library_faces_are_not_looked_for_and_the_remedy_is_named(monkeypatch, caplog):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else real(name))
    assert face_finder() is None
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "pip install '.[quality]'" in record.getMessage()
