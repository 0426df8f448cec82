"""ONNX Runtime bound to tensors by their addresses, on the CPU; and the guard against its silent way back to it."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from cdiff_rt.engines.backends import load_engine
from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.graphs import graph_of
from cdiff_rt.engines.ort import OrtDeviceEngine, _open, _provider
from cdiff_rt.errors import BadArtefact, BadEnvironment
from cdiff_rt.export import ort_cuda
from cdiff_rt.gpu.buffers import tensors_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine(bundle):
    return ort_cuda.load(bundle, "expert.mask", Placement("cpu", "fp32", 2))


def filled(engine, seed):
    tensors = tensors_of(engine.spec, {}, CPU)
    generator = torch.Generator().manual_seed(seed)
    for tensor in engine.spec.inputs:
        tensors[tensor.name].normal_(generator=generator)
    return tensors


def test_its_spec_has_the_batch_fixed(engine):
    assert {tensor.name: tensor.shape[0] for tensor in engine.spec.inputs} == {"x": 2, "projections": 1, "context": 2}
    assert {tensor.dtype for tensor in (*engine.spec.inputs, *engine.spec.outputs)} == {"float32"}


def test_each_call_reads_and_writes_what_lies_at_the_addresses_now(engine, bundle):
    tensors = filled(engine, 0)
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    enqueue = engine.bind(tensors)
    for seed in (1, 2):
        for name, value in filled(engine, seed).items():
            tensors[name].copy_(value)
        enqueue()
        inputs = {tensor.name: tensors[tensor.name].numpy() for tensor in engine.spec.inputs}
        expected = load_engine("onnxruntime", bundle, "expert.mask")(**inputs)
        for name, value in expected.items():
            np.testing.assert_allclose(tensors[name].numpy(), value, atol=1e-5)
    assert {name: tensor.data_ptr() for name, tensor in tensors.items()} == addresses


def test_two_bindings_of_one_engine_do_not_meet(engine):
    one, two = filled(engine, 1), filled(engine, 2)
    run_one, run_two = engine.bind(one), engine.bind(two)
    run_one()
    kept = one["out"].clone()
    run_two()
    assert torch.equal(one["out"], kept) and not torch.allclose(two["out"], kept)


def test_a_tensor_that_is_not_contiguous_is_no_address_to_bind(engine):
    tensors = filled(engine, 0)
    tensors["x"] = tensors["x"].transpose(2, 3)
    with pytest.raises(AssertionError, match="x is bound by its address"):
        engine.bind(tensors)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (False, "it is a build without CUDAExecutionProvider; run `pip install"),
        (
            True,
            "CUDAExecutionProvider does not start, it fell back to the CPU .*cannot open shared.*; install that library",
        ),
    ],
)
def test_a_session_that_fell_back_to_the_cpu_is_an_error(there, words, bundle, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"] if there else [])
    spec = bundle.manifest.networks["vae.decode"]
    with pytest.raises(BadEnvironment, match=words):
        _open(graph_of(bundle, "vae.decode"), spec, onnxruntime.SessionOptions(), [("CUDAExecutionProvider", {})])


def test_a_graph_that_is_none_is_the_bundles_fault(bundle):
    spec = bundle.manifest.networks["vae.decode"]
    with pytest.raises(BadArtefact, match="onnxruntime refuses it"):
        OrtDeviceEngine(dataclasses.replace(graph_of(bundle, "vae.decode"), model=b"nothing"), spec, "cpu")


def test_on_cuda_it_works_on_torchs_stream_and_without_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=4711))
    name, options = _provider("cuda:1")
    assert name == "CUDAExecutionProvider"
    assert options == {"device_id": "1", "user_compute_stream": "4711", "use_tf32": "0"}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    with pytest.raises(AssertionError, match="default stream"):
        _provider("cuda")


def test_the_cpu_needs_no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert _provider("cpu") == "CPUExecutionProvider"
