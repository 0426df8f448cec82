"""Networks that others made as a bundle's graphs: traced, or read from an ONNX file, and around each expert's the four
numbers of its parameterisation.

v = a_x x + a_out F(c_in x, time): these nodes are called `exact/...` and stay in fp32 in engines of half precision
(islands.py). All graphs point into one file of weights, and experts of one network share them.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cdiff_rt.errors import BadRequest
from cdiff_rt.export.islands import EXACT
from cdiff_rt.export.stored import Stored
from cdiff_rt.export.to_onnx import LARGEST_INLINE, OPSET, cast_from_fp16, quiet_exporter, strip
from cdiff_rt.export.typed import element_type, rename
from cdiff_rt.manifest import NetworkSpec, TensorSpec

if TYPE_CHECKING:
    import onnx
    from onnxscript import ir

WHOLE = ("int32", "int64")
OLDEST = 13  # opset, of the nodes that are put around
FOLDED = ("ConstantOfShape", "OneHot", "Range", "Tile")
Nodes = Sequence[tuple[str, list[str], str]]  # operator, what it takes, what it makes
Small = tuple[Nodes, Mapping[str, Any]]  # with constants
Specs = dict[str, tuple[str, tuple[int, ...]]]  # of weights: name -> type, shape


class Given(NamedTuple):
    """What a network takes, by its name there; in front of its shape stands the batch, if it is batched."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    batched: bool = True


@dataclass(frozen=True, eq=False)
class Network:
    """A graph, what it takes by its roles (x, time and perhaps condition; or z), and what it gives."""

    model: "ir.Model"
    takes: Mapping[str, Given]
    out: str
    stored: Mapping[str, str]  # its large weights -> their names in the file

    @property
    def weights(self) -> "dict[str, ir.Value]":
        return {name: self.model.graph.initializers[inner] for inner, name in self.stored.items()}


