import json

import numpy as np
import pytest
import torch
from PIL import Image

from cdiff_rt.inputs import images
from cdiff_rt.outputs import formats

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (64, 64, 3), np.uint8)
PARAMETERS = {
    "solver": "ddim",
    "steps": 50,
    "eta": 1.0,
    "temperature": 1.0,
    "seed": 7,
    "size": 128,
    "model": "faces-128",
    "model_hash": "0123456789abcdef",
    "version": "0.1.0",
    "conditions": {},
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-1.0, 0), (1.0, 255), (0.0, 127), (-2.0, 0), (3.0, 255), (200.99 / 127.5 - 1, 200), (1.01 / 127.5 - 1, 1)],
)
def test_to_uint8_clips_and_truncates(value, expected):
    assert (formats.to_uint8(np.full((1, 3, 2, 2), value)) == expected).all()


def test_to_uint8_is_the_same_for_numpy_and_torch():
    values = (RNG.standard_normal((2, 3, 8, 8)) * 1.5).astype(np.float32)
    by_numpy, by_torch = formats.to_uint8(values), formats.to_uint8(torch.from_numpy(values))
    assert by_numpy.shape == (2, 8, 8, 3) and by_numpy.dtype == np.uint8 and by_torch.dtype == torch.uint8
    np.testing.assert_array_equal(by_numpy, by_torch.numpy())


def test_a_png_keeps_the_pixels_and_is_readable_by_all(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(formats.png_bytes(PICTURE, {}))
    with Image.open(path) as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), PICTURE)


@pytest.mark.parametrize("prompt", ["A man, 50% grey.", "Café — 日本 😀", "two\nlines\tand a tab", "", "=x: 'y\" \\n"])
def test_parameters_survive_a_png(prompt, tmp_path):
    parameters = PARAMETERS | {
        "conditions": {"text": prompt} if prompt else {"mask": "m.png"},
        "prompt": prompt,
        "image": 3,
    }
    (tmp_path / "a.png").write_bytes(formats.png_bytes(PICTURE, formats.parameters_text(parameters)))
    with Image.open(tmp_path / "a.png") as image:
        texts = image.text
    settings = (
        "Steps: 50, Sampler: DDIM, Eta: 1.0, Seed: 7, Image: 3, Size: 128x128, Model: faces-128, Model hash: 0123456789"
    )
    assert texts["parameters"] == f"{prompt}\n{settings}, Version: cdiff-rt 0.1.0".lstrip("\n")
    assert json.loads(texts["cdiff_rt"]) == parameters


@pytest.mark.parametrize(("temperature", "told"), [(1.0, False), (0.8, True), (0, True)])
def test_a_temperature_is_told_where_it_is_not_the_usual(temperature, told):
    line = formats.parameters_text(PARAMETERS | {"temperature": temperature, "prompt": "", "image": 0})["parameters"]
    assert (f"Eta: 1.0, Temperature: {temperature}, Seed" in line) == told
    assert ("Temperature" in line) == told


def test_rounding_to_the_nearest_differs_from_truncating_by_one():
    values = np.linspace(-1.2, 1.2, 3 * 1001, dtype=np.float32).reshape(1, 3, 7, 143)
    down, near = formats.to_uint8(values), formats.to_uint8(values, "nearest")
    np.testing.assert_array_equal(near, np.rint(((values + 1) * 127.5).clip(0, 255)).transpose(0, 2, 3, 1))
    assert set(np.unique(near.astype(int) - down)) == {0, 1}


def test_from_uint8_is_the_inverse_of_to_uint8():
    np.testing.assert_array_equal(formats.to_uint8(images.from_uint8(PICTURE), "nearest")[0], PICTURE)
