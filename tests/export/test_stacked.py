"""Experts as one graph, run by ONNX Runtime, against each expert in PyTorch."""

import dataclasses
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.modules import load_part
from cdiff_rt.engines.trt import FLAVOURS
from cdiff_rt.engines.trt_build import build_plan
from cdiff_rt.errors import BadRequest
from cdiff_rt.export.gpu_engines import typed_graph
from cdiff_rt.export.stacked import stacked_graph
from cdiff_rt.export.typed import typed_model, write_typed
from tests.alike import bundle_of
from tests.export.test_typed import BUDGETS, assert_strongly_typed

BATCH = 2
TOKENS = {"a": 3, "b": 5}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return bundle_of(TOKENS, tmp_path_factory.mktemp("alike"))


def inputs_of(bundle, tokens, batch=BATCH):
    """The stack's, and what each expert has of them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *bundle.manifest.latent_shape), np.float32)
    _, (_, e), (_, _, k) = (tensor.shape for tensor in bundle.manifest.networks[f"expert.{next(iter(tokens))}"].inputs)
    rows = rng.standard_normal((len(tokens), e), np.float32)
    context = rng.standard_normal((len(tokens), batch, max(tokens.values()), k), np.float32)
    given = {"x": x, "projections": rows, "context": context}
    return given, [(x, rows[m : m + 1], context[m, :, :n]) for m, n in enumerate(tokens.values())]


def check_agrees(model, spec, bundle, tokens, folder, limit, batch=BATCH):
    given, by_expert = inputs_of(bundle, tokens, batch)
    session = ort.InferenceSession(str(write_typed(model, bundle, folder, "stack")))
    names = [tensor.name for tensor in spec.outputs]
    found = session.run(names, {tensor.name: given[tensor.name].astype(tensor.dtype) for tensor in spec.inputs})
    for m, (name, own) in enumerate(zip(tokens, by_expert, strict=True)):
        reference = load_part(bundle, f"experts.{name}")(*map(torch.from_numpy, own))
        for ours, theirs in zip(found, reference, strict=True):
            assert ours.shape == (len(tokens), *theirs.shape)
            assert np.abs(ours[m] - theirs.numpy()).max() < limit * np.abs(theirs.numpy()).max(), name


@pytest.fixture(scope="module")
def graph(pair):
    return stacked_graph(pair, tuple(TOKENS))


def copied(graph):
    model = onnx.ModelProto()
    model.CopyFrom(graph[0])
    return model


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_gives_what_each_expert_gives(precision, pair, graph, tmp_path, monkeypatch):
    monkeypatch.setattr("cdiff_rt.export.stacked.stacked_graph", lambda bundle, names: (copied(graph), graph[1]))
    typed = typed_graph(pair, "stack.a+b", Placement("cpu", precision, BATCH))
    check_agrees(typed.model, typed.spec, pair, TOKENS, tmp_path, BUDGETS.get(precision, 1e-5))
    assert_strongly_typed(typed.model, typed.spec)


def test_it_holds_no_weight_and_passes_the_checker(pair, graph, tmp_path):
    path = write_typed(graph[0], pair, tmp_path, "stack")
    (tmp_path / pair.manifest.weights).unlink()
    shutil.copyfile(pair.path(pair.manifest.weights), tmp_path / pair.manifest.weights)  # onnx refuses hard links
    onnx.checker.check_model(str(path))
    assert path.stat().st_size < 300_000
    outside = [tensor for tensor in graph[0].graph.initializer if tensor.external_data]
    places = [tuple((entry.key, entry.value) for entry in tensor.external_data) for tensor in outside]
    assert len(set(places)) == len(places) > 100  # every weight of every expert, once


@pytest.mark.slow
def test_of_three_experts_of_lines_with_contexts_of_equal_length(tmp_path):
    tokens = dict.fromkeys("abc", 4)
    bundle = bundle_of(tokens, tmp_path, latent=(8,))
    model, spec = stacked_graph(bundle, tuple(tokens))
    assert {node.op_type: len(node.input) for node in model.graph.node}["Attention"] == 3  # there is nothing to hide
    for batch in (1, 3):
        check_agrees(model, spec, bundle, tokens, tmp_path, 1e-5, batch)


def test_experts_of_several_shapes_are_refused(pair):
    source = {"experts": pair.manifest.source["experts"] | {"b": pair.manifest.source["experts"]["b"] | {"unet": {}}}}
    other = dataclasses.replace(pair, manifest=dataclasses.replace(pair.manifest, source=source))
    with pytest.raises(BadRequest, match=r"experts stacked: unet.in_channels is 3 in a and none in b"):
        stacked_graph(other, tuple(TOKENS))


@pytest.fixture(scope="module")
def embedded(bundle):
    return stacked_graph(bundle, [modality.name for modality in bundle.manifest.modalities])


@pytest.mark.slow
def test_the_embedded_models_stack_gives_what_its_experts_give(bundle, embedded, tmp_path):
    model, spec = copied(embedded), embedded[1]
    tokens = {modality.name: modality.input_shape[0] for modality in bundle.manifest.modalities}
    onnx.checker.check_model(str(write_typed(model, bundle, tmp_path, "stack")))
    typed = typed_model(model, spec, "stack", Placement("cpu", "fp32", BATCH))  # with masks as ONNX Runtime takes them
    check_agrees(typed.model, typed.spec, bundle, tokens, tmp_path, 1e-5)


@pytest.mark.slow
def test_tensorrt_builds_it_with_two_thirds_of_the_kernels_and_fuses_every_attention(
    bundle, embedded, tmp_path, monkeypatch
):
    monkeypatch.setattr("cdiff_rt.export.stacked.stacked_graph", lambda bundle, names: (copied(embedded), embedded[1]))
    reports = {}
    for network in ("stack.mask+text", "expert.mask"):
        path = write_typed(typed_graph(bundle, network, Placement()).model, bundle, tmp_path, network)
        reports[network] = build_plan(path, FLAVOURS["tensorrt-rtx"], ("8.9",), {}).report
    stack, expert = reports.values()
    assert len(stack.fused_attentions) == stack.attentions == 22 and not stack.softmaxes
    assert len(stack.casts) == 1
    assert len(stack.kernels) < 0.62 * 2 * len(expert.kernels)
