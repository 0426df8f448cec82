import pytest
import torch
import torch.nn.functional as F

from cdiff_rt.gpu import group_norm as ops
from cdiff_rt.gpu import group_norm_kernel
from cdiff_rt.gpu.group_norm import group_norm, on_cuda
from tests.gpu.launches import recorded
from tests.gpu.lints import capturable

FP16, FP32 = torch.float16, torch.float32


def inputs(channels=64, latent=(8, 8), *, dtype=FP32, groups=32, last=False, silu=True):
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(2, channels, *latent, generator=generator).to(dtype)
    weight, bias = (torch.randn(channels, generator=generator).to(dtype) for _ in range(2))
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x, groups, weight, bias, 1e-5, silu


@pytest.mark.parametrize("latent", [(9,), (4, 6), (2, 3, 4)])
@pytest.mark.parametrize("silu", [False, True])
def test_on_a_cpu_it_is_pytorchs(latent, silu):
    x, groups, weight, bias, eps, _ = inputs(latent=latent)
    normal = F.group_norm(x, groups, weight, bias, eps)
    assert torch.equal(group_norm(x, groups, weight, bias, eps, silu), F.silu(normal) if silu else normal)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_pytorch_knows_what_the_operation_does(last, silu):
    torch.library.opcheck(group_norm, inputs(last=last, silu=silu))


def test_it_can_be_captured():
    given = inputs()
    with capturable():
        group_norm(*given)


@pytest.mark.parametrize(("last", "tile"), [(False, (8, 1024)), (True, (8, 1024))])
def test_it_is_one_launch(last, tile):
    given = inputs(192, (32, 32), dtype=FP16, last=last)
    wanted = recorded(group_norm_kernel, "group_norm_kernel", lambda: on_cuda(*given))
    assert wanted.grid == (2 * 32, 1)
    assert wanted.args[0].data_ptr() == given[0].data_ptr() and wanted.args[3].stride() == wanted.args[0].stride()
    assert wanted.args[4:] == (6, 1024, 32, 1e-5)
    how = {"num_warps": 16, "num_stages": 1, "enable_fp_fusion": True}
    assert wanted.options == {"SILU": True, "LAST": last, "CHANNELS": tile[0], "PIXELS": tile[1]} | how


@pytest.mark.parametrize(
    ("channels", "pixels", "last", "tile"),
    [
        (1, 64, False, (1, 64)),
        (6, 4096, False, (2, 4096)),
        (6, 10**6, False, (1, 8192)),
        (60, 64, False, (64, 64)),
        (6, 4096, True, (8, 1024)),
        (1, 64, True, (1, 64)),
        (10**4, 1, True, (8192, 1)),
    ],
)
def test_a_tile_holds_what_lies_together(channels, pixels, last, tile):
    assert group_norm_kernel.tiling(channels, pixels, last) == tile


OTHERS = {
    "double": lambda: inputs(dtype=torch.float64),
    "gaps": lambda: (inputs(latent=(8, 9))[0][..., :8], *inputs()[1:]),
    "no latent": lambda: inputs(latent=()),
}


@pytest.mark.parametrize("given", OTHERS.values(), ids=OTHERS)
def test_else_it_is_pytorchs(given, monkeypatch):
    monkeypatch.setattr(group_norm_kernel, "launch", None)
    assert torch.equal(on_cuda(*given()), ops.on_cpu(*given()))


def test_large_groups_are_pytorchs(monkeypatch):
    given = inputs(64, (8, 8), groups=2)
    monkeypatch.setattr(group_norm_kernel, "launch", None)
    monkeypatch.setattr(ops, "LARGEST_GROUP", 2047)
    assert torch.equal(on_cuda(*given), ops.on_cpu(*given))
    monkeypatch.setattr(ops, "LARGEST_GROUP", 2048)
    with pytest.raises(TypeError):
        on_cuda(*given)
