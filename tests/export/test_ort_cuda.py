"""What ONNX Runtime gets for a GPU, computed by it on the CPU."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from cdiff_rt.engines.backends import load_engine
from cdiff_rt.engines.base import Placement
from cdiff_rt.export import ort_cuda
from cdiff_rt.gpu.buffers import tensors_of


def outputs(engine, inputs):
    tensors = tensors_of(engine.spec, {}, torch.device("cpu"))
    for name, value in inputs.items():
        tensors[name].copy_(torch.from_numpy(value))
    engine.bind(tensors)()
    return {tensor.name: tensors[tensor.name].float().numpy() for tensor in engine.spec.outputs}


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 1e-2), ("fp32", 1e-5)])
@pytest.mark.parametrize("network", ["expert.mask", "expert.text", "vae.decode", "condition.text"])
def test_it_computes_what_the_bundle_says(network, precision, limit, bundle):
    reference, rng = load_engine("onnxruntime", bundle, network), np.random.default_rng(0)
    inputs = {}
    for tensor in reference.spec.inputs:
        shape = [1 if d == "batch" else d for d in tensor.shape]
        whole = tensor.dtype == "int64"
        inputs[tensor.name] = rng.integers(0, 12, shape) if whole else rng.standard_normal(shape).astype(np.float32)
    found = outputs(ort_cuda.load(bundle, network, Placement("cpu", precision)), inputs)
    for name, value in reference(**inputs).items():
        assert np.linalg.norm(found[name] - value) <= limit * np.linalg.norm(value), name


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_normalisation_has_a_kernel_and_attention_stays_whole(precision, bundle, monkeypatch):
    given = []
    monkeypatch.setattr(ort_cuda, "OrtDeviceEngine", lambda graph, spec, device: given.append((graph, spec)))
    ort_cuda.load(bundle, "expert.mask", Placement("cpu", precision))
    ((graph, spec),) = given
    model = onnx.load_from_string(graph.model)
    counts = Counter(node.op_type for node in model.graph.node)
    before = Counter(node.op_type for node in onnx.load_from_string(bundle.content["expert.mask.onnx"]).graph.node)
    assert not counts["GroupNormalization"] and counts["InstanceNormalization"] == before["GroupNormalization"] == 45
    assert counts["Attention"] == before["Attention"] == 22
    wide = {"fp16": "float16", "fp32": "float32"}[precision]
    assert {t.name: t.dtype for t in (*spec.inputs, *spec.outputs)} == {
        **dict.fromkeys(("projections", "context", "out", "logit"), wide),
        "x": "float32",
    }