def traced(module: nn.Module, takes: Mapping[str, Given], prefix: str) -> Network:
    """The graph of `module(*tensors)`; what torch raises for one that cannot be traced comes out as it is."""
    weight = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(0))
    module = module if weight.dtype == torch.float32 else copy.deepcopy(module).float()
    kinds = {name: getattr(torch, each.dtype) for name, each in takes.items()}
    examples = tuple(torch.zeros(2, *each.shape, dtype=kinds[n], device=weight.device) for n, each in takes.items())
    with quiet_exporter():
        program = torch.onnx.export(
            _Plain(module).eval(),
            examples,
            input_names=[each.name for each in takes.values()],
            output_names=["out"],
            dynamic_shapes=(tuple({0: torch.export.Dim.DYNAMIC} for _ in examples),),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return _network(program.model, takes, "out", prefix)


def read_file(path: Path, takes: Mapping[str, Given], out: str, prefix: str) -> Network:
    """The graph of somebody's own file; its weights are read when they are written. Raises BadRequest."""
    from onnxscript import ir

    model = ir.load(path)
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST:
        raise BadRequest(f"file {path.name}", f"its opset is {opset}", "export it with opset 18 or later")
    return _network(model, takes, out, prefix)


class _Plain(nn.Module):
    """One tensor, of whatever a module returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Any = self.module(*inputs)
        found = getattr(out, "sample", out)
        return found[0] if isinstance(found, tuple | list) else found


def _network(model: "ir.Model", takes: Mapping[str, Given], out: str, prefix: str) -> Network:
    """Simplified, but for what has to do with large weights, which are shared."""
    from onnxscript import ir
    from onnxscript.optimizer import optimize_ir

    def large(value: "ir.Value | None") -> bool:
        return bool(
            value and value.is_initializer() and value.const_value and value.const_value.nbytes > LARGEST_INLINE
        )

    def folds(node: "ir.Node") -> bool | None:
        """What a bundle may not hold (engines/graphs.py) is folded wherever its inputs are known."""
        return False if any(map(large, node.inputs)) else node.op_type in FOLDED or None

    with np.errstate(all="ignore"):  # it computes constants, infinite ones too
        optimize_ir(model, num_iterations=1, should_fold=folds)
    values = model.graph.initializers
    stored = {n: prefix + n for n in values if large(values[n]) and _kind(values[n]) == "float32"}
    for name in set(values) - set(stored):  # small ones, which may lie in a file beside theirs, are in the graph itself
        if values[name].const_value is not None:
            values[name].const_value = ir.tensor(np.array(values[name].const_value.numpy()), name=name)
    return Network(model, takes, out, stored)


def _kind(value: "ir.Value") -> str:
    return str(value.const_value.dtype.numpy()) if value.const_value else ""


def weight_specs(networks: Iterable[Network], half: Callable[[str], bool]) -> Specs:
    """Of all weights, in the order of the file; `half` says by the name which are kept in fp16."""
    values = {name: value for network in networks for name, value in network.weights.items()}
    return {
        name: ("float16" if half(name) else "float32", tuple(map(int, value.const_value.shape)))
        for name, value in values.items()
    }


def weight_tensors(networks: Iterable[Network], specs: Specs) -> Iterator[tuple[str, Tensor]]:
    values = {name: value for network in networks for name, value in network.weights.items()}
    for name, (dtype, _) in specs.items():
        array = np.array(values[name].const_value.numpy())
        yield name, torch.from_numpy(array).to(getattr(torch, dtype))


# --- graphs ----------------------------------------------------------------------------------------------------------


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


def expert_graph(network: Network, spec: NetworkSpec, weights: str, places: Mapping[str, Stored]) -> "onnx.ModelProto":
    """x, projections [1, 4], context -> out, logit of zeros."""
    takes, condition = network.takes, network.takes.get("condition")
    numbers = ("c_in", "time", "a_x", "a_out")
    made = _Nodes(
        {f"{EXACT}{i}": np.array(i, np.int64) for i in range(len(numbers))}
        | {f"{EXACT}axis": np.array([1]), f"{EXACT}none": np.array(0, np.float32)}
        | ({f"{EXACT}shape": np.array([-1, *condition.shape])} if condition else {})
        | (
            {f"{EXACT}first": np.array([0])}
            if takes["time"].batched
            else {f"{EXACT}sizes": np.array(takes["time"].shape, np.int64)}
        )
    )
    c_in, time, a_x, a_out = (
        made.add("Gather", ["projections", f"{EXACT}{i}"], f"{EXACT}{name}", axis=1) for i, name in enumerate(numbers)
    )
    inner = {role: f"net/{given.name}" for role, given in takes.items()}
    made.add("Mul", ["x", c_in], inner["x"])
    made.nodes[-1].name = f"{EXACT}x_in"
    if takes["time"].batched:
        whole = made.add("Shape", ["x"], f"{EXACT}x/shape")
        sizes = made.add("Gather", [whole, f"{EXACT}first"], f"{EXACT}batch")
        time = made.add("Expand", [time, sizes], f"{EXACT}times")
    else:
        time = made.add("Reshape", [time, f"{EXACT}sizes"], f"{EXACT}times")
    made.typed(time, takes["time"], inner["time"])
    if condition:
        shaped = made.add("Reshape", ["context", f"{EXACT}shape"], f"{EXACT}condition")
        made.typed(shaped, condition, inner["condition"])
    before, made.nodes = made.nodes, []
    scaled = made.add("Mul", ["x", a_x], f"{EXACT}of_x")
    predicted = made.add("Mul", [f"net/{network.out}", a_out], f"{EXACT}of_out")
    made.add("Add", [scaled, predicted], "out")
    total = made.add("ReduceSum", ["x", f"{EXACT}axis"], f"{EXACT}sum", keepdims=1)
    made.add("Mul", [total, f"{EXACT}none"], "logit")
    for node, name in zip((made.nodes[2], made.nodes[4]), ("out", "logit"), strict=True):
        node.name = f"{EXACT}{name}"
    model = _pointing(network, weights, places)
    return _model(model, [*before, *model.graph.node, *made.nodes], made.constants, spec)


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


def _pointing(network: Network, weights: str, places: Mapping[str, Stored]) -> "onnx.ModelProto":
    """Its model, whose large weights lie in the file, and whose names all begin with `net/`."""
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
    rename(model.graph.node, {name: f"net/{name}" for name in values})
    for named in (*tensors, *model.graph.node):
        named.name = named.name and f"net/{named.name}"
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
