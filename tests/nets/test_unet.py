import dataclasses
import math

import pytest
import torch

from cdiff_rt.nets.unet import ResBlock, SpatialTransformer, TransformerBlock, UNet, UNetConfig, timestep_embedding
from tests.nets import naive

CONFIG = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2,),
    num_heads=4,
    context_dim=10,
)


@pytest.fixture(scope="module")
def unet():
    return naive.randomise(UNet(CONFIG))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def inputs(batch=2):
    return torch.randn(batch, 3, 8, 8), torch.tensor([981, 21, 500][:batch]), torch.randn(batch, 5, 10)


@pytest.mark.parametrize("t", [0, 1, 501, 999])
def test_timestep_embedding_is_cosines_then_sines(t):
    frequencies = [math.exp(-math.log(10000) * i / 16) for i in range(16)]
    expected = [math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies]
    ours = timestep_embedding(torch.tensor([7, t]), 32)[1]
    assert ours.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("out_channels", [32, 64])
def test_res_block_adds_the_time_row_between_its_convolutions(out_channels):
    block = naive.randomise(ResBlock(32, out_channels, dataclasses.replace(CONFIG, model_channels=3)))
    x, emb = torch.randn(2, 32, 5, 5), torch.randn(2, 12)
    h = naive.conv(naive.silu(naive.group_norm(x, block.in_layers[0], 1e-5)), block.in_layers[2])
    h = h + naive.linear(naive.silu(emb), block.emb_layers[1])[:, :, None, None]
    h = naive.conv(naive.silu(naive.group_norm(h, block.out_layers[0], 1e-5)), block.out_layers[3])
    skip = x if out_channels == 32 else naive.conv(x, block.skip_connection)
    naive.assert_same(block(x, block.emb_layers(emb)), skip + h)


def naive_transformer_block(block, x, context, heads, width):
    def attend(attention, h, source):
        q, k, v = (
            naive.linear(h, attention.to_q),
            naive.linear(source, attention.to_k),
            naive.linear(source, attention.to_v),
        )
        return naive.linear(naive.softmax_attention(q, k, v, heads, width**-0.5), attention.to_out[0])

    h = naive.layer_norm(x, block.norm1)
    x = x + attend(block.attn1, h, h)
    x = x + attend(block.attn2, naive.layer_norm(x, block.norm2), context)
    value, gate = naive.linear(naive.layer_norm(x, block.norm3), block.ff.net[0].proj).chunk(2, -1)
    return x + naive.linear(value * naive.gelu(gate), block.ff.net[2])


@pytest.mark.parametrize("dim", [32, 64])
def test_transformer_block_attends_to_itself_then_to_the_context(dim):
    block = naive.randomise(TransformerBlock(dim, CONFIG))
    x, context = torch.randn(2, 9, dim), torch.randn(2, 5, 10)
    expected = naive_transformer_block(block, x, context, heads=4, width=dim // 4)
    naive.assert_same(block(x, block.attn2.to_k(context), block.attn2.to_v(context)), expected)


def test_spatial_transformer_reads_pixels_row_by_row_and_adds_its_input():
    layer = naive.randomise(SpatialTransformer(32, CONFIG))
    x, context = torch.randn(2, 32, 3, 4), torch.randn(2, 5, 10)
    h = naive.conv(naive.group_norm(x, layer.norm, 1e-6), layer.proj_in)
    tokens = torch.stack([h[:, :, y, column] for y in range(3) for column in range(4)], dim=1)
    tokens = naive_transformer_block(layer.transformer_blocks[0], tokens, context, heads=4, width=8)
    pixels = torch.stack([tokens[:, 4 * y : 4 * y + 4].mT for y in range(3)], dim=2)
    cross = layer.cross_attention
    naive.assert_same(layer(x, cross.to_k(context), cross.to_v(context)), x + naive.conv(pixels, layer.proj_out))


def test_whole_network_is_the_composition_of_its_stages(unet):
    """CONFIG's topology written out, stage by stage, from blocks that the tests above hold to their equations."""
    x, t, context = inputs()
    emb = unet.time_embed(timestep_embedding(t, 32))

    def res(stage, h):
        return stage[0](h, stage[0].emb_layers(emb))

    def attend(layer, h):
        return layer(h, layer.cross_attention.to_k(context), layer.cross_attention.to_v(context))

    down, up = unet.input_blocks, unet.output_blocks
    h0 = naive.conv(x, down[0][0])
    h1 = res(down[1], h0)
    h2 = naive.conv(h1, down[2][0].op, stride=2)
    h3 = attend(down[3][1], res(down[3], h2))
    first, middle, last = unet.middle_block
    h = last(attend(middle, first(h3, first.emb_layers(emb))), last.emb_layers(emb))
    h = attend(up[0][1], res(up[0], torch.cat([h, h3], 1)))
    h = attend(up[1][1], res(up[1], torch.cat([h, h2], 1)))
    h = naive.conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3), up[1][2].conv)
    h = res(up[2], torch.cat([h, h1], 1))
    h = res(up[3], torch.cat([h, h0], 1))
    expected = naive.conv(naive.silu(naive.group_norm(h, unet.out[0], 1e-5)), unet.out[2])
    naive.assert_same(unet(x, t, context), expected)


