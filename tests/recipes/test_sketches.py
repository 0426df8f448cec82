import dataclasses

import pytest
import torch

from cdiff_rt.nets.unet import UNet
from recipes.faces.config import FACES_128, SKETCH
from recipes.faces.sketches import agreement, clean, drawn, edges, features
from recipes.faces.slimmer import slim


@pytest.fixture
def square():
    """[1, 3, 40, 40]: a light square on dark, of whose colours one alone changes at its right half."""
    image = torch.full((1, 3, 40, 40), -0.5)
    image[..., 10:30, 10:30] = 0.5
    image[:, 2, 10:30, 20:30] = -0.2
    return image


def test_edges_are_where_colours_change_and_one_pixel_wide(square):
    (lines,) = edges(square)
    found = lines.nonzero().tolist()
    for y, x in ((20, 9.5), (20, 19.5), (20, 29.5), (9.5, 15), (29.5, 15)):
        assert min(abs(y - b) + abs(x - a) for b, a in found) <= 0.5
    assert not lines[:8].any() and not lines[12:28, 12:18].any()
    assert lines[20].sum() == 3


def test_agreement_forgives_one_pixel_and_no_more(square):
    lines = edges(square)
    assert agreement(lines, lines) == 1
    assert agreement(lines.roll(1, 2), lines) > 0.99
    assert agreement(lines.roll(4, 2), lines) < 0.6
    assert agreement(torch.zeros_like(lines), lines) == 0
    assert agreement(torch.ones_like(lines), lines) < 0.5  # everything black is no answer


def test_drawings_are_pictures_of_their_lines_and_no_two_alike(square):
    lines = edges(square).expand(64, -1, -1)
    pictures = drawn(lines, torch.Generator().manual_seed(0))
    assert pictures.shape == (64, 1, 40, 40) and pictures.min() >= 0 and pictures.max() <= 1
    exact = (pictures == clean(lines)).flatten(1).all(1)
    assert 0 < exact.sum() < 32
    ink = (1 - pictures).flatten(1).sum(1)
    assert ink[~exact].unique().numel() == (~exact).sum()
    near = torch.nn.functional.max_pool2d(lines[:1, None].float(), 9, 1, 4)
    assert ((1 - pictures) * (1 - near)).mean() < 0.02  # no lines but where there were some
    torch.testing.assert_close(pictures, drawn(lines, torch.Generator().manual_seed(0)))


def test_features_are_the_lines_within_the_face():
    lines = torch.ones(1, 64, 64, dtype=torch.bool)
    kept = features(lines)[0]
    assert kept[34, 32] and not kept[5].any() and not kept[:, 10].any()
    assert 0.15 < kept.float().mean() < 0.3


def test_of_equal_shape_the_slim_network_is_the_same():
    wide, narrow = (UNet(FACES_128.experts["mask"].unet) for _ in range(2))
    with torch.no_grad():
        slim(wide, narrow)
    assert all(torch.equal(a, b) for a, b in zip(wide.parameters(), narrow.parameters(), strict=True))


def test_a_slim_network_has_the_wide_one_s_frequencies_skips_and_channels():
    wide, narrow = UNet(FACES_128.experts["mask"].unet), UNet(SKETCH.unet)
    with torch.no_grad():
        slim(wide, narrow)
    a, b = wide.output_blocks[3][0].skip_connection.weight, narrow.output_blocks[3][0].skip_connection.weight
    torch.testing.assert_close(b[:, :64, 0, 0], a[:, :64, 0, 0] * 128 / 96)  # from below, all of them
    torch.testing.assert_close(b[:, 64:, 0, 0], a[:, 64::2, 0, 0] * 128 / 96)  # from the skip, every other one
    assert torch.equal(
        narrow.input_blocks[1][0].skip_connection.weight.count_nonzero(1).flatten(), torch.tensor([1, 0] * 32)
    )


def test_the_sketch_s_expert_knows_the_host_s_latents():
    host = FACES_128.experts["mask"]
    assert dataclasses.replace(SKETCH.diffuser, tokens_at_places=False) == host.diffuser
    same = dataclasses.replace(SKETCH.unet, model_channels=64, channel_mult=(1, 2), tokens_at_places=False)
    assert same == host.unet


def test_what_a_network_sees_beside_x_has_no_weight_at_first():
    wide, narrow = UNet(FACES_128.experts["mask"].diffuser), UNet(SKETCH.diffuser)
    with torch.no_grad():
        slim(wide, narrow)
    first, beside = narrow.input_blocks[0][0].weight[:, :16], narrow.input_blocks[0][0].weight[:, 16:]
    assert torch.equal(first, wide.input_blocks[0][0].weight) and beside.shape[1] == 128 and not beside.any()
