import getpass
import socket
from pathlib import Path

import onnx
import pytest
import torch
from safetensors import safe_open

from cdiff_rt.engines.weights import part_of
from cdiff_rt.export.to_onnx import OPSET, example_inputs
from cdiff_rt.manifest import NetworkSpec, TensorSpec

NETWORKS = ["vae.encode", "vae.decode"] + [
    f"{part}.{name}" for part in ("condition", "time", "expert") for name in ("mask", "text")
]
LARGEST_GRAPH = 200_000  # bytes; the tiny model's weights have 1.5 MB


@pytest.fixture(params=NETWORKS)
def network(request):
    return request.param


@pytest.fixture
def path(tiny_bundle, network):
    return tiny_bundle / f"{network}.onnx"


@pytest.fixture
def graph(path):
    return onnx.load(path, load_external_data=False).graph


def is_external(tensor):
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def test_graphs_hold_no_weights(path, graph):
    assert path.stat().st_size < LARGEST_GRAPH
    inline = [tensor for tensor in graph.initializer if not is_external(tensor)]
    assert all(len(tensor.raw_data) <= 4096 for tensor in inline)
    assert sum(len(tensor.raw_data) for tensor in inline) <= 8192
    assert any(is_external(tensor) for tensor in graph.initializer)


def test_weights_are_read_from_their_place_in_the_shared_file(tiny_bundle, network, graph):
    part = f"{part_of(network)}."
    stored = (tiny_bundle / "weights.safetensors").read_bytes()
    with safe_open(tiny_bundle / "weights.safetensors", "np") as weights:
        for tensor in filter(is_external, graph.initializer):
            place = {entry.key: entry.value for entry in tensor.external_data}
            expected = weights.get_tensor(part + tensor.name.removeprefix("model.").removesuffix(".fp16"))
            start = int(place["offset"])
            assert place["location"] == "weights.safetensors"
            assert tensor.data_type == onnx.TensorProto.FLOAT16
            assert tuple(tensor.dims) == expected.shape
            assert stored[start : start + int(place["length"])] == expected.tobytes()


def test_files_tell_nothing_of_the_machine_that_wrote_them(path):
    content = path.read_bytes()
    places = {
        str(Path.home()),
        str(Path(torch.__file__).parent),
        str(Path.cwd()),
        str(path.parent),
        socket.gethostname(),
    }
    telltales = {*places, getpass.getuser() + "/", ".py", "site-packages", 'File "', "forward(", "pkg.torch"} - {
        "/",
        "root/",
    }
    assert not [word for word in telltales if word.encode() in content]


def test_graphs_pass_the_checker(path):
    model = onnx.load(path, load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
    onnx.checker.check_model(str(path))


@pytest.mark.parametrize(
    ("network", "count"),
    [("expert.mask", 6), ("expert.text", 4), ("condition.text", 1), ("condition.mask", 0), ("vae.decode", 1)],
)
def test_each_attention_is_one_operator(graph, count):
    """The mask's branch has two transformer blocks, the text's and the diffusers one; each attends twice."""
    assert sum(node.op_type == "Attention" for node in graph.node) == count
    assert not any(node.op_type == "Softmax" for node in graph.node)


@pytest.mark.parametrize("size", [1, 3])
def test_example_inputs_have_the_shapes_of_the_specification(size):
    spec = NetworkSpec(
        "x.onnx", (TensorSpec("x", ("batch", 3, 8), "float32"), TensorSpec("ids", ("batch", 6), "int64")), ()
    )
    x, ids = example_inputs(spec, size)
    assert (x.shape, x.dtype) == ((size, 3, 8), torch.float32)
    assert (ids.shape, ids.dtype) == ((size, 6), torch.int64)
