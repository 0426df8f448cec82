"""A typed graph that ONNX Runtime computes as a GPU would store it: in fp32, every result rounded to its type.

ONNX Runtime's CPU has no kernels for bf16, and for fp16 it computes whole chains in fp32 without saying so.
"""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

ROUNDED = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def types_of(graph):
    """The element type of every tensor, by the rules of the few operators that change it."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
        to = TensorProto.INT64 if node.op_type == "Shape" else to
        for name in node.output:
            types[name] = to or types[node.input[1] if node.op_type == "Where" else node.input[0]]
    return types


def emulated(model):
    """The same graph in fp32, with roundings."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, types = copy.graph, types_of(model.graph)
    nodes = []

    def rounded(name, exact, to):
        cast = onnx.helper.make_node("Cast", [exact], [f"{name}~"], to=to)
        return [cast, onnx.helper.make_node("Cast", [f"{name}~"], [name], to=TensorProto.FLOAT)]

    for tensor in graph.initializer:
        if tensor.data_type in ROUNDED:
            name, tensor.name = tensor.name, f"{tensor.name}~"
            nodes.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in ROUNDED:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        kinds = [types[name] for name in node.output]
        if node.op_type == "Cast" and kinds[0] in ROUNDED:
            nodes += rounded(node.output[0], node.input[0], kinds[0])
            continue
        exact = [f"{name}!" if kind in ROUNDED else name for name, kind in zip(node.output, kinds, strict=True)]
        names, node.output[:] = list(node.output), exact
        nodes.append(node)
        for name, kind in zip(names, kinds, strict=True):
            nodes += rounded(name, f"{name}!", kind) if kind in ROUNDED else []
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def run(path, inputs, outputs):
    """Without optimisations, which would take some roundings away."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = {value.name: np.float32 if "float" in value.type else np.int64 for value in session.get_inputs()}
    return dict(zip(outputs, session.run(outputs, {n: v.astype(kinds[n]) for n, v in inputs.items()}), strict=True))
