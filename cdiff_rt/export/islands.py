"""What of a graph stays in fp32 whatever its engine computes in: parts that small errors would ruin.

Of an expert that others made, these are the numbers of its parameterisation, whose nodes are called `exact/...`; and
what sines of a timestep's embedding, and whole numbers such as a label, are made of, unless that depends on x.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

EXACT = "exact/"  # what the names of such nodes, and of their constants, begin with
_DELICATE = ("Sin", "Cos")


@dataclass(frozen=True, eq=False)
class Island:
    """Nodes that were taken out of a graph, constants of their own, and the types that values had."""

    nodes: "list[onnx.NodeProto]"
    constants: "list[onnx.TensorProto]"
    types: dict[str, int]


def take_out(graph: "onnx.GraphProto", types: dict[str, int]) -> Island:
    """The island of a graph, of whose values these are the types. Of constants that both need, it has copies."""
    chosen = _chosen(graph)
    nodes = [node for i, node in enumerate(graph.node) if i in chosen]
    rest = [node for i, node in enumerate(graph.node) if i not in chosen]
    used, shared = ({name for node in part for name in node.input} for part in (nodes, rest))
    constants = [_copy(tensor) for tensor in graph.initializer if tensor.name in used]
    kept = [tensor for tensor in graph.initializer if tensor.name in shared or tensor.name not in used]
    own = {tensor.name: f"{tensor.name}/exact" for tensor in constants}
    island = [_copy(node) for node in nodes]
    for node in island:
        node.input[:] = [own.get(name, name) for name in node.input]
    for tensor in constants:
        tensor.name = own[tensor.name]
    _replace(graph.initializer, kept)
    _replace(graph.node, rest)
    return Island(island, constants, types)


def put_back(graph: "onnx.GraphProto", island: Island, element: int) -> None:
    """Into a graph that has become of type `element` meanwhile, with casts where the two meet."""
    import onnx

    single, inside = onnx.TensorProto.FLOAT, {name for node in island.nodes for name in node.output}
    ends = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    owned = {tensor.name for tensor in island.constants}
    casts: dict[str, onnx.NodeProto] = {}

    def cast(name: str, made: str, to: int) -> str:
        casts.setdefault(made, onnx.helper.make_node("Cast", [name], [made], made, to=to))
        return made

    def as_island_takes(name: str) -> str:
        comes = name not in inside and name not in owned and island.types.get(name) == single
        return cast(name, f"{name}/wide", single) if comes and ends.get(name, element) != single else name

    for node in graph.node:
        goes = [name in inside and island.types.get(name) == single for name in node.input]
        node.input[:] = [cast(n, f"{n}/narrow", element) if g else n for n, g in zip(node.input, goes, strict=True)]
    for node in island.nodes:
        node.input[:] = map(as_island_takes, node.input)
    for name in [name for name in inside if ends.get(name, single) != single and island.types.get(name) == single]:
        for node in (*graph.node, *island.nodes, *casts.values()):
            for side in (node.input, node.output):
                side[:] = [f"{name}/single" if n == name else n for n in side]
        cast(f"{name}/single", name, ends[name])
    graph.initializer.extend(island.constants)
    _replace(graph.node, _in_order(graph, [*graph.node, *island.nodes, *casts.values()]))


def _chosen(graph: "onnx.GraphProto") -> set[int]:
    """The numbers of its nodes."""
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output}
    chosen = {i for i, node in enumerate(graph.node) if node.name.startswith(EXACT)}
    for i, node in enumerate(graph.node):
        if _is_delicate(node):
            before, of_x = _before(graph, maker, i)
            chosen |= set() if of_x else before
    return chosen


def _is_delicate(node: "onnx.NodeProto") -> bool:
    import onnx

    to = next((each.i for each in node.attribute if each.name == "to"), 0) if node.op_type == "Cast" else 0
    return node.op_type in _DELICATE or to in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


def _before(graph: "onnx.GraphProto", maker: dict[str, int], start: int) -> tuple[set[int], bool]:
    """All nodes that one depends on, and itself; and whether it depends on more of x than its shape."""
    found, todo, of_x = set[int](), [start], False
    while todo:
        i = todo.pop()
        node = graph.node[i]
        if i not in found and node.op_type != "Shape":
            of_x = of_x or "x" in node.input
            todo += [maker[name] for name in node.input if name in maker]
        found.add(i)
    return {i for i in found if graph.node[i].op_type != "Shape"}, of_x


def _in_order(graph: "onnx.GraphProto", nodes: "list[onnx.NodeProto]") -> "list[onnx.NodeProto]":
    """Each behind what it takes, else as they came."""
    maker = {name: node for node in nodes for name in node.output}
    placed: dict[int, onnx.NodeProto] = {}
    todo = [*reversed(nodes)]
    while todo:
        node = todo[-1]
        missing = [maker[n] for n in node.input if n in maker and id(maker[n]) not in placed]
        if missing and id(node) not in placed:
            todo += missing
        else:
            placed.setdefault(id(todo.pop()), node)
    return [*placed.values()]


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def _replace(field: Any, items: list) -> None:
    copies = [_copy(item) for item in items]
    del field[:]
    field.extend(copies)
