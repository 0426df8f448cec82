"""Parity with the reference implementation, whose outputs on weights of a stated rule lie in tests/data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cdiff_rt.export.published import our_name
from cdiff_rt.nets.autoencoder import AutoencoderConfig
from cdiff_rt.nets.collaborative import CollaborativeModel, ExpertConfig, ModelConfig
from cdiff_rt.nets.mask_encoder import MaskEncoderConfig
from cdiff_rt.nets.text_encoder import TextEncoderConfig
from cdiff_rt.nets.unet import UNetConfig
from tests.published_keys import KEYS
from tests.synthetic_weights import noise, weight

LATENT_SCALE = 0.141
TIMESTEP = torch.tensor([501])
GOLDEN = np.load(Path(__file__).parents[1] / "data" / "tiny_golden.npz")


def tiny_expert(encoder):
    branch, diffuser = (UNetConfig(3, out, 32, (1, 2, 3, 5), 2, (8, 4, 2), 32, 64) for out in (3, 1))
    return ExpertConfig(encoder, branch, diffuser)


TINY_512 = ModelConfig(
    {
        "mask": tiny_expert(MaskEncoderConfig(1024, 64)),
        "text": tiny_expert(TextEncoderConfig(30522, 77, 64, layers=2, heads=8, head_width=64)),
    },
    AutoencoderConfig(32, (1, 2, 4, 4), 2, 3),
)


@pytest.fixture(scope="module")
def model():
    model = CollaborativeModel(TINY_512).eval().requires_grad_(False)
    official = {our_name(key): key for key in KEYS["512"]}
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(weight(official[key], shape)) for key, shape in shapes.items()})
    return model


@pytest.fixture(scope="module")
def x():
    return torch.from_numpy(noise("pub/tiny/x", (2, 3, 16, 16))[:1])


def conditions():
    mask = np.eye(19, dtype=np.float32)[GOLDEN["mask_ids"]].transpose(0, 2, 1)
    return {"mask": torch.from_numpy(mask), "text": torch.from_numpy(GOLDEN["input_ids"])}


def assert_close(ours, reference, tolerance):
    difference = ours.numpy() - reference
    assert ours.shape == reference.shape
    assert np.abs(difference).max() <= tolerance
    assert difference.std() <= 5e-5 * reference.std()


def test_weights_follow_the_rule():
    made = weight("model.text_unet.diffusion_model.input_blocks.0.0.weight", (32, 3, 3, 3))
    assert made.dtype == np.float32
    assert made.ravel()[:4].tolist() == [
        -0.23254887759685516,
        -0.31275081634521484,
        -0.037995219230651855,
        0.020037611946463585,
    ]


@pytest.mark.parametrize("name", ["mask", "text"])
def test_condition_encoders(model, name):
    assert_close(model.experts[name].encoder(conditions()[name]), GOLDEN[f"{name}_emb"], 2e-5)


@pytest.mark.parametrize("name", ["mask", "text"])
def test_branches_and_dynamic_diffusers(model, x, name):
    expert = model.experts[name]
    out, logit = expert(x, expert.time(TIMESTEP), expert.condition(conditions()[name]))
    assert_close(out, GOLDEN[f"eps_{name}"], 2e-4)
    assert_close(logit, GOLDEN[f"logit_{name}"], 2e-4)


def test_autoencoder_decodes(model):
    decoded = model.vae.decode(torch.from_numpy(noise("pub/tiny/z", (1, 3, 16, 16))) / LATENT_SCALE)
    assert_close(decoded[..., ::4, ::4], GOLDEN["decoded_every_4th"], 2e-4)


def test_autoencoder_encodes(model):
    image = torch.from_numpy(noise("pub/tiny/image", (1, 3, 128, 128)) / np.float32(3**0.5))
    mean, logvar = model.vae.encode(image)
    assert_close(mean, GOLDEN["mean"], 2e-4)
    assert_close(logvar, GOLDEN["logvar"], 2e-4)
