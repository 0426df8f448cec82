import math

import pytest
import torch

from cdiff_rt.export.published import PUBLISHED
from cdiff_rt.gpu.attention_plan import CHOICES, Cost, blocks, choice, cost
from cdiff_rt.nets.attention import Attention
from cdiff_rt.nets.unet import UNet

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("width", "dtype", "kernel", "rows"),
    [
        (1, FP16, "lanes", 8),
        (2, FP32, "lanes", 8),
        (3, BF16, "lanes", 8),
        (4, FP16, "lanes", 4),
        (8, FP32, "lanes", 4),
        (9, FP16, "tiles", 64),
        (12, FP32, "lanes", 2),
        (32, BF16, "tiles", 64),
    ],
)
def test_narrow_heads_are_ours(width, dtype, kernel, rows):
    found = choice(width, dtype)
    assert (found.kernel, found.rows) == (kernel, rows)


@pytest.mark.parametrize(("width", "dtype"), [(17, FP32), (33, FP16), (64, BF16), (2, torch.float64)])
def test_and_others_pytorchs(width, dtype):
    assert choice(width, dtype) is None


@pytest.mark.parametrize("of", CHOICES, ids=str)
@pytest.mark.parametrize("keys", [1, 16, 19, 64, 77, 1024, 1025])
def test_blocks_hold_everything_and_few_empty_slots(of, keys):
    b = blocks(of, 1000, keys, 30)
    assert b.heads * of.heads >= 30 and b.rows * of.rows >= 1000
    assert keys <= b.slots < keys + b.keys * b.ahead
    assert of.kernel == "tiles" or b.keys * of.heads == 32 * of.warps  # a slot for each thread


@pytest.mark.parametrize(
    ("width", "rows", "keys", "expected"),
    [
        (2, 1024, 1024, Cost(2**25, 2**25 + 2**15 * 16 * 9, 4 * 2**25, 0, 2 * 2 * 2048 * 64)),
        (3, 1024, 19, Cost(2**15 * 19, 2**15 * (32 + 16 * 2), 6 * 2**20, 0, 2 * 2 * 1043 * 96)),
        (12, 1024, 77, Cost(2**15 * 77, 2**15 * (128 + 4 * 2), 0, 32 * 2**22, 2 * 2 * 1101 * 384)),
        (64, 100, 100, Cost(32 * 10**4, 32 * 10**4, 128 * 32 * 10**4, 0, 2 * 2 * 200 * 2048)),
    ],
)
def test_what_an_attention_costs(width, rows, keys, expected):
    assert cost(1, rows, keys, 32, width, FP16) == expected


def costs(network, latent, tokens):
    """Of one call, of the published sizes, on tensors without data."""
    found = []

    def note(q, keys, values, heads, scale, mask):
        found.append(cost(len(q), q.shape[1], keys.shape[1], heads, round(scale**-2), FP16))
        return torch.empty_like(q)

    for module in network.modules():
        if isinstance(module, Attention):
            module.attend = note
    network.denoise(
        torch.zeros(1, 3, *latent),
        torch.zeros(1, network.projection_width),
        torch.zeros(1, *tokens, network.context_width),
    )
    return found


def test_exponentials_of_the_512_model():
    """758 million a step, half of them the dynamic diffusers'; the kernels compute a seventh more."""
    of = PUBLISHED[0].model.experts["mask"]
    with torch.device("meta"), torch.inference_mode():
        branch, diffuser = (
            [one for tokens in (19, 77) for one in costs(net, (64, 64), (tokens,))]
            for net in (UNet(of.unet), UNet(of.diffuser))
        )
    scores = sum(each.scores for each in branch)
    assert scores == sum(each.scores for each in diffuser)
    assert round(2 * scores / 1e6) == 758
    computed = sum(each.exponentials for each in branch + diffuser)
    assert math.isclose(computed / (2 * scores), 8 / 7, rel_tol=0.02)
