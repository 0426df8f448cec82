"""The builder: TensorRT-RTX itself on tiny graphs, and a stand-in where only the full library or a fault will do."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cdiff_rt.engines.trt_build import Layer, Report, build_plan
from cdiff_rt.engines.trt_library import FLAVOURS
from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest
from tests.engines import standin_trt

RTX, FULL = FLAVOURS["tensorrt-rtx"], FLAVOURS["tensorrt"]
HALF, SINGLE, BRAIN = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.BFLOAT16
TARGETS = ("8.6", "8.9", "12.0")


def write(folder, nodes, inputs, outputs, constants=(), opset=23):
    """name -> (type, shape) of inputs and outputs."""
    values = [[helper.make_tensor_value_info(n, *v) for n, v in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *values, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path = folder / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def attention(folder, *, heads=4, tokens=64, context=16, width=16, kind=HALF):
    nodes = [
        helper.make_node("Mul", ["q", "scale"], ["scaled"], "scaled"),
        helper.make_node("Transpose", ["k"], ["keys"], "keys", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["scaled", "keys"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], "weights", axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["out"], "out"),
    ]
    q, kv = (kind, [1, heads, tokens, width]), (kind, [1, heads, context, width])
    scale = helper.make_tensor("scale", kind, (), [width**-0.5])
    return write(folder, nodes, {"q": q, "k": kv, "v": kv}, {"out": q}, [scale])


def add(folder, first=HALF, second=HALF, shape=(4,), operator="Add", out=None):
    node = helper.make_node(operator, ["a", "b"], ["c"], "node_a_b")
    return write(folder, [node], {"a": (first, shape), "b": (second, shape)}, {"c": (out or first, shape)})


# --- TensorRT-RTX ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HALF, BRAIN])
@pytest.mark.parametrize("width", [16, 32, 48, 64])
def test_attention_with_heads_of_a_multiple_of_16_is_fused(kind, width, tmp_path):
    report = build_plan(attention(tmp_path, width=width, kind=kind), RTX, TARGETS, {}).report
    assert (report.attentions, len(report.fused_attentions), report.softmaxes) == (1, 1, [])
    assert report.fused_attentions[0].tactic.startswith("_gemm_mha_v2")


@pytest.mark.parametrize("settings", [{"width": 3}, {"width": 8}, {"kind": SINGLE}, {"heads": 1, "width": 96}], ids=str)
def test_other_attention_is_not_and_the_report_says_so(settings, tmp_path):
    """Which is why heads are padded, and why the report must be looked at. Should one of these ever be fused: good."""
    report = build_plan(attention(tmp_path, **settings), RTX, TARGETS, {}).report
    assert (report.attentions, report.fused_attentions) == (1, [])
    assert len(report.softmaxes) >= 1


def test_a_cast_of_its_own_is_reported(tmp_path):
    nodes = [helper.make_node("Cast", ["a"], ["c"], "cast", to=HALF)]
    report = build_plan(write(tmp_path, nodes, {"a": (SINGLE, [64])}, {"c": (HALF, [64])}), RTX, TARGETS, {}).report
    assert len(report.casts) == len(report.kernels) == 1
    assert not build_plan(add(tmp_path), RTX, TARGETS, {}).report.casts


def test_it_is_built_so_that_a_graph_can_capture_it(tmp_path, monkeypatch):
    import tensorrt_rtx

    flags = []
    monkeypatch.setattr(
        tensorrt_rtx.IBuilderConfig, "set_flag", lambda config, flag: flags.append(flag.name), raising=True
    )
    build_plan(add(tmp_path), RTX, TARGETS, {})
    assert flags == ["REQUIRE_USER_ALLOCATION"]


def test_a_size_may_be_left_open(tmp_path):
    path = add(tmp_path, shape=("steps", 8))
    assert build_plan(path, RTX, TARGETS, {"steps": (1, 50, 1000)}).plan


def refused(error, path, capabilities=TARGETS, profile=None, **settings):
    with pytest.raises(error) as raised:
        build_plan(path, RTX, capabilities, profile or {}, **settings)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 700
    return message


def test_an_unknown_operator_is_named(tmp_path):
    message = refused(BadArtefact, add(tmp_path, operator="Gelu2"))
    assert message.startswith("network graph: TensorRT refuses it (Gelu2 node_a_b: ") and "Plugin not found" in message


def test_a_mix_of_types_is_refused(tmp_path):
    assert "must have same input types" in refused(BadArtefact, add(tmp_path, HALF, SINGLE))


def test_bf16_is_refused_for_turing(tmp_path):
    message = refused(BadArtefact, attention(tmp_path, kind=BRAIN), ("7.5",))
    assert "sm75" in message.lower()


def test_an_open_size_without_a_range_is_refused(tmp_path):
    message = refused(BadRequest, add(tmp_path, shape=("steps", 8)))
    assert message == "network graph: its size 'steps' is open; fix it, or give a range for it"


@pytest.mark.parametrize("capability", ["9.0", "10.0", "8", "sm86", "8.6 ", ""])
def test_gpus_that_it_does_not_know_are_sent_to_the_full_library(capability, tmp_path):
    message = refused(BadRequest, add(tmp_path), ("8.6", capability))
    assert f"compute capability: {capability}, but tensorrt-rtx knows 7.5, 8.0, 8.6, 8.9, 12.0" in message
    assert "--target tensorrt" in message


def test_for_no_gpu_at_all_nothing_is_built(tmp_path):
    assert "none, but tensorrt-rtx knows" in refused(BadRequest, add(tmp_path), ())


def test_it_builds_nothing_to_be_refitted_without_a_gpu(tmp_path):
    assert "refit: tensorrt-rtx" in refused(BadRequest, add(tmp_path), refit=True)


@pytest.mark.parametrize("content", [b"", b"<html></html>", bytes(100)], ids=["empty", "html", "zeros"])
def test_what_is_no_graph_is_refused(content, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(content)
    assert refused(BadArtefact, tmp_path / "graph.onnx").startswith("network graph: TensorRT refuses it (")


def test_weights_that_are_missing_are_refused(tmp_path):
    path = add(tmp_path)
    model = onnx.load(path)
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float16), "b")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.safetensors")
    del model.graph.input[1]
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    refused(BadArtefact, path)


# --- a stand-in ------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch):
    return standin_trt.install(monkeypatch)


def test_the_full_library_takes_the_same_way(full, tmp_path):
    built = build_plan(attention(tmp_path), FULL, ("8.6",), {}, timing=b"old")
    assert built.plan.startswith(standin_trt.MAGIC) and built.timing == b"old."
    assert full.timing_given == b"old"
    assert (built.report.attentions, len(built.report.fused_attentions)) == (1, 1)


def test_it_can_be_built_to_be_refitted(full, tmp_path, monkeypatch):
    configs = []
    monkeypatch.setattr(standin_trt.Config, "set_flag", lambda config, flag: configs.append(flag))
    build_plan(attention(tmp_path), FULL, ("8.6",), {}, refit=True)
    assert configs == ["refit"]


@pytest.mark.parametrize(
    ("words", "error", "seen"),
    [
        ("Error Code 1: out of\n tactics", BadArtefact, "Error Code 1: out of tactics"),
        ("Error Code 1: Cuda Runtime (cudaError 35)", BadEnvironment, "cudaError 35"),
        ("CUDA initialization failure with error: 35", BadEnvironment, "CUDA initialization"),
        ("x" * 10_000, BadArtefact, "x" * 100),
    ],
)
def test_the_builders_words_are_one_line(words, error, seen, full, tmp_path, monkeypatch):
    def fail(builder, network, config):
        builder._log.log(standin_trt.Severity.ERROR, words)

    monkeypatch.setattr(standin_trt.Builder, "build_serialized_network", fail)
    with pytest.raises(error, match=seen) as raised:
        build_plan(attention(tmp_path), FULL, ("8.6",), {})
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700


def test_a_builder_without_a_word_is_an_error_too(full, tmp_path, monkeypatch):
    monkeypatch.setattr(standin_trt.Builder, "build_serialized_network", lambda *given: None)
    with pytest.raises(BadArtefact, match="gave up without a word"):
        build_plan(attention(tmp_path), FULL, ("8.6",), {})


def test_without_a_gpu_the_full_library_is_not_asked(full, tmp_path, monkeypatch):
    monkeypatch.setattr("cdiff_rt.engines.trt_library.why_no_device", lambda: "no NVIDIA driver is installed")
    with pytest.raises(BadEnvironment, match="no NVIDIA driver"):
        build_plan(attention(tmp_path), FULL, ("8.6",), {})
    assert not full.calls


# --- the report ------------------------------------------------------------------------------------------------------


def test_what_a_report_counts():
    names = {
        "_gemm_mha_v2_myl0_1": ("a",),
        "__myl_MaxrSubExpSumDiv_myl0_2": ("weights",),
        "__myl_Cast_myl0_3": ("b",),
        "__myl_MoveReshTran_myl0_4": ("c",),
        "__myl_CastMeanSub_myl0_5": ("d",),
        "node_conv2d_39_myl0_6": ("e",),
    }
    layers = [Layer(name, "kgen", "t", made_of, 10) for name, made_of in names.items()]
    report = Report((*layers, Layer("wait_myl0_7", "wait", "", (), 5)), ("weights",), 1.0)
    counted = {
        "kernels": list(names),
        "fused_attentions": ["_gemm_mha_v2_myl0_1"],
        "softmaxes": ["__myl_MaxrSubExpSumDiv_myl0_2"],
        "casts": ["__myl_Cast_myl0_3"],
        "copies": ["__myl_MoveReshTran_myl0_4"],
    }
    assert report.bytes == 60
    for name, expected in counted.items():
        assert [layer.name for layer in getattr(report, name)] == expected, name


@pytest.mark.parametrize(("kind", "size"), [(HALF, 2), (BRAIN, 2), (SINGLE, 4)])
def test_what_a_kernel_moves_is_counted(kind, size, tmp_path):
    report = build_plan(add(tmp_path, kind, kind, shape=(64, 3)), RTX, TARGETS, {}).report
    assert report.bytes == 3 * 64 * 3 * size
