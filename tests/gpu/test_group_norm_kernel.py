"""The kernel without a GPU: executed as PTX, and counted as machine code; and with one."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cdiff_rt.gpu import group_norm_kernel as kernels
from cdiff_rt.gpu.group_norm import group_norm, on_cpu
from tests.gpu import launches, ptx, sass

CAPABILITIES = [90, *(pytest.param(c, marks=pytest.mark.slow) for c in (80, 86, 89, 100, 120))]
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@dataclass
class Case:
    x: torch.Tensor
    groups: int
    weight: torch.Tensor
    bias: torch.Tensor
    silu: bool
    out: torch.Tensor

    @property
    def tensors(self):
        return {"x": self.x, "weight": self.weight, "bias": self.bias, "out": self.out}

    def launch(self, module=kernels):
        x, out = self.x.flatten(2), self.out.flatten(2)
        assert x.data_ptr() == self.x.data_ptr(), "flattened, it is a copy"
        module.launch(x, self.weight, self.bias, out, self.groups, 1e-5, self.silu)

    def expected(self):
        """In float64."""
        x, weight, bias = (part.double().cpu() for part in (self.x, self.weight, self.bias))
        return on_cpu(x, self.groups, weight, bias, 1e-5, self.silu)


def case(channels, latent, groups=4, dtype=FP16, *, last=False, silu=True, mean=3.0):
    generator = torch.Generator().manual_seed(channels)

    def tensor(*shape):
        return torch.randn(*shape, generator=generator)

    x = (mean + tensor(1, channels, *(1,) * len(latent)) + tensor(2, channels, *latent)).to(dtype)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    weight, bias = tensor(channels).to(dtype), tensor(channels).to(dtype)
    return Case(x, groups, weight, bias, silu, torch.full_like(x, torch.nan))


def check_results(one, want):
    eps = torch.finfo(one.out.dtype).eps
    np.testing.assert_allclose(one.out.double().cpu(), want, rtol=eps, atol=2e-5, err_msg="out")


def wanted(module, one):
    return launches.recorded(module, "group_norm_kernel", lambda: one.launch(module))


def check(one, capability=90, module=kernels):
    """Right results; everything is read, results are written once."""
    want = one.expected()
    memory, _ = launches.simulate(module.group_norm_kernel, wanted(module, one), capability)
    check_results(one, want)
    assert (memory["out"].writes == 1).all(), "how often bytes of out are written"
    assert all((memory[name].reads > 0).all() for name in ("x", "weight", "bias")), "what is read"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("dtype", "last"), [(FP16, False), (BF16, True), (FP32, False)])
def test_ptx_normalises(dtype, last, capability):
    check(case(24, (5, 7), dtype=dtype, last=last), capability)


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("channels", "latent", "groups"),
    [(32, (8, 8), 32), (192, (32, 32), 32), (18, (9000,), 2), (24, (2, 3, 5), 8), (600, (1, 1), 2), (960, (8, 8), 32)],
)
def test_ptx_of_any_size(channels, latent, groups, last):
    check(case(channels, latent, groups, last=last))


@pytest.mark.parametrize("silu", [False, True])
def test_a_mean_far_from_zero_does_not_swallow_the_variance(silu):
    check(case(8, (16, 16), 2, FP32, mean=1000.0, silu=silu))


def test_equal_values_become_the_bias():
    one = case(8, (4, 4), 2, FP32, silu=False)
    one.x[:] = 7.25
    launches.simulate(kernels.group_norm_kernel, wanted(kernels, one))
    assert torch.equal(one.out, one.bias[None, :, None, None].expand_as(one.out))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_machine_code_reads_and_writes_16_bytes_at_once(capability):
    """Where channels come first and pixels are a multiple of 16: eight numbers each, in both passes."""
    one = case(192, (64, 64), 32)
    usage = sass.usage(launches.build(kernels.group_norm_kernel, wanted(kernels, one), capability).asm["cubin"])
    assert usage.count("LDG.E.128") == 4 and usage.count("STG") == usage.count("STG.E.128") == 2
    assert usage.count("LDL", "STL") == usage.stack == usage.local == 0
    assert usage.registers <= 64  # of 16 warps, two blocks fit


MUTANTS = {
    "mean forgotten": ("value = (apart - mean)", "value = apart", False),
    "mean of absent pixels": ("value.to(tl.float32) - first, 0.0)", "value.to(tl.float32) - first, 1.0)", False),
    "variance not centred": ("/ count - mean * mean", "/ count", False),
    "variance of one too few": ("tl.sum(squares) / count", "tl.sum(squares) / (count - 1)", False),
    "eps forgotten": ("0.0) + eps", "0.0) + 0.01", False),
    "weight of the first group": ("of_group, known = group * channels", "of_group, known = 0 * channels", False),
    "bias forgotten": ("* factor + offset", "* factor", False),
    "sigmoid upside down": ("tl.exp2(-LOG2_E", "tl.exp2(LOG2_E", False),
    "silu forgotten": ("if SILU:", "if not SILU:", False),
    "the other order": ("if LAST else channel * pixels + pixel", "if LAST else pixel * channels + channel", False),
    "the other order, last": ("return pixel * channels + channel if", "return pixel + channel * pixels if", True),
    "the first image for all": ("of_image = b * groups", "of_image = 0 * b * groups", False),
    "last pixels skipped": (
        "inside = known & (p + pixel < pixels)",
        "inside = known & (p + pixel < pixels - 1)",
        False,
    ),
    "stores unmasked": ("inside = known & (p + pixel < pixels)", "inside = known & (p + pixel < PIXELS)", False),
    "channels of neighbours": (
        "of_group, known = group * channels + c + channel, c + channel < channels",
        "of_group, known = group * channels + c + channel, c + channel < CHANNELS",
        True,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new", "last"), MUTANTS.values(), ids=MUTANTS)
def test_a_planted_fault_is_found(old, new, last, tmp_path):
    module = launches.mutant(kernels, old, new, tmp_path)
    check(case(24, (5, 7), last=last))
    with pytest.raises((AssertionError, ptx.Fault), match="out|race|read"):
        check(case(24, (5, 7), last=last), module=module)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
class TestOnADevice:
    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize("dtype", [FP16, BF16, FP32])
    def test_it_normalises(self, dtype, last):
        for channels, latent in ((32, (8, 8)), (192, (64, 64)), (576, (32, 32)), (960, (8, 8)), (96, (77,))):
            one = case(channels, latent, 32, dtype, last=last)
            there = (part.cuda() for part in (one.x, one.weight, one.bias))
            x, weight, bias = there
            one.out = group_norm(x, one.groups, weight, bias, 1e-5, one.silu)
            assert one.out.stride() == one.x.stride()
            check_results(one, one.expected().numpy())