def test_one_row_for_the_whole_batch_is_that_row_for_each(unet):
    x, _, context = inputs(3)
    row, packed = unet.time_projections(torch.tensor([501])), unet.context_kv(context)
    naive.assert_same(unet.denoise(x, row, packed), unet.denoise(x, row.expand(3, -1).contiguous(), packed))


def test_images_of_a_batch_do_not_see_each_other(unet):
    x, t, context = inputs(3)
    together = unet(x, t, context)
    for i in range(3):
        naive.assert_same(unet(x[i : i + 1], t[i : i + 1], context[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("changed", ["x", "t", "context"])
def test_output_depends_on_every_input(unet, changed):
    given = dict(zip(("x", "t", "context"), inputs(), strict=True))
    other = given | {changed: given[changed].flip(0)}
    assert (unet(**given) - unet(**other)).abs().mean() > 0.01


def test_packed_widths_are_those_announced(unet):
    _, t, context = inputs()
    assert unet.time_projections(t).shape == (2, unet.projection_width)
    assert unet.context_kv(context).shape == (2, 5, unet.context_width)


def test_tokens_at_places_are_channels_beside_x_where_they_belong():
    torch.manual_seed(0)
    unet = naive.randomise(UNet(dataclasses.replace(CONFIG, tokens_at_places=True, attention_resolutions=())))
    plain = UNet(
        dataclasses.replace(CONFIG, in_channels=CONFIG.in_channels + CONFIG.context_dim, attention_resolutions=())
    )
    plain.load_state_dict(unet.state_dict())
    x, t, _ = inputs()
    tokens = torch.randn(len(x), x.shape[2] * x.shape[3], CONFIG.context_dim)
    beside = tokens.reshape(len(x), *x.shape[2:], -1).movedim(-1, 1)
    unet.middle_block[1].cross_attention.to_out[0].weight.data.zero_()
    plain.middle_block[1].cross_attention.to_out[0].weight.data.zero_()
    naive.assert_same(unet(x, t, tokens), plain(torch.cat([x, beside], 1), t, tokens))
    assert unet.context_kv(tokens).shape[2] == unet.context_width


@pytest.mark.parametrize(
    ("resolutions", "attending"),
    [((), set()), ((1,), {1}), ((2,), {3}), ((4,), {5}), ((1, 4), {1, 5}), ((4, 2, 1), {1, 3, 5}), ((8,), set())],
)
def test_attention_stands_where_the_downsampling_factor_is_listed(resolutions, attending):
    config = dataclasses.replace(CONFIG, channel_mult=(1, 1, 1), attention_resolutions=resolutions)
    with torch.device("meta"):
        unet = UNet(config)
    found = {
        i for i, stage in enumerate(unet.input_blocks) if any(isinstance(layer, SpatialTransformer) for layer in stage)
    }
    assert found == attending
    assert isinstance(unet.middle_block[1], SpatialTransformer)
    outputs = [any(isinstance(layer, SpatialTransformer) for layer in stage) for stage in unet.output_blocks]
    assert sum(outputs) == 2 * len(attending)


def test_a_dynamic_diffuser_has_one_output_channel():
    unet = naive.randomise(UNet(dataclasses.replace(CONFIG, out_channels=1)))
    assert unet(*inputs()).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(("multiple", "width"), [(1, 3), (8, 8), (2, 4), (3, 3)])
def test_padded_width_is_the_next_multiple(multiple, width):
    config = dataclasses.replace(CONFIG, num_heads=32, head_multiple=multiple)
    assert config.padded_width(96) == width


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_latents_may_be_lines_images_or_volumes(dims):
    unet = naive.randomise(UNet(dataclasses.replace(CONFIG, dims=dims)))
    x, t, context = torch.randn(2, 3, *(4,) * dims), torch.tensor([981, 21]), torch.randn(2, 5, 10)
    out = unet(x, t, context)
    assert out.shape == x.shape
    assert not torch.allclose(out, unet(x, t, context.flip(0)), atol=1e-3)


def test_a_line_is_an_image_of_one_row():
    """With 3x3 kernels that are zero off their middle row, an image of one row is convolved as a line."""
    line = naive.randomise(UNet(dataclasses.replace(CONFIG, dims=1)))
    image = UNet(CONFIG).eval()
    weights = {}
    for name, weight in line.state_dict().items():
        shape = image.state_dict()[name].shape
        if weight.shape == shape:
            weights[name] = weight
        else:
            weights[name] = torch.zeros(shape)
            weights[name][:, :, shape[2] // 2] = weight
    image.load_state_dict(weights)
    x, t, context = torch.randn(2, 3, 8), torch.tensor([981, 21]), torch.randn(2, 5, 10)
    flat = [image.input_blocks, image.middle_block, image.output_blocks]
    for module in (m for part in flat for m in part.modules() if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)):
        module.stride = (1, 2)  # one row stays one row
    expected = line(x, t, context)
    for module in (m for m in image.modules() if type(m).__name__ == "Upsample"):
        module.forward = lambda h, conv=module.conv: conv(torch.nn.functional.interpolate(h, scale_factor=(1.0, 2.0)))
    naive.assert_same(image(x[:, :, None], t, context)[:, :, 0], expected)
