"""A network's graph in an engine's types: strongly typed, its sizes fixed, its weights as they lie in the bundle.

What runs at each step, and the autoencoder, is in the precision asked for; what runs once per image or schedule stays
fp32, for the angles of a timestep's embedding need more digits than fp16 has. A graph still holds no weight itself.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cdiff_rt.engines.base import DTYPES, Placement, device_spec, precision_of
from cdiff_rt.engines.graphs import graph_of
from cdiff_rt.errors import OutOfResource
from cdiff_rt.export.islands import EXACT, put_back, take_out
from cdiff_rt.manifest import Bundle, NetworkSpec

if TYPE_CHECKING:
    import onnx

_FP32_OPERATORS = {"BFLOAT16": {"ConvTranspose"}}  # TensorRT-RTX 1.7 has no deconvolution in bf16
_FP32_INPUTS = {"Resize": (1, 2)}  # which ONNX wants as fp32 whatever the data's type


class Typed(NamedTuple):
    model: "onnx.ModelProto"
    spec: NetworkSpec  # with the engine's types; the sizes that were fixed are numbers


Rewrite = Callable[["onnx.ModelProto"], object]


def typed_network(bundle: Bundle, network: str, placement: Placement, rewrite: Rewrite | None = None) -> Typed:
    """The graph of one network as an engine of this placement computes it.

    `rewrite` makes of it in place what the library of the engine computes best; None: what TensorRT does.
    """
    import onnx

    model = onnx.load_from_string(graph_of(bundle, network).model)
    return typed_model(model, bundle.manifest.networks[network], network, placement, rewrite)


def typed_model(
    model: "onnx.ModelProto", source: NetworkSpec, network: str, placement: Placement, rewrite: Rewrite | None = None
) -> Typed:
    """The same of a graph with the inputs and outputs of `source`, which is changed in place."""
    spec = device_spec(source, network, placement)
    element = element_type(DTYPES[precision_of(network, placement)])
    _declare(model.graph, source, spec)
    (rewrite or expand_attention)(model)
    exact = element != element_type("float32") and any(node.name.startswith(EXACT) for node in model.graph.node)
    island = take_out(model.graph, types_of(model)) if exact else None
    _retype(model.graph, element)
    _cast_boundary(model.graph, spec, element)
    if island:
        put_back(model.graph, island, element)
    return Typed(model, spec)


def write_typed(model: "onnx.ModelProto", bundle: Bundle, folder: Path, name: str) -> Path:
    """Writes `name`.onnx into `folder`, beside the weights that it points into. Raises OutOfResource."""
    path, weights = folder / f"{name}.onnx", folder / bundle.manifest.weights
    try:
        path.write_bytes(model.SerializeToString())
        if not weights.exists():
            weights.write_bytes(bundle.content[bundle.manifest.weights])
    except OSError as error:
        raise OutOfResource(f"writing {path.name}", error.strerror or str(error), "free some space") from error
    return path


def element_type(dtype: str) -> int:
    """ONNX's number of a type, by the name that numpy and torch give it."""
    import onnx

    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))  # onnx has taught numpy bfloat16


def _declare(graph: "onnx.GraphProto", source: NetworkSpec, spec: NetworkSpec) -> None:
    """Inputs and outputs get the sizes of the spec, still in the types of the source."""
    import onnx

    dtypes = {tensor.name: tensor.dtype for tensor in (*source.inputs, *source.outputs)}
    shapes = {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}
    for value in (*graph.input, *graph.output):
        element = element_type(dtypes[value.name])
        value.type.CopyFrom(onnx.helper.make_tensor_type_proto(element, shapes[value.name]))


def expand_attention(model: "onnx.ModelProto") -> None:
    """`Attention` as its two products and a softmax.

    TensorRT fuses those just the same and without the copies that it makes around the whole operator; and where it
    has no fused kernel (one wide head, fp32) it runs them, while it refuses to build the whole operator.
    """
    graph = model.graph
    scaled = any(node.op_type == "Attention" and not attributes(node).get("scale") for node in graph.node)
    shapes = shapes_of(model) if scaled else {}
    nodes = [
        part for node in graph.node for part in (_products(graph, node, shapes) if _is_attention(node) else [node])
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def _is_attention(node: "onnx.NodeProto") -> bool:
    return node.op_type == "Attention"


def attributes(node: "onnx.NodeProto") -> dict:
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def shapes_of(model: "onnx.ModelProto") -> dict[str, tuple[int, ...]]:
    """The sizes of every tensor; 0 where it isn't known before it runs."""
    shapes = {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in _inferred(model)}
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def types_of(model: "onnx.ModelProto") -> dict[str, int]:
    """Of every tensor, as ONNX numbers them."""
    types = {value.name: value.type.tensor_type.elem_type for value in _inferred(model)}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _inferred(model: "onnx.ModelProto") -> "list[onnx.ValueInfoProto]":
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "GroupNormalization":  # through which onnx 1.23 infers no shape
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    graph = onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True).graph
    return [*graph.value_info, *graph.input, *graph.output]


