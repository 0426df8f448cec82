"""Networks that others made as a bundle's graphs, and around each expert's the four numbers of its parameterisation.

v = a_x x + a_out F(c_in x, time): these nodes are called `exact/...` and stay in fp32 in engines of half precision
(islands.py). All graphs point into one file of weights. A network that tells the expert's influence stands beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cdiff_rt.errors import BadRequest
from cdiff_rt.export.brought import Given, Network
from cdiff_rt.export.islands import EXACT
from cdiff_rt.export.stored import Stored
from cdiff_rt.export.to_onnx import OPSET, cast_from_fp16, strip
from cdiff_rt.export.typed import element_type, rename
from cdiff_rt.manifest import NetworkSpec, TensorSpec

if TYPE_CHECKING:
    import onnx

Nodes = Sequence[tuple[str, list[str], str]]  # operator, what it takes, what it makes
Small = tuple[Nodes, Mapping[str, Any]]  # with constants
WHOLE = ("int32", "int64")
NUMBERS = (
    "c_in",
    "time",
    "a_x",
    "a_out",
    "told",
)  # columns of projections; the last is what the logit is told of noise


class _Nodes:
    """Nodes and constants, as they come."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        import onnx

        self._node = onnx.helper.make_node
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]

    def add(self, kind: str, taken: list[str], made: str, **attributes: Any) -> str:
        self.nodes.append(self._node(kind, taken, [made], f"{made}/made", **attributes))
        return made

    def typed(self, value: str, given: Given, made: str, kind: str = "float32") -> str:
        """A value of this type as that input wants it: rounded, where that is a whole number."""
        if given.dtype != kind:
            value = self.add("Round", [value], f"{made}/rounded") if kind not in WHOLE else value
            value = self.add("Cast", [value], f"{made}/whole", to=element_type(given.dtype))
        return self.add("Identity", [value], made)

    def end(self, kind: str, taken: list[str], made: str) -> None:
        """An output of the graph, which stays exact."""
        self.add(kind, taken, made)
        self.nodes[-1].name = f"{EXACT}{made}"

    def constant(self, name: str, value: Iterable[int]) -> str:
        import onnx

        self.constants.append(onnx.numpy_helper.from_array(np.array([*value], np.int64), name))
        return name

    def feed(self, network: Network, prefix: str, x: str, time: str, batch: str) -> None:
        """What a network takes, of the loop's x or its own, its time, and the context."""
        takes = network.takes
        inner = {role: f"{prefix}/{given.name}" for role, given in takes.items()}
        self.add("Identity", [x], inner["x"])
        if takes["time"].batched:
            times = self.add("Expand", [time, batch], f"{EXACT}{prefix}/times")
        else:
            sizes = self.constant(f"{EXACT}{prefix}/sizes", takes["time"].shape)
            times = self.add("Reshape", [time, sizes], f"{EXACT}{prefix}/times")
        self.typed(times, takes["time"], inner["time"])
        if condition := takes.get("condition"):
            shape = self.constant(f"{EXACT}{prefix}/shape", (-1, *condition.shape))
            shaped = self.add("Reshape", ["context", shape], f"{EXACT}{prefix}/condition")
            self.typed(shaped, condition, inner["condition"])

    def spread(self, value: str, rank: int, batch: str, shape: tuple[int | str, ...]) -> None:
        """A logit [B], or of any sizes that broadcast, over all places: [B, 1, *latent]."""
        if rank == 1:
            alone = self.constant("influence/alone", (-1, *(1,) * (len(shape) - 1)))
            value = self.add("Reshape", [value, alone], "influence/column")
        sizes = self.constant("influence/places", [size for size in shape if isinstance(size, int)])
        whole = self.add("Concat", [batch, sizes], "influence/sizes", axis=0)
        self.add("Expand", [value, whole], "logit")


def expert_graph(
    network: Network, logit: Network | None, spec: NetworkSpec, weights: str, places: Mapping[str, Stored]
) -> "onnx.ModelProto":
    """x, projections [1, 4], context -> out, logit, of zeros without a network of its own; with one [1, 5]."""
    used = NUMBERS if logit else NUMBERS[:-1]
    constants: dict[str, Any] = {f"{EXACT}{i}": np.array(i, np.int64) for i in range(len(used))}
    constants |= {
        f"{EXACT}axis": np.array([1]),
        f"{EXACT}none": np.array(0, np.float32),
        f"{EXACT}first": np.array([0]),
    }
    made = _Nodes(constants)
    numbers = {
        name: made.add("Gather", ["projections", f"{EXACT}{i}"], f"{EXACT}{name}", axis=1)
        for i, name in enumerate(used)
    }
    whole = made.add("Shape", ["x"], f"{EXACT}x/shape")
    batch = made.add("Gather", [whole, f"{EXACT}first"], f"{EXACT}batch")
    made.add("Mul", ["x", numbers["c_in"]], f"{EXACT}x_in")
    made.feed(network, "net", f"{EXACT}x_in", numbers["time"], batch)
    models = [_pointing(network, weights, places)]
    if logit:
        made.feed(logit, "influence", "x", numbers["told"], batch)
        models.append(_pointing(logit, weights, places, "influence"))
    before, made.nodes = made.nodes, []
    scaled = made.add("Mul", ["x", numbers["a_x"]], f"{EXACT}of_x")
    predicted = made.add("Mul", [f"net/{network.out}", numbers["a_out"]], f"{EXACT}of_out")
    made.end("Add", [scaled, predicted], "out")
    if logit:
        made.spread(f"influence/{logit.out}", logit.rank, batch, _shape_of(spec, "logit"))
    else:
        total = made.add("ReduceSum", ["x", f"{EXACT}axis"], f"{EXACT}sum", keepdims=1)
        made.end("Mul", [total, f"{EXACT}none"], "logit")
    model = _together(models)
    return _model(model, [*before, *model.graph.node, *made.nodes], made.constants, spec)


