import copy
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from cdiff_rt.engines import eager
from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.eager import EagerEngine, load, load_compiled, load_device, load_device_compiled
from cdiff_rt.errors import BadArtefact, OutOfResource
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
def test_compiled_it_computes_the_same(bundle):
    place = Placement("cpu", "fp32")
    compiled, eager = (
        run(load(bundle, "time.mask", place), lambda t: t.fill_(500)) for load in (load_device_compiled, load_device)
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
    for network in ("vae.decode", "time.mask"):
        load_compiled(tiny, network, place)
    assert len(compiled) == 1


@pytest.mark.parametrize(("network", "low", "high"), [("expert.mask", 1e-4, 5e-2), ("vae.decode", 0.0, 0.0)])
def test_on_the_cpu_bf16_is_for_experts(network, low, high, bundle):
    exact, half = (called(load(bundle, network, Placement("cpu", precision))) for precision in ("fp32", "bf16"))
    assert all(low <= error <= high for error in errors(half, exact))


def with_source(bundle, part, **changes):
    source = copy.deepcopy(bundle.manifest.source)
    place = source["vae"] if part == "vae" else source["experts"]["text"][part]
    place.update(changes)
    return replace(bundle, manifest=replace(bundle.manifest, source=source))


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("encoder", {"layers": 10**9}),
        ("unet", {"num_res_blocks": 10**9}),
        ("unet", {"model_channels": 10**9}),
        ("unet", {"channel_mult": [1] * 10_000}),
        ("unet", {"num_heads": 0}),
        ("vae", {"num_res_blocks": 10**9}),
        ("vae", {"channel_mult": []}),
        ("encoder", {"tokens": 3}),
    ],
    ids=str,
)
def test_a_description_that_its_weights_do_not_make_is_refused_in_no_time(part, changes, bundle):
    begun = time.process_time()
    with pytest.raises(BadArtefact, match="its weights do not make its model"):
        load(with_source(bundle, part, **changes), "vae.decode" if part == "vae" else "time.text", Placement("cpu"))
    assert time.process_time() - begun < 5


def test_a_model_that_memory_cannot_hold_is_no_fault_of_the_bundle(bundle, monkeypatch):
    monkeypatch.setattr(eager, "fp32", lambda content, place: np.zeros(2**50))
    with pytest.raises(OutOfResource, match="loading vae: .*close other programs"):
        eager.load_part(bundle, "vae")


def test_weights_that_are_trained_leave_the_bundle_as_it_is(bundle):
    before = bytes(bundle.content["weights.safetensors"])
    with torch.no_grad():
        for parameter in eager.load_part(bundle, "vae").parameters():
            parameter.zero_()
    assert bundle.content["weights.safetensors"] == before


def test_another_bundle_in_the_same_folder_has_weights_of_its_own(bundle):
    place = Placement("cpu", "fp32")
    one = load(bundle, "vae.decode", place)
    content = bytearray(bundle.content["weights.safetensors"])
    content[-2:] = b"\x00\x3c"
    digests = bundle.manifest.files | {"weights.safetensors": "another"}
    other = replace(
        bundle, manifest=replace(bundle.manifest, files=digests), content={"weights.safetensors": bytes(content)}
    )
    assert load(other, "vae.decode", place)._module is not one._module
    assert load(bundle, "vae.encode", place)._module is one._module
