import dataclasses

import pytest
import torch

from cdiff_rt.nets.autoencoder import AttentionBlock, AutoencoderConfig, AutoencoderKL, Downsample, ResnetBlock
from tests.nets import naive

CONFIG = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=4)
VARIANTS = {
    "reference": (CONFIG, 2),
    "deeper": (dataclasses.replace(CONFIG, channel_mult=(1, 1, 2, 2)), 8),
    "patches": (dataclasses.replace(CONFIG, patch=4), 8),
    "patches and a linear code": (dataclasses.replace(CONFIG, patch=4, linear=True), 8),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("config", "factor"), VARIANTS.values(), ids=VARIANTS)
def test_latents_are_smaller_by_the_factor(config, factor):
    assert config.factor == factor
    vae = naive.randomise(AutoencoderKL(config))
    mean, logvar = vae.encode(torch.randn(2, 3, 32, 16))
    assert mean.shape == logvar.shape == (2, 4, 32 // factor, 16 // factor)
    assert vae.decode(mean).shape == (2, 3, 32, 16)


@pytest.mark.parametrize(("config", "factor"), VARIANTS.values(), ids=VARIANTS)
def test_only_a_linear_code_adds_keys(config, factor):
    with torch.device("meta"):
        keys = AutoencoderKL(config).state_dict()
    assert any(key.startswith("linear_") for key in keys) == config.linear


def test_downsampling_pads_right_and_bottom_only():
    layer = Downsample(1)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    assert layer(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9, 6], [6, 4]]


@pytest.mark.parametrize("out_channels", [32, 64])
def test_resnet_block(out_channels):
    block = naive.randomise(ResnetBlock(32, out_channels))
    x = torch.randn(2, 32, 5, 5)
    h = naive.conv(naive.silu(naive.group_norm(x, block.norm1, 1e-6)), block.conv1)
    h = naive.conv(naive.silu(naive.group_norm(h, block.norm2, 1e-6)), block.conv2)
    skip = x if out_channels == 32 else naive.conv(x, block.nin_shortcut)
    naive.assert_same(block(x), skip + h)


def test_attention_block_attends_over_all_pixels_with_one_head():
    block = naive.randomise(AttentionBlock(32))
    x = torch.randn(2, 32, 3, 5)
    normed = naive.group_norm(x, block.norm, 1e-6)
    q, k, v = (naive.conv(normed, layer).flatten(2).mT for layer in (block.q, block.k, block.v))
    mixed = naive.softmax_attention(q, k, v, 1, 32**-0.5).mT.unflatten(2, (3, 5))
    naive.assert_same(block(x), x + naive.conv(mixed, block.proj_out))


@pytest.mark.parametrize(("bias", "expected"), [(1e3, 20.0), (-1e3, -30.0)])
def test_log_variance_is_clamped(bias, expected):
    vae = naive.randomise(AutoencoderKL(CONFIG))
    torch.nn.init.constant_(vae.quant_conv.bias, bias)
    assert vae.encode(torch.randn(1, 3, 8, 8))[1].unique().tolist() == [expected]


def test_linear_code_is_added_to_what_the_networks_say():
    vae = naive.randomise(AutoencoderKL(VARIANTS["patches and a linear code"][0]))
    image, z = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 2, 2)
    blocks = image.unfold(2, 8, 8).unfold(3, 8, 8)  # [1, 3, 2, 2, 8, 8]
    code = torch.einsum("bcyxij,zcij->bzyx", blocks, vae.linear_in.weight) + vae.linear_in.bias[:, None, None]
    naive.assert_same(vae.encode(image)[0], vae.quant_conv(vae.encoder(image))[:, :4] + code)
    pixels = torch.einsum("bzyx,zcij->bcyixj", z, vae.linear_out.weight).reshape(1, 3, 16, 16)
    expected = vae.decoder(vae.post_quant_conv(z)) + pixels + vae.linear_out.bias[:, None, None]
    naive.assert_same(vae.decode(z), expected)