def _products(
    graph: "onnx.GraphProto", node: "onnx.NodeProto", shapes: dict[str, tuple[int, ...]]
) -> "list[onnx.NodeProto]":
    """softmax(scale q k^T + mask) v. The scale comes first, so that the scores stay within fp16."""
    import onnx

    given, (query, key, value, *mask), (out,) = attributes(node), node.input, node.output
    assert not any(given.get(name) for name in ("is_causal", "softcap", "qk_matmul_output_mode")), given
    scale = given.get("scale") or shapes[query][-1] ** -0.5
    graph.initializer.append(onnx.helper.make_tensor(f"{out}/scale", onnx.TensorProto.FLOAT, (), [scale]))
    steps: list[tuple[str, list[str], str, dict[str, object]]] = [
        ("Mul", [query, f"{out}/scale"], f"{out}/scaled", {}),
        ("Transpose", [key], f"{out}/keys", {"perm": [0, 1, 3, 2]}),
        ("MatMul", [f"{out}/scaled", f"{out}/keys"], f"{out}/scores", {}),
        *([("Add", [f"{out}/scores", *mask], f"{out}/seen", {})] if mask else []),
        ("Softmax", [f"{out}/{'seen' if mask else 'scores'}"], f"{out}/weights", {"axis": -1}),
        ("MatMul", [f"{out}/weights", value], out, {}),
    ]
    return [onnx.helper.make_node(kind, taken, [made], made, **given) for kind, taken, made, given in steps]


def _retype(graph: "onnx.GraphProto", element: int) -> None:
    """Everything that is fp32 becomes `element`, but for what an operator or the engines want as fp32."""
    import onnx

    kept = {node.input[i] for node in graph.node for i in _FP32_INPUTS.get(node.op_type, ()) if i < len(node.input)}
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
    nodes = [node for node in graph.node if not (node.op_type == "Cast" and node.input[0] in weights)]
    for tensor in graph.initializer:
        if tensor.name not in weights and tensor.name not in kept:
            tensor.CopyFrom(_converted(tensor, element))
    for node in nodes:
        _retype_attributes(node, element)
    wide = _FP32_OPERATORS.get(onnx.TensorProto.DataType.Name(element), set())
    computed = [part for node in nodes for part in (_in_fp32(node, element) if node.op_type in wide else [node])]
    casts = [cast for tensor in weights.values() for cast in _bring(tensor, element)]
    del graph.node[:]
    graph.node.extend([*casts, *computed])


def _converted(tensor: "onnx.TensorProto", element: int) -> "onnx.TensorProto":
    import onnx

    if tensor.data_type != onnx.TensorProto.FLOAT:
        return tensor
    array = onnx.numpy_helper.to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(element))
    return onnx.numpy_helper.from_array(array, tensor.name)


def _retype_attributes(node: "onnx.NodeProto", element: int) -> None:
    import onnx

    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
            attribute.i = element
        if attribute.type == onnx.AttributeProto.TENSOR:
            attribute.t.CopyFrom(_converted(attribute.t, element))


def _bring(tensor: "onnx.TensorProto", element: int) -> "Iterator[onnx.NodeProto]":
    """A weight under its own name in `element`: itself, or by a Cast that builders fold."""
    import onnx

    name = tensor.name.removesuffix(".fp16")
    tensor.name = name if tensor.data_type == element else f"{name}.stored"
    if tensor.name != name:
        yield onnx.helper.make_node("Cast", [tensor.name], [name], name, to=element)


def _in_fp32(node: "onnx.NodeProto", element: int) -> "Iterator[onnx.NodeProto]":
    import onnx

    (out,) = node.output
    for i, name in enumerate(node.input):
        node.input[i] = f"{out}/{i}"
        yield onnx.helper.make_node("Cast", [name], [node.input[i]], node.input[i], to=onnx.TensorProto.FLOAT)
    node.output[0] = f"{out}/fp32"
    yield node
    yield onnx.helper.make_node("Cast", [node.output[0]], [out], f"{out}/back", to=element)


def _cast_boundary(graph: "onnx.GraphProto", spec: NetworkSpec, element: int) -> None:
    """Inputs and outputs get the types of the spec, and a Cast where the graph's own is another."""
    import onnx

    before, after = [], []
    for tensor in (*spec.inputs, *spec.outputs):
        (value,) = (value for value in (*graph.input, *graph.output) if value.name == tensor.name)
        value.type.tensor_type.elem_type = element_type(tensor.dtype)
        if tensor.dtype != "float32" or element == onnx.TensorProto.FLOAT:
            continue
        inner = f"{tensor.name}/typed"
        rename(graph.node, {tensor.name: inner})
        if tensor in spec.inputs:
            before.append(onnx.helper.make_node("Cast", [tensor.name], [inner], inner, to=element))
        else:
            after.append(onnx.helper.make_node("Cast", [inner], [tensor.name], tensor.name, to=onnx.TensorProto.FLOAT))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)


def rename(nodes: "list[onnx.NodeProto]", names: dict[str, str]) -> None:
    for node in nodes:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
