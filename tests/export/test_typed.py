import dataclasses
import functools
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

from cdiff_rt.engines.backends import load_engine
from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.eager import load_device
from cdiff_rt.errors import OutOfResource
from cdiff_rt.export import typed
from cdiff_rt.export.bundle import write_bundle
from cdiff_rt.export.checkpoint import in_memory
from cdiff_rt.export.typed import typed_network, write_typed
from cdiff_rt.manifest import Bundle
from cdiff_rt.nets.collaborative import CollaborativeModel, ModelConfig
from cdiff_rt.nets.freeu import FreeUConfig
from cdiff_rt.sampling.fusion import softmax
from tests.export import rounded
from tests.nets.naive import randomise
from tests.tiny import CONFIG, DESCRIPTION

EXPERTS, VAE = ("expert.mask", "expert.text"), ("vae.encode", "vae.decode")
ONCE = ("condition.mask", "condition.text", "time.mask", "time.text")
EXACT = 2e-6  # of fp32 against fp32: other forms of one sum
BUDGETS = {"fp16": 1e-2, "bf16": 5e-2}  # relative error of one call, and error of an influence function
ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
ELEMENTS |= {"int64": TensorProto.INT64}
RNG = np.random.default_rng(0)


def placement(precision, batch=1):
    return Placement("cpu", precision, batch)


def inputs_for(spec, batch=1):
    sizes = {"batch": batch, "steps": 3}
    shapes = {tensor: tuple(sizes.get(d, d) for d in tensor.shape) for tensor in spec.inputs}
    return {
        tensor.name: RNG.integers(0, 12, shape) if tensor.dtype == "int64" else RNG.standard_normal(shape, np.float32)
        for tensor, shape in shapes.items()
    }


def written(model, bundle, folder, name="graph"):
    """With a copy of the weights: onnx refuses hard links."""
    path = write_typed(model, bundle, folder, name)
    (folder / bundle.manifest.weights).unlink()
    shutil.copyfile(bundle.path(bundle.manifest.weights), folder / bundle.manifest.weights)
    return path


def computed(model, bundle, folder, inputs, outputs, emulate=False):
    path = write_typed(rounded.emulated(model) if emulate else model, bundle, folder, "graph")
    if emulate:
        return rounded.run(path, inputs, outputs)
    session = ort.InferenceSession(str(path))
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int64)": np.int64}
    given = {value.name: inputs[value.name].astype(kinds[value.type]) for value in session.get_inputs()}
    return dict(zip(outputs, session.run(outputs, given), strict=True))


def relative(ours, reference):
    return float((ours.astype(np.float64) - reference).std() / reference.std())


def worst(ours, reference):
    return max(relative(ours[name], reference[name]) for name in reference)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Weights in fp32, a branch with FreeU and without a dynamic diffuser, no autoencoder."""
    expert = CONFIG.experts["mask"]
    unet = dataclasses.replace(expert.unet, channel_mult=(1, 2), freeu=FreeUConfig(1.1, 1.2, 0.9, 0.2))
    config = ModelConfig({"mask": dataclasses.replace(expert, unet=unet, diffuser=None)}, vae=None)
    weights = randomise(CollaborativeModel(config)).requires_grad_(False).state_dict()
    described = dataclasses.replace(
        DESCRIPTION, config=config, image_size=0, modalities=DESCRIPTION.modalities[:1], vocabularies={}
    )
    folder = tmp_path_factory.mktemp("odd")
    write_bundle(in_memory(described, weights), folder, "fp32")
    return Bundle.open(folder)


@pytest.mark.parametrize("network", [*EXPERTS, *VAE, *ONCE])
def test_in_fp32_it_computes_what_the_source_computes(network, bundle, tmp_path, batch=2):
    inputs = inputs_for(bundle.manifest.networks[network], batch)
    model, spec = typed_network(bundle, network, placement("fp32", batch))
    outputs = [tensor.name for tensor in spec.outputs]
    ours = computed(model, bundle, tmp_path, inputs, outputs)
    assert worst(ours, load_engine("onnxruntime", bundle, network)(**inputs)) < EXACT


@pytest.mark.parametrize("network", ONCE)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_runs_once_stays_fp32(network, precision, bundle):
    assert typed_network(bundle, network, placement(precision)) == typed_network(bundle, network, placement("fp32"))


@pytest.fixture(scope="module")
def rounded_and_exact(bundle, tmp_path_factory):
    """(network, precision) -> its outputs rounded at every node, and PyTorch's in fp32. Experts see one x."""
    x = inputs_for(bundle.manifest.networks["expert.mask"])["x"]

    @functools.cache
    def exact(network):
        inputs = inputs_for(bundle.manifest.networks[network])
        inputs |= {"x": x} if network in EXPERTS else {}
        return inputs, load_engine("torch", bundle, network)(**inputs)

    @functools.cache
    def get(network, precision):
        inputs, reference = exact(network)
        model, _ = typed_network(bundle, network, placement(precision))
        folder = tmp_path_factory.mktemp("rounded")
        return computed(model, bundle, folder, inputs, list(reference), emulate=True), reference

    return get


