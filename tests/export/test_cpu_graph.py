import dataclasses
import shutil
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cdiff_rt.engines import ort as ort_engines
from cdiff_rt.engines.backends import load_engine
from cdiff_rt.engines.base import Placement
from cdiff_rt.errors import BadArtefact
from cdiff_rt.export import cpu_graph, ort_cuda
from cdiff_rt.export.cpu_graph import rewrite, write_cpu_graph
from cdiff_rt.export.verify import TOLERANCE, compare_networks, graph_errors
from cdiff_rt.manifest import NAME, Bundle, NetworkSpec, sha256

RNG = np.random.default_rng(0)
PLAIN = {"pads": [1, 1, 1, 1]}


def model_of(node, shapes, constants=()):
    """A model of one node; its inputs' batch is free."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("batch", *shape)) for n, shape in shapes.items()]
    graph = helper.make_graph(
        [node],
        "one",
        values,
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in dict(constants).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def convolution(channels, made, height, width, kernel=(3, 3), bias=True, **given):
    weight = RNG.standard_normal((made, channels // given.get("group", 1), *kernel)) / channels**0.5
    constants = {"weight": weight.astype(np.float32), "bias": RNG.standard_normal(made).astype(np.float32)}
    inputs = ["x", "weight", "bias"][: 3 if bias else 2]
    return model_of(
        helper.make_node("Conv", inputs, ["out"], **given),
        {"x": (channels, height, width)},
        {name: constants[name] for name in inputs[1:]},
    )


def attention(heads, queries, keys, **given):
    shapes = {"q": (heads, queries, 4), "k": (heads, keys, 4), "v": (heads, keys, 4)}
    return model_of(helper.make_node("Attention", list(shapes), ["out"], **given), shapes)


def normalisation(channels, spatial, groups, **given):
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["out"], num_groups=groups, **given)
    scale, bias = RNG.standard_normal((2, channels)).astype(np.float32)
    return model_of(node, {"x": (channels, *spatial)}, {"scale": scale, "bias": bias})


def run(model, batch):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    inputs = {
        value.name: rng.standard_normal((batch, *value.shape[1:])).astype(np.float32) for value in session.get_inputs()
    }
    return session.run(None, inputs)[0]


def before_and_after(model, batch):
    plain = run(model, batch)
    assert rewrite(model)
    return plain, run(model, batch)


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.fixture
def any_channels(monkeypatch):
    monkeypatch.setattr(cpu_graph, "FEWEST_CHANNELS", 1)


@pytest.mark.usefixtures("any_channels")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 8), (16, 31), (32, 32), (33, 34), (35, 64), (33, 124)])
def test_a_convolution_stays_the_same_function(height, width, batch):
    model = convolution(5, 7, height, width, **PLAIN)
    plain, ours = before_and_after(model, batch)
    assert np.linalg.norm(ours - plain) <= 1e-5 * np.linalg.norm(plain)
    assert np.abs(ours - plain).max() <= 1e-4  # at the edges too
    assert operators(model)["MatMul"] == operators(model)["ConvTranspose"] == 1


def test_the_errors_of_many_channels_stay_small():
    model = convolution(256, 192, 32, 32, **PLAIN)
    plain, ours = before_and_after(model, 1)
    assert np.linalg.norm(ours - plain) <= 1.9e-6 * np.linalg.norm(plain)


@pytest.mark.usefixtures("any_channels")
def test_two_convolutions_one_of_an_output_share_the_transforms():
    model = convolution(6, 6, 8, 8, **PLAIN)
    first = model.graph.node[0]
    second = helper.make_node("Conv", ["out", "weight", "bias"], ["twice"], **PLAIN)
    model.graph.node.append(second)
    model.graph.output[0].name = "twice"
    model.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, ("batch", 6, 8, 8)))
    plain, ours = before_and_after(model, 2)
    np.testing.assert_allclose(ours, plain, atol=1e-4)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names)) and first.op_type == "Conv"


@pytest.mark.usefixtures("any_channels")
@pytest.mark.parametrize(
    "given",
    [
        {"height": 7},  # too few tiles
        {"width": 7},
        {"height": 64, "width": 65},  # tiles take too much memory
        {"kernel": (1, 1), "pads": [0] * 4},
        {"kernel": (5, 5), "pads": [2] * 4},
        {"kernel": (3, 1)},
        {"strides": [2, 2]},
        {"dilations": [2, 2]},
        {"group": 2},
        {"pads": [0] * 4},
        {"pads": None},
        {"bias": False},
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(given):
    settings = {"height": 16, "width": 16, **PLAIN} | given
    model = convolution(4, 6, **{name: value for name, value in settings.items() if value is not None})
    whole = model.SerializeToString()
    assert not rewrite(model) and model.SerializeToString() == whole


@pytest.mark.parametrize(("channels", "made", "rewritten"), [(192, 192, True), (191, 192, False), (192, 191, False)])
def test_only_convolutions_of_many_channels_are_rewritten(channels, made, rewritten):
    assert rewrite(convolution(channels, made, 8, 8, **PLAIN)) == rewritten


@pytest.mark.parametrize("given", [{}, {"scale": 0.25}], ids=str)
@pytest.mark.parametrize(
    ("heads", "largest", "parts"),  # of 54 scores a head
    [(5, 108, 3), (5, 54, 5), (5, 216, 2), (4, 54, 4), (8, 54, 8), (8, 100, 8), (8, 110, 4), (8, 162, 3), (12, 270, 3)],
)
def test_attention_by_heads_is_the_same_to_the_bit(heads, largest, parts, given, monkeypatch):
    monkeypatch.setattr(cpu_graph, "LARGEST_SCORES", largest)
    model = attention(heads, 6, 9, **given)
    plain, ours = before_and_after(model, 2)
    np.testing.assert_array_equal(ours, plain)
    assert operators(model)["Attention"] == parts


def test_a_head_with_too_many_scores_is_computed_alone(monkeypatch):
    monkeypatch.setattr(cpu_graph, "LARGEST_SCORES", 6 * 9 - 1)
    model = attention(3, 6, 9)
    plain, ours = before_and_after(model, 1)
    np.testing.assert_array_equal(ours, plain)
    assert operators(model)["Attention"] == 3


@pytest.mark.parametrize(
    ("shapes", "given"),
    [
        ({"q": (4, 6, 8), "k": (2, 9, 8), "v": (2, 9, 8)}, {}),  # keys shared by heads
        ({"q": (6, 8), "k": (9, 8), "v": (9, 8)}, {"q_num_heads": 4, "kv_num_heads": 4}),
        ({"q": (4, 6, 8), "k": (4, 9, 8), "v": (4, 9, 8), "mask": (4, 6, 9)}, {}),
        ({"q": (4, "tokens", 8), "k": (4, 9, 8), "v": (4, 9, 8)}, {}),
    ],
    ids=["shared", "flat", "masked", "unknown"],
)
def test_other_attention_is_left_alone(shapes, given, monkeypatch):
    monkeypatch.setattr(cpu_graph, "LARGEST_SCORES", 1)
    model = model_of(helper.make_node("Attention", list(shapes), ["out"], **given), shapes)
    assert not rewrite(model)


def test_attention_with_few_scores_is_left_alone(monkeypatch):
    monkeypatch.setattr(cpu_graph, "LARGEST_SCORES", 5 * 6 * 9)
    assert not rewrite(attention(5, 6, 9))
    assert rewrite(attention(5, 6, 10))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("given", [{}, {"epsilon": 0.5}], ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (8, 8), (6, 1)])
@pytest.mark.parametrize("spatial", [(5,), (4, 7), (2, 3, 4)])
def test_a_group_normalisation_is_one_of_instances(spatial, channels, groups, given, batch):
    model = normalisation(channels, spatial, groups, **given)
    plain, ours = before_and_after(model, batch)
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    assert operators(model)["InstanceNormalization"] == 1 and not operators(model)["GroupNormalization"]


@pytest.mark.parametrize("groups", [2, 3])
def test_a_second_normalisation_is_of_its_own_groups(groups):
    model = normalisation(6, (4, 4), 2)
    second = helper.make_node("GroupNormalization", ["out", "scale", "bias"], ["twice"], num_groups=groups)
    model.graph.node.append(second)
    model.graph.output[0].name = "twice"
    plain, ours = before_and_after(model, 2)
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names))


def test_a_normalisation_of_unknown_size_is_left_alone():
    assert not rewrite(normalisation(6, (4, "width"), 2))


def test_a_graph_that_stays_has_no_second_file(tmp_path):
    onnx.save(attention(2, 3, 4), tmp_path / "expert.a.onnx")
    spec = NetworkSpec("expert.a.onnx", (), ())
    assert write_cpu_graph(spec, tmp_path) is spec
    assert [path.name for path in tmp_path.iterdir()] == ["expert.a.onnx"]


# --- in a bundle -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewritten_bundle(tiny_bundle, tmp_path_factory):
    """The tiny bundle, with graphs for CPUs as they are where layers are large."""
    folder = tmp_path_factory.mktemp("rewritten") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    manifest = Bundle.open(folder).manifest
    networks = dict(manifest.networks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_graph, "FEWEST_CHANNELS", 16)
        patch.setattr(cpu_graph, "LARGEST_SCORES", 2**12)
        for name in ("expert.mask", "expert.text"):
            networks[name] = write_cpu_graph(networks[name], folder)
    files = {path.name: sha256(path) for path in folder.iterdir() if path.name != NAME}
    (folder / NAME).write_text(dataclasses.replace(manifest, networks=networks, files=files).to_json())
    return Bundle.open(folder)


def test_only_what_runs_at_each_step_has_a_graph_for_cpus(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    found = {name: spec.cpu_file for name, spec in manifest.networks.items() if spec.cpu_file}
    assert found == {f"expert.{name}": f"expert.{name}.cpu.onnx" for name in ("mask", "text")}
    assert set(found.values()) <= set(manifest.files)


@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_what_torch_does(rewritten_bundle, batch):
    spec = rewritten_bundle.manifest.networks["expert.mask"]
    inputs = {
        tensor.name: RNG.standard_normal([batch if d == "batch" else d for d in tensor.shape]).astype(np.float32)
        for tensor in spec.inputs
    }
    ours, reference = (
        load_engine(backend, rewritten_bundle, "expert.mask")(**inputs) for backend in ("onnxruntime", "torch")
    )
    for name, value in reference.items():
        assert np.linalg.norm(ours[name] - value) <= 2e-5 * np.linalg.norm(value)


def test_onnxruntime_runs_it_on_cpus_only(rewritten_bundle, monkeypatch):
    opened = []
    monkeypatch.setattr(ort_engines, "_open", lambda graph, *args: opened.append(graph.file))
    ort_engines.load(rewritten_bundle, "expert.mask", Placement("cpu"))
    ort_engines.load(rewritten_bundle, "vae.decode", Placement("cpu"))
    ort_cuda.load(rewritten_bundle, "expert.mask", Placement("cpu", "fp32"))
    assert opened == ["expert.mask.cpu.onnx", "vae.decode.onnx", "expert.mask.onnx"]


@pytest.mark.parametrize("file", ["expert.mask.onnx", "expert.mask.cpu.onnx"])
def test_each_graph_is_compared_with_torch(rewritten_bundle, file, monkeypatch):
    assert max(compare_networks(rewritten_bundle).values()) <= TOLERANCE
    real = ort_engines.OrtEngine.__call__

    class Altered(ort_engines.OrtEngine):
        def __init__(self, graph, spec, threads):
            super().__init__(graph, spec, threads)
            self._off = 1e-3 * (graph.file == file)

        def __call__(self, **inputs):
            return {name: value + self._off for name, value in real(self, **inputs).items()}

    monkeypatch.setattr("cdiff_rt.export.verify.OrtEngine", Altered)
    with pytest.raises(BadArtefact, match=f"network {file}: onnxruntime differs"):
        compare_networks(rewritten_bundle)
    errors = graph_errors(rewritten_bundle, "expert.mask")
    assert [name for name, error in errors.items() if error > TOLERANCE] == [file]
