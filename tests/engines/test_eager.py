import numpy as np
import pytest
import torch

from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.eager import EagerEngine, load, load_compiled, load_device, load_device_compiled
from cdiff_rt.gpu.buffers import tensors_of
from cdiff_rt.manifest import Bundle

CPU = torch.device("cpu")


def run(engine, fill):
    tensors = tensors_of(engine.spec, {"steps": 3}, CPU)
    for tensor in engine.spec.inputs:
        fill(tensors[tensor.name])
    engine.bind(tensors)()
    return [tensors[tensor.name] for tensor in engine.spec.outputs]


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 1e-2), ("bf16", 5e-2)])
@pytest.mark.parametrize("name", ["expert.mask", "expert.text", "vae.decode", "vae.encode"])
def test_half_precision_stays_within_its_budget(name, precision, limit, bundle):
    def fill(tensor):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())))

    ours, reference = (run(load_device(bundle, name, Placement("cpu", p)), fill) for p in (precision, "fp32"))
    for value, expected in zip(ours, reference, strict=True):
        error = ((value.float() - expected).std() / expected.std()).item()
        assert 1e-5 < error < limit


def test_what_runs_once_stays_fp32_whatever_the_precision(bundle):
    for network in ("time.mask", "condition.mask"):
        outputs = [
            run(load_device(bundle, network, Placement("cpu", p)), lambda t: t.fill_(1)) for p in ("fp16", "fp32")
        ]
        for half, full in zip(*outputs, strict=True):
            assert half.dtype == torch.float32 and torch.equal(half, full)


@pytest.mark.slow
def test_compiled_it_computes_the_same(tiny_bundle):
    tiny, place = Bundle.open(tiny_bundle), Placement("cpu", "fp32")
    compiled, eager = (
        run(load(tiny, "vae.decode", place), lambda t: t.copy_(torch.linspace(-1, 1, t.numel()).view_as(t)))
        for load in (load_device_compiled, load_device)
    )
    torch.testing.assert_close(compiled[0], eager[0], atol=1e-5, rtol=1e-5)


def called(engine: EagerEngine):
    rng = np.random.default_rng(0)
    shapes = {t.name: [1 if isinstance(length, str) else length for length in t.shape] for t in engine.spec.inputs}
    return engine(**{name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()})


def errors(ours, wanted):
    assert all(array.dtype == np.float32 for array in ours.values())
    return [np.linalg.norm(ours[name] - wanted[name]) / np.linalg.norm(wanted[name]) for name in wanted]


@pytest.mark.slow
def test_on_the_cpu_experts_are_compiled_and_the_others_are_not(tiny_bundle, monkeypatch):
    tiny, place, compiled = Bundle.open(tiny_bundle), Placement("cpu", "fp32"), []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **more: compiled.append(function) or real(function, **more))
    exact = called(load(tiny, "expert.mask", place))
    assert not compiled
    assert max(errors(called(load_compiled(tiny, "expert.mask", place)), exact)) < 1e-5
    assert len(compiled) == 1
    assert errors(called(load_compiled(tiny, "vae.decode", place)), called(load(tiny, "vae.decode", place))) == [0]
    assert len(compiled) == 1


@pytest.mark.parametrize(("network", "low", "high"), [("expert.mask", 1e-4, 5e-2), ("vae.decode", 0.0, 0.0)])
def test_on_the_cpu_bf16_is_for_experts(network, low, high, bundle):
    exact, half = (called(load(bundle, network, Placement("cpu", precision))) for precision in ("fp32", "bf16"))
    assert all(low <= error <= high for error in errors(half, exact))