@pytest.mark.parametrize("precision", BUDGETS)
@pytest.mark.parametrize("network", [*EXPERTS, *VAE])
def test_rounded_at_every_node_it_stays_within_budget(network, precision, rounded_and_exact):
    error = worst(*rounded_and_exact(network, precision))
    print(f"{network} {precision}: relative error {error:.1e}")
    assert 1e-4 < error <= BUDGETS[precision]  # the lower bound: the roundings do happen


@pytest.mark.parametrize("precision", BUDGETS)
def test_influence_functions_stay_within_budget(precision, rounded_and_exact):
    pairs = [rounded_and_exact(network, precision) for network in EXPERTS]
    ours, reference = (softmax(np.stack([pair[side]["logit"] for pair in pairs])) for side in (0, 1))
    assert np.abs(ours - reference).max() <= BUDGETS[precision]


@pytest.mark.parametrize("network", ["expert.text", *VAE])
def test_in_fp16_it_computes_what_torch_computes_in_fp16(network, bundle, tmp_path):
    inputs = inputs_for(bundle.manifest.networks[network])
    model, spec = typed_network(bundle, network, placement("fp16"))
    outputs = {t.name: torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in spec.outputs}
    given = {t.name: torch.from_numpy(inputs[t.name]).to(getattr(torch, t.dtype)) for t in spec.inputs}
    load_device(bundle, network, placement("fp16")).bind(given | outputs)()
    ours = computed(model, bundle, tmp_path, inputs, list(outputs))
    for tensor in spec.outputs:
        assert str(ours[tensor.name].dtype) == tensor.dtype
        assert relative(ours[tensor.name], outputs[tensor.name].float().numpy()) < 3e-3


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_freeu_and_a_branch_alone_and_weights_in_fp32(precision, odd, tmp_path):
    inputs = inputs_for(odd.manifest.networks["expert.mask"])
    model, spec = typed_network(odd, "expert.mask", placement(precision))
    ours = computed(model, odd, tmp_path, inputs, ["out", "logit"], emulate=True)
    reference = load_engine("torch", odd, "expert.mask")(**inputs)
    assert relative(ours["out"], reference["out"]) < BUDGETS.get(precision, 1e-5)
    assert not ours["logit"].any()
    assert_strongly_typed(model, spec)


def assert_strongly_typed(model, spec):
    """Every operator's inputs have one float type, but for Cast and what ONNX itself wants as fp32."""
    types = rounded.types_of(model.graph)
    for node in model.graph.node:
        taken = node.input[:1] if node.op_type == "Resize" else node.input
        kinds = {types[name] for name in taken if name} & set(ELEMENTS.values()) - {TensorProto.INT64}
        assert len(kinds) <= 1, f"{node.op_type} {node.name} mixes {kinds}"
    for tensor in (*spec.inputs, *spec.outputs):
        assert types[tensor.name] == ELEMENTS[tensor.dtype], tensor


@pytest.mark.parametrize("network", [*EXPERTS, *VAE, *ONCE])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_types_and_sizes_are_those_of_the_spec(network, precision, bundle):
    model, spec = typed_network(bundle, network, placement(precision, 2))
    assert_strongly_typed(model, spec)
    for value, tensor in zip((*model.graph.input, *model.graph.output), (*spec.inputs, *spec.outputs), strict=True):
        shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert (value.name, shape) == (tensor.name, list(tensor.shape))
        assert "batch" not in tensor.shape


def test_a_mix_of_types_is_found(bundle):
    model, spec = typed_network(bundle, "expert.mask", placement("fp16"))
    next(node for node in model.graph.node if node.op_type == "Cast").attribute[0].i = TensorProto.FLOAT
    with pytest.raises(AssertionError, match="mixes"):
        assert_strongly_typed(model, spec)


def test_weights_that_lie_in_the_precision_are_used_as_they_lie(bundle):
    model, _ = typed_network(bundle, "expert.mask", placement("fp16"))
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert [node.input[0] for node in casts] == ["x"]
    other, _ = typed_network(bundle, "expert.mask", placement("bf16"))
    outside = [t for t in other.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    casts = {node.input[0] for node in other.graph.node if node.op_type == "Cast"}
    assert casts == {tensor.name for tensor in outside} | {"x"}


def test_bf16_deconvolutions_are_computed_in_fp32(bundle):
    model, _ = typed_network(bundle, "vae.decode", placement("bf16"))
    types = rounded.types_of(model.graph)
    (node,) = (node for node in model.graph.node if node.op_type == "ConvTranspose")
    assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}