def _shape_of(spec: NetworkSpec, output: str) -> tuple[int | str, ...]:
    return next(tensor.shape for tensor in spec.outputs if tensor.name == output)


def _together(models: "list[onnx.ModelProto]") -> "onnx.ModelProto":
    """One with the nodes and weights of all. Raises BadRequest for operators of different versions."""
    first, *others = models
    for other in others:
        versions = [each.version for model in (first, other) for each in model.opset_import if not each.domain]
        if len(set(versions)) > 1:
            seen = f"opsets {' and '.join(map(str, versions))} of an expert and its logit"
            raise BadRequest("experts", seen, f"export them with opset {OPSET}")
        first.ir_version = max(first.ir_version, other.ir_version)
        first.graph.node.extend(other.graph.node)
        first.graph.initializer.extend(other.graph.initializer)
    return first


def plain_graph(
    network: Network, spec: NetworkSpec, weights: str, places: Mapping[str, Stored], more: Small = ((), {})
) -> "onnx.ModelProto":
    """The network itself, under the names of the spec: one input, one output; and `more` that follows from this."""
    model, made = _pointing(network, weights, places), _Nodes(more[1])
    (given,), (taken,), (out, *_) = network.takes.values(), spec.inputs, spec.outputs
    rename(model.graph.node, {f"net/{given.name}": taken.name, f"net/{network.out}": out.name})
    for kind, inputs, output in more[0]:
        made.add(kind, inputs, output)
    return _model(model, [*model.graph.node, *made.nodes], made.constants, spec)


def encoder_graph(network: Network, spec: NetworkSpec, weights: str, places: Mapping[str, Stored]) -> "onnx.ModelProto":
    """inputs -> context, whatever shape the network itself has these in."""
    (given,), (taken,), (out,) = network.takes.values(), spec.inputs, spec.outputs
    made = _Nodes({"shape/in": np.array([-1, *given.shape]), "shape/out": np.array([-1, *out.shape[1:]])})
    shaped = made.add("Reshape", [taken.name, "shape/in"], "shaped")
    made.typed(shaped, given, f"net/{given.name}", taken.dtype)
    before, made.nodes = made.nodes, []
    made.add("Reshape", [f"net/{network.out}", "shape/out"], out.name)
    model = _pointing(network, weights, places)
    return _model(model, [*before, *model.graph.node, *made.nodes], made.constants, spec)


def small_graph(spec: NetworkSpec, nodes: Nodes, constants: Mapping[str, Any]) -> "onnx.ModelProto":
    """One of a few nodes, whose constants it holds itself."""
    import onnx

    made = _Nodes(constants)
    for kind, taken, out in nodes:
        made.add(kind, taken, out)
    graph = onnx.helper.make_graph([], "network", [], [])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    return _model(model, made.nodes, made.constants, spec)


def _pointing(network: Network, weights: str, places: Mapping[str, Stored], prefix: str = "net") -> "onnx.ModelProto":
    """Its model, whose large weights lie in the file, and whose names all begin with the prefix."""
    from onnxscript import ir

    for inner, name in network.stored.items():
        place, value = places[name], network.model.graph.initializers[inner]
        kind = ir.DataType.FLOAT16 if place.dtype == "float16" else ir.DataType.FLOAT
        shape = ir.Shape(place.shape)
        value.const_value = ir.ExternalTensor(weights, place.offset, place.length, kind, shape=shape, name=inner)
    model = ir.to_proto(network.model)
    cast_from_fp16(model.graph)
    strip(model)
    tensors = [*model.graph.initializer]
    values = {name for node in model.graph.node for name in (*node.input, *node.output)} - {""}
    rename(model.graph.node, {name: f"{prefix}/{name}" for name in values})
    for named in (*tensors, *model.graph.node):
        named.name = named.name and f"{prefix}/{named.name}"
    return model


def _model(
    model: "onnx.ModelProto", nodes: "list[onnx.NodeProto]", constants: "list[onnx.TensorProto]", spec: NetworkSpec
) -> "onnx.ModelProto":
    import onnx

    def value(tensor: TensorSpec) -> "onnx.ValueInfoProto":
        return onnx.helper.make_tensor_value_info(tensor.name, element_type(tensor.dtype), tensor.shape)

    graph = model.graph
    graph.name = "network"
    kept = [*nodes]
    for field in ("node", "input", "output", "value_info"):
        graph.ClearField(field)
    graph.node.extend(kept)
    graph.initializer.extend(constants)
    graph.input.extend(map(value, spec.inputs))
    graph.output.extend(map(value, spec.outputs))
    return model
