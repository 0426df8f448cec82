import math

import pytest
import torch

from cdiff_rt.gpu import attention_kernel
from cdiff_rt.gpu.attention import attention, on_cuda
from cdiff_rt.gpu.attention_plan import choice
from cdiff_rt.nets.attention import attend
from tests.gpu.launches import recorded
from tests.gpu.lints import capturable

FP16, FP32 = torch.float16, torch.float32


def inputs(width=2, dtype=FP32, *, rows=9, keys=19, heads=4, batch=2, before=0, after=8):
    """q, keys and values; the latter slices of what other layers use too."""
    shape = heads * width
    generator = torch.Generator().manual_seed(width)
    q = torch.randn(batch, rows, shape, generator=generator).to(dtype)
    packed = torch.randn(batch, keys, before + 2 * shape + after, generator=generator).to(dtype)
    keys, values = packed[:, :, before : before + 2 * shape].chunk(2, dim=2)
    return q, keys, values, heads, width**-0.5


@pytest.mark.parametrize("width", [2, 3, 12, 64])
def test_on_a_cpu_it_is_the_definition(width):
    assert torch.equal(attention(*inputs(width)), attend(*inputs(width)))


def test_the_definition():
    q, keys, values, heads, _ = inputs(3)
    scale = 0.3  # of padded heads it is that of the true width
    for h in range(heads):
        q_h, k_h, v_h = (x[:, :, 3 * h : 3 * h + 3] for x in (q, keys, values))
        right = (q_h @ k_h.transpose(1, 2) * scale).softmax(-1) @ v_h
        torch.testing.assert_close(attend(q, keys, values, heads, scale)[:, :, 3 * h : 3 * h + 3], right)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_pytorch_knows_what_the_operation_does(heads, masked):
    given = inputs(heads=heads)
    mask = torch.zeros(2, 1, 1, 19) if masked else None
    torch.library.opcheck(attention, (*given, mask))


def test_it_can_be_captured():
    given = inputs()
    with capturable():
        attention(*given)


def test_a_narrow_head_is_one_launch():
    q, keys, values, heads, scale = inputs(2, FP16, rows=1024, keys=77, heads=32)
    wanted = recorded(attention_kernel, "lanes_kernel", lambda: on_cuda(q, keys, values, heads, scale))
    assert wanted.grid == (2 * 4, 1024 // 8)
    assert all(a is b for a, b in zip(wanted.args[:3], (q, keys, values), strict=True))
    assert wanted.args[3].shape == q.shape and wanted.args[3].is_contiguous()
    assert wanted.args[4:13] == (1024 * 64, 64, 77 * 136, 136, 77 * 136, 136, 1024, 77, 32)
    assert math.isclose(wanted.args[13], scale * math.log2(math.e))
    blocks = {"D": 2, "ROWS": 8, "KEYS": 16, "HEADS": 8, "AHEAD": 5, "PAIRED": True, "EVEN": False}
    assert wanted.options == blocks | {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}


def test_a_wider_one_is_too():
    given = inputs(12, FP16, rows=70, keys=64, heads=3)
    wanted = recorded(attention_kernel, "tiles_kernel", lambda: on_cuda(*given))
    assert wanted.grid == (2 * 3, 2)
    blocks = {"D": 12, "WIDTH": 16, "ROWS": 64, "KEYS": 64, "EVEN": True}
    assert wanted.options == blocks | {"num_warps": 2, "num_stages": 1, "enable_fp_fusion": False}


@pytest.mark.parametrize(
    ("gaps", "paired"), [((0, 8), True), ((2, 2), True), ((1, 7), False), ((0, 7), False)], ids=str
)
def test_halves_are_read_in_twos_where_words_are_aligned(gaps, paired):
    given = inputs(2, FP16, before=gaps[0], after=gaps[1])
    wanted = recorded(attention_kernel, "lanes_kernel", lambda: on_cuda(*given))
    assert wanted.options["PAIRED"] is paired


@pytest.mark.parametrize(("width", "dtype"), [(3, FP16), (2, FP32)])
def test_and_not_where_there_are_none(width, dtype):
    wanted = recorded(attention_kernel, "lanes_kernel", lambda: on_cuda(*inputs(width, dtype)))
    assert wanted.options["PAIRED"] is False


OTHERS = {
    "wide": lambda *given: inputs(64, FP16),
    "double": lambda *given: inputs(2, torch.float64),
    "masked": lambda *given: (*given, torch.zeros(2, 1, 1, 19, dtype=FP16)),
    "scattered": lambda q, *others: (q.transpose(1, 2).contiguous().transpose(1, 2), *others),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_else_it_is_pytorchs(change, monkeypatch):
    given = inputs(2, FP16)
    assert choice(2, FP16) is not None
    monkeypatch.setattr(attention_kernel, "launch", None)
    assert torch.equal(on_cuda(*change(*given)), attend(*change(*given)))