@pytest.mark.parametrize("network", [*EXPERTS, *VAE, "condition.text"])
def test_attention_is_written_as_products_and_a_softmax(network, bundle):
    source = onnx.load(bundle.path(f"{network}.onnx"), load_external_data=False)
    before = Counter(node.op_type for node in source.graph.node)
    after = Counter(node.op_type for node in typed_network(bundle, network, placement("fp16"))[0].graph.node)
    assert before["Attention"] and not after["Attention"]
    assert after["Softmax"] == before["Attention"]
    assert after["MatMul"] == before["MatMul"] + 2 * before["Attention"]


@pytest.mark.parametrize("network", ["vae.decode", "expert.mask"])
def test_a_wrong_scale_of_the_attention_would_be_seen(network, bundle, tmp_path):
    inputs = inputs_for(bundle.manifest.networks[network])
    model, spec = typed_network(bundle, network, placement("fp32"))
    scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("/scale"))
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.5), scale.name))
    ours = computed(model, bundle, tmp_path, inputs, [tensor.name for tensor in spec.outputs])
    assert worst(ours, load_engine("onnxruntime", bundle, network)(**inputs)) > EXACT


def test_an_attention_that_it_would_get_wrong_is_refused(bundle):
    model = onnx.load_from_string(bundle.content["expert.mask.onnx"])
    node = next(node for node in model.graph.node if node.op_type == "Attention")
    next(attribute for attribute in node.attribute if attribute.name == "is_causal").i = 1
    other = dataclasses.replace(bundle, content={**bundle.content, "expert.mask.onnx": model.SerializeToString()})
    with pytest.raises(AssertionError, match="is_causal"):
        typed_network(other, "expert.mask", placement("fp16"))


@pytest.mark.parametrize("network", [*EXPERTS, *VAE, *ONCE])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_onnx_finds_no_fault(network, precision, bundle, tmp_path):
    path = written(typed_network(bundle, network, placement(precision)).model, bundle, tmp_path)
    onnx.checker.check_model(str(path))
    words = path.read_bytes().decode("latin-1")
    assert not [
        word for word in (os.sep + "tmp" + os.sep, getpass.getuser() + "@", socket.gethostname()) if word in words
    ]


def polygraphy(*arguments, cwd):
    """In a folder of its own, as `inspect capability` leaves one behind."""
    command = [Path(sys.executable).with_name("polygraphy"), *arguments]
    environment = os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, check=False)


LARGE = [pytest.param(network, marks=pytest.mark.slow) for network in ("expert.mask", "vae.decode")]


@pytest.mark.parametrize("network", [*LARGE, "time.mask"])
def test_polygraphy_finds_no_fault(network, bundle, tmp_path):
    path = written(typed_network(bundle, network, placement("fp16")).model, bundle, tmp_path, network)
    sizes = ["--input-shapes", "t:[3]"] if network == "time.mask" else []
    lint = polygraphy("check", "lint", path, "-o", tmp_path / "lint.json", *sizes, cwd=tmp_path)
    entries = json.loads((tmp_path / "lint.json").read_text())["lint_entries"]
    assert (lint.returncode, entries) == (0, []), lint.stdout
    said = polygraphy("inspect", "capability", path, cwd=tmp_path).stdout
    assert "fully supported" in said, said


def test_polygraphy_would_find_one(bundle, tmp_path):
    model = typed_network(bundle, "time.mask", placement("fp32")).model
    model.graph.node[-1].op_type = "Concat2"
    path = written(model, bundle, tmp_path)
    assert polygraphy("check", "lint", path, cwd=tmp_path).returncode
    assert "fully supported" not in polygraphy("inspect", "capability", path, cwd=tmp_path).stdout


def test_the_weights_beside_the_graph_are_those_that_were_read(bundle_copy, tmp_path):
    bundle = Bundle.open(bundle_copy)
    bundle.path(bundle.manifest.weights).write_bytes(b"other")
    model = typed_network(bundle, "time.mask", placement("fp16")).model
    assert write_typed(model, bundle, tmp_path, "time.mask") == tmp_path / "time.mask.onnx"
    assert (tmp_path / bundle.manifest.weights).read_bytes() == bundle.content[bundle.manifest.weights]
    write_typed(model, bundle, tmp_path, "again")  # the weights are there already


def test_a_full_disk_is_said(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left")))
    model = typed_network(bundle, "time.mask", placement("fp16")).model
    with pytest.raises(OutOfResource, match="No space left"):
        typed.write_typed(model, bundle, tmp_path, "time.mask")
