"""The rule that makes the weights of golden data."""

import numpy as np

from cdiff_rt.bench.synthetic import weight
from tests.conformance.golden import canonical


def test_weights_follow_the_rule():
    made = weight("model.text_unet.diffusion_model.input_blocks.0.0.weight", (32, 3, 3, 3))
    assert made.dtype == np.float32
    assert made.ravel()[:4].tolist() == [
        -0.23254887759685516,
        -0.31275081634521484,
        -0.037995219230651855,
        0.020037611946463585,
    ]


def test_uni_modal_keys_have_the_weights_of_the_whole_model():
    assert canonical("model.diffusion_model.out.2.bias", "mask") == "model.seg_mask_unet.diffusion_model.out.2.bias"
    text = "cond_stage_model.text_cond_stage_model.transformer.norm.bias"
    assert canonical("cond_stage_model.transformer.norm.bias", "text") == text
    assert canonical("quant_conv.bias", "vae") == "first_stage_model.quant_conv.bias"
    assert canonical("first_stage_model.quant_conv.bias", "text") == "first_stage_model.quant_conv.bias"
