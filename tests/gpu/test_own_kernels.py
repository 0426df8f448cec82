import dataclasses

import pytest
import torch
from torch import nn

from cdiff_rt.bench.cases import GPU_SUITE
from cdiff_rt.engines import eager
from cdiff_rt.engines.backends import load_device_engine
from cdiff_rt.engines.base import Placement
from cdiff_rt.gpu.attention import attention
from cdiff_rt.gpu.own_kernels import Norm, with_attention, with_kernels
from cdiff_rt.manifest import Bundle
from cdiff_rt.nets.attention import Attention, attend
from tests.gpu.lints import trace
from tests.tiny import tiny_model


@pytest.fixture
def expert():
    return tiny_model().expert("mask")


def given(expert):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    projections = torch.randn(1, expert.projection_width, generator=generator)
    return x, projections, torch.randn(2, 5, expert.context_width, generator=generator)


def of_type(module, kind):
    return [part for part in module.modules() if isinstance(part, kind)]


@pytest.mark.parametrize("swap", [with_kernels, with_attention])
def test_a_network_computes_the_same(swap, expert):
    before = expert(*given(expert))
    swap(expert)
    after = expert(*given(expert))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_every_attention_and_normalisation_is_one_operation(expert):
    norms, silus = len(of_type(expert, nn.GroupNorm)), len(of_type(expert.unet.out, nn.SiLU))
    with_kernels(expert)
    assert norms == len(of_type(expert, Norm)) and silus == 1 and not of_type(expert.unet.out, nn.SiLU)
    assert {part.attend for part in of_type(expert, Attention)} == {attention}
    with torch.inference_mode():
        names = [call[0] for call in trace(lambda: expert(*given(expert)))]
    operations = " ".join(map(str, names))
    assert operations.count("cdiff_rt.attention") == len(of_type(expert.unet, Attention)) + len(
        of_type(expert.diffuser, Attention)
    )
    assert operations.count("cdiff_rt.group_norm") == norms
    assert not any(word in operations for word in ("scaled_dot", "native_group_norm", "aten.silu"))


def test_normalisation_without_silu_stays_without(expert):
    with_kernels(expert)
    silent = [part for part in of_type(expert.unet, Norm) if not part.silu]
    assert len(silent) == len(of_type(expert.unet, Attention)) // 2  # before each transformer


def test_compiled_networks_keep_their_normalisation(expert):
    with_attention(expert)
    assert not of_type(expert, Norm) and of_type(expert, Attention)[0].attend is attention


@pytest.mark.parametrize(("backend", "norms"), [("torch-cuda", True), ("torch-cuda-compiled", False)])
def test_backends_have_them_unless_asked_not_to(backend, norms, tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    place = Placement("cpu", "fp32")
    own = load_device_engine(backend, bundle, "expert.mask", place)
    plain = load_device_engine(backend, bundle, "expert.mask", dataclasses.replace(place, kernels=False))
    assert bool(of_type(own._module, Norm)) is norms and not of_type(plain._module, Norm)
    assert of_type(own._module, Attention)[0].attend is attention
    assert of_type(plain._module, Attention)[0].attend is attend


def test_engines_of_a_cpu_have_none(tiny_bundle):
    engine = eager.load(Bundle.open(tiny_bundle), "expert.mask", Placement("cpu", "fp32"))
    assert not of_type(engine._module, Norm) and of_type(engine._module, Attention)[0].attend is attend


def test_a_gpu_can_compare_them_with_pytorchs():
    """Each of the suite without them has its equal with them; the reference has PyTorch's alone."""
    without = [case for case in GPU_SUITE if not case.kernels and not case.naive]
    assert {case.backend for case in without} == {"torch-cuda", "torch-cuda-compiled"}
    ways = [dataclasses.replace(case, name="") for case in GPU_SUITE]
    assert all(dataclasses.replace(case, name="", kernels=True) in ways for case in without)
    assert not any(case.kernels for case in GPU_SUITE if case.naive)
