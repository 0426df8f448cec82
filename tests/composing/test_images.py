"""Pictures go into compositions too: to be edited, painted into, and as pairs."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cdiff_rt import Expert, Inpainting, Parameterisation, Pipeline, calibrate, compose, export_composition
from cdiff_rt.errors import BadRequest
from tests.command_line import run

X0 = Parameterisation("x0")
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


class Grey(nn.Module):
    """Predicts an image that is half of what it is given, and grey."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x, time, level):
        return x * self.weight + level[:, :, None, None] / 2


GREY = {"grey": Expert(Grey(), X0, condition=(1,))}
EDIT = {"source": {"grey": 0.1}, "grey": 0.6, "steps": 4, "strength": 0.5}


def halves(image):
    """Latents [B, 3, 8, 8] of images [B, 3, 16, 16]: means of 2 x 2."""
    return image.reshape(len(image), 3, 8, 2, 8, 2).mean((3, 5))


def doubled(z):
    return np.repeat(np.repeat(z, 2, 2), 2, 3)


def made_of(how):
    if how == "pixels":
        return compose(GREY, (3, 16, 16), image_size=16)
    return compose(GREY, (3, 8, 8), image_size=16, decode=doubled, encode=halves)


@pytest.mark.parametrize("how", ["pixels", "functions"])
def test_a_picture_is_encoded_painted_into_and_edited(how):
    pipeline, plain = made_of(how), PICTURE.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    latents = pipeline.encode(PICTURE)
    np.testing.assert_allclose(latents, plain if how == "pixels" else halves(plain), atol=1e-5)
    assert pipeline.decode(latents).shape == (1, 16, 16, 3)
    keep = np.zeros((16, 16), np.uint8)
    keep[:, :8] = 1
    painted = pipeline.generate(grey=0, inpaint=Inpainting(PICTURE, keep), steps=4, eta=0.0).latents
    error = np.abs(painted - latents).mean((0, 1, 2))
    assert error[:3].max() < 0.15 and error[-3:].min() > 0.2
    edited = pipeline.edit(PICTURE, **EDIT)
    assert edited.images.shape == (1, 16, 16, 3)


def test_pictures_are_clean_data_of_pairs():
    experts = GREY | {"black": Expert(lambda x, time: x * 0 - 1, X0)}
    pipeline = compose(experts, (3, 16, 16), image_size=16)
    found = calibrate(pipeline, [(np.full((16, 16, 3), i, np.uint8), {"grey": 0}) for i in range(20)], levels=2)
    assert found.table["calibrated"] < found.table["plain mean"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"encode": halves}, "encode: a function; give a function or a module, and decode= beside it"),
        ({"encode": 5, "decode": doubled}, "encode: a int; give a function or a module"),
        ({"encode": lambda a: a, "decode": doubled}, r"encode: it returned float32 of shape \(1, 3, 16, 16\); return"),
        ({"encode": nn.Linear(3, 4), "decode": doubled}, "encode, its module: it cannot be called with"),
        ({"decode": doubled}, "image: composed has no encoder of images; take another model"),
    ],
    ids=["no decoder", "number", "shape", "module", "none"],
)
def test_what_encodes_is_looked_at(how, words):
    shape = (3, 16, 16) if "decode" not in how else (3, 8, 8)
    with pytest.raises(BadRequest, match=words):
        compose(GREY, shape, image_size=16, **how).edit(PICTURE, **EDIT)


class Down(nn.Module):
    """Autoencoders of diffusers are tested beside these; this one has no library."""

    def forward(self, image):
        return torch.nn.functional.avg_pool2d(image, 2)


class Up(nn.Module):
    def forward(self, z):
        return torch.nn.functional.interpolate(z, scale_factor=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param("pixels", marks=pytest.mark.long), "modules"])
def test_a_bundle_edits_what_the_composition_edits(how, tmp_path):
    made = compose(GREY, (3, 8, 8), image_size=16, decode=Up(), encode=Down()) if how == "modules" else made_of(how)
    export_composition(made, tmp_path / "bundle")
    again, asked = Pipeline.from_pretrained(tmp_path / "bundle"), EDIT | {"seed": 2}
    assert np.abs(again.edit(PICTURE, **asked).latents - made.edit(PICTURE, **asked).latents).max() < 1e-5
    Image.fromarray(PICTURE).save(tmp_path / "photo.png")
    words = [
        "--image",
        tmp_path / "photo.png",
        "--condition",
        "grey=0.6",
        "--source",
        "grey=0.1",
        "--steps",
        "4",
        "--out",
        tmp_path / "edited.png",
    ]
    edited = run("edit", "--model", tmp_path / "bundle", *words)
    assert edited.exit_code == 0, edited.stderr
