import math

import pytest
import torch

from cdiff_rt.export.published import PUBLISHED, our_name
from cdiff_rt.nets.collaborative import CollaborativeModel
from tests.published_keys import KEYS

SIZES = sorted(PUBLISHED)
# Counted on the official classes; those of the text encoder's output layer, 30522 x (640 + 1), are never used.
PARAMETERS = {
    "experts.mask.unet": 403_623_939,
    "experts.text.unet": 403_623_939,
    "experts.mask.diffuser": 13_136_321,
    "experts.text.diffuser": 13_136_321,
    "experts.mask.encoder": 656_000,
    "experts.text.encoder": 186_154_682 - 30522 * 641,
}
VAE_PARAMETERS = {"512": (34_154_374, 49_485_571), "256": (22_351_238, 32_960_771)}


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def model(size):
    with torch.device("meta"):
        return CollaborativeModel(PUBLISHED[size])


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_tensor_of_the_released_model_has_its_place_and_shape(model, size):
    released = {our_name(key): tuple(shape) for key, shape in KEYS[size].items() if our_name(key)}
    assert released == {key: tuple(weight.shape) for key, weight in model.state_dict().items()}


def test_no_two_official_keys_share_a_name(size):
    names = [our_name(key) for key in KEYS[size] if our_name(key)]
    assert len(names) == len(set(names))


def test_only_schedule_buffers_and_token_logits_are_left_out(size):
    left_out = {key: shape for key, shape in KEYS[size].items() if our_name(key) is None}
    assert sum(shape == [1000] and "." not in key for key, shape in left_out.items()) == 12
    logits = "cond_stage_model.text_cond_stage_model.transformer.to_logits"
    assert {key for key in left_out if "." in key} == {f"{logits}.weight", f"{logits}.bias"}


@pytest.mark.parametrize(("part", "count"), PARAMETERS.items())
def test_parameter_counts_are_those_of_the_reference(model, part, count):
    assert parameters(model.get_submodule(part)) == count


def test_autoencoder_has_the_reference_s_parameters(model, size):
    assert (parameters(model.vae.encoder), parameters(model.vae.decoder)) == VAE_PARAMETERS[size]


def test_all_parameters_of_the_released_file_are_accounted_for(model, size):
    total = {"512": 1_103_983_201, "256": 1_075_655_265}[size]  # with 12 buffers of 1000 values
    unused = sum(math.prod(shape) for key, shape in KEYS[size].items() if our_name(key) is None)
    assert parameters(model) + unused == total


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("model.seg_mask_unet.diffusion_model.out.2.weight", "experts.mask.unet.out.2.weight"),
        ("model.text_confidence_predictor.diffusion_model.out.2.bias", "experts.text.diffuser.out.2.bias"),
        ("cond_stage_model.seg_mask_cond_stage_model.linear.weight", "experts.mask.encoder.linear.weight"),
        ("first_stage_model.quant_conv.bias", "vae.quant_conv.bias"),
        ("betas", None),
        ("cond_stage_model.text_cond_stage_model.transformer.to_logits.bias", None),
    ],
)
def test_our_name(official, ours):
    assert our_name(official) == ours
