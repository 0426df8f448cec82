import pytest
import torch

from cdiff_rt.engines import Placement
from cdiff_rt.engines.eager import load_compiled, load_device
from cdiff_rt.gpu.buffers import tensors_of

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


def test_compiled_it_computes_the_same(bundle):
    place = Placement("cpu", "fp32")
    compiled, eager = (
        run(load(bundle, "time.mask", place), lambda t: t.fill_(500)) for load in (load_compiled, load_device)
    )
    torch.testing.assert_close(compiled[0], eager[0], atol=1e-5, rtol=1e-5)
