"""Graphs that a hash says are right and that no export has made: refused before a library reads them, in words."""

import onnx
import pytest
from onnx import helper

from cdiff_rt.engines.graphs import Graph, at_address, graph_of
from cdiff_rt.engines.weights import places
from cdiff_rt.errors import BadArtefact

FILE, WEIGHTS = "vae.decode.onnx", "weights.safetensors"
EXTERNAL = {"location": "/etc/passwd", "offset": "0", "length": "16"}


@pytest.fixture
def model(bundle):
    return onnx.load_from_string(bundle.content[FILE])


def read(bundle, content, part="vae."):
    return Graph.of({FILE: content, WEIGHTS: bundle.content[WEIGHTS]}, FILE, WEIGHTS, part)


def refusal(bundle, content, part="vae."):
    with pytest.raises(BadArtefact) as raised:
        read(bundle, content, part)
    assert str(raised.value).startswith(f"network {FILE}: ") and str(raised.value).isprintable()
    return str(raised.value)


def outside():
    tensor = helper.make_tensor("outside", onnx.TensorProto.FLOAT, [4], [0] * 4)
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in EXTERNAL.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_every_graph_of_the_embedded_model_is_read(bundle):
    for network, spec in bundle.manifest.networks.items():
        for file in spec.files:
            graph = graph_of(bundle, network, file)
            assert graph.model is bundle.content[file] and graph.data is bundle.content[WEIGHTS]


def test_only_the_place_of_the_weights_changes_on_the_way_to_an_address(bundle, model):
    moved = onnx.load_from_string(at_address(bundle.content[FILE], 4096))
    assert {e.value for t in moved.graph.initializer for e in t.external_data if e.key == "location"} == {
        "*/_ORT_MEM_ADDR_/*"
    }
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = WEIGHTS
            elif entry.key == "offset":
                entry.value = str(int(entry.value) - 4096)
    assert moved == model


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *(
            ("location", value, "instead of weights")
            for value in ("../vocab.txt", "/etc/passwd", "vocab.txt", "", "x/y")
        ),
        *(("location", value, "instead of weights") for value in (f"./{WEIGHTS}", f"{WEIGHTS}\0", f"{WEIGHTS}/../x")),
        ("location", "*/_ORT_MEM_ADDR_/*", "instead of weights"),
        *(("offset", value, "none of the weights") for value in ("-1", "", "0", "1e3", "²", "9" * 12, str(2**64 - 1))),
        *(("length", value, "none of the weights") for value in ("-1", "", "0", "2", "9" * 12, "0x10")),
        ("location ", "x", "lies in 'nowhere'"),
    ],
)
def test_weights_lie_nowhere_but_among_the_bundles(key, value, words, bundle, model):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    entry = next(entry for entry in tensor.external_data if entry.key == key.strip())
    entry.key, entry.value = key, value
    assert words in refusal(bundle, model.SerializeToString())


def test_a_place_that_stands_twice_is_refused(bundle, model):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    tensor.external_data.add(key="location", value="/etc/passwd")
    assert "'location' twice" in refusal(bundle, model.SerializeToString())


def test_weights_have_the_shape_and_the_type_that_they_are_stored_in(bundle, model):
    for field, value in (("data_type", onnx.TensorProto.BFLOAT16), ("dims", [1])):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        tensor = next(tensor for tensor in other.graph.initializer if tensor.external_data)
        tensor.dims[:] = value if field == "dims" else tensor.dims
        tensor.data_type = tensor.data_type if field == "dims" else value
        assert "none of the weights" in refusal(bundle, other.SerializeToString())


@pytest.mark.parametrize(("file", "part"), [("expert.text.onnx", "mask"), ("time.mask.onnx", "text")])
def test_another_networks_graph_is_told_by_its_weights(file, part, bundle):
    assert "it is another network's" in refusal(bundle, bundle.content[file], f"experts.{part}.")


def a_function(model):
    opsets = [helper.make_opsetid("", 23)]
    model.functions.append(helper.make_function("own", "f", ["x"], ["y"], [], opsets))


def an_attribute(model):
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=outside()))


def tensors_of_an_attribute(model):
    model.graph.node.append(helper.make_node("Constant", [], ["c"], values=[outside()]))


def sparse_weights(model):
    model.graph.sparse_initializer.add()


def another_domain(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def training(model):
    model.training_info.add()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (a_function, "functions"),
        (training, "training"),
        (an_attribute, "of its own"),
        (tensors_of_an_attribute, "of its own"),
        (sparse_weights, "sparse"),
        (another_domain, "'com.microsoft'"),
    ],
)
def test_a_graph_is_plain(change, words, bundle, model):
    change(model)
    assert words in refusal(bundle, model.SerializeToString())


@pytest.mark.parametrize("name", ["If", "Loop", "Scan", "SequenceMap", "Range", "ConstantOfShape", "Tile"])
def test_operators_without_bounds_are_named(name, bundle, model):
    model.graph.node.insert(0, helper.make_node(name, ["z"], ["y"], name="Ifs and Loops"))
    assert f"the operator {name};" in refusal(bundle, model.SerializeToString())
    model.graph.node[0].op_type = "Identity"
    read(bundle, model.SerializeToString())


@pytest.mark.parametrize(
    "content", [b"<html>", b"\xff" * 30, b"\x0a\xff\xff\xff\xff\x7f", b"\x3a\x05ab", b"\x38\x01", bytes(9)], ids=repr
)
def test_what_is_no_graph_is_refused(content, bundle):
    """Or holds nothing that is looked for, and then a library refuses it."""
    try:
        read(bundle, content)
    except BadArtefact as error:
        assert str(error).isprintable()


def test_flips_and_cuts_never_raise_anything_else(bundle):
    whole = bundle.content["time.mask.onnx"]
    for place in range(0, len(whole), 37):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :]):
            try:
                read(bundle, damaged, "experts.mask.")
            except BadArtefact as error:
                assert "network" in str(error)


def test_the_weights_are_where_their_header_says(bundle):
    content = bundle.content[WEIGHTS]
    place = places(content)["vae.decoder.conv_in.bias"]
    assert place.length == 2 * place.shape[0] and place.dtype == "F16"
    for damaged in (b"", content[:7], content[:100], content[:-1], b"\xff" * 8 + content[8:], bytes(8) + content[8:]):
        with pytest.raises(ValueError, match="weights"):
            places(damaged)
