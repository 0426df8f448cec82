"""One network of a model as an ONNX graph whose weights lie in the bundle's safetensors file.

The graph stores no weight itself: an initializer is a pointer into that file; where the weight is kept as fp16, a Cast
brings it to fp32. So all graphs and PyTorch share one copy of the weights, and runtimes fold the casts at load. Tracing
needs shapes only, so the model is on the "meta" device and a gigabyte of weights is never held.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cdiff_rt.export.stored import Stored
from cdiff_rt.export.tensors import open_tensors, places
from cdiff_rt.manifest import NetworkSpec

if TYPE_CHECKING:
    import onnx
    from onnxscript import ir

OPSET = 23
LARGEST_INLINE = 4096  # bytes of a constant that may stay in the graph
_ONNX_DTYPES = {"float32": "FLOAT", "float16": "FLOAT16"}
_TALKATIVE = ("torch.onnx._internal.exporter._registration", "onnxscript.version_converter")
_PREFIX = "model."  # of a weight's name in the graph


class _Network(nn.Module):
    """Gives a function of the model the model's parameter names."""

    def __init__(self, model: nn.Module, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self._function = model, function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._function(*inputs)


def example_inputs(spec: NetworkSpec, size: int = 2) -> tuple[Tensor, ...]:
    """Inputs of the network's shapes, named sizes being `size`."""

    def example(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape) if dtype.is_floating_point else torch.arange(shape[-1]).expand(shape).contiguous()

    return tuple(
        example(tuple(size if isinstance(d, str) else d for d in tensor.shape), getattr(torch, tensor.dtype))
        for tensor in spec.inputs
    )


def export_network(
    module: nn.Module,
    prefix: str,
    function: Callable[..., tuple[Tensor, ...]],
    spec: NetworkSpec,
    folder: Path,
    weights: str,
) -> None:
    """Writes `spec.file` into `folder`, with its weights taken from the safetensors file `weights` there.

    `function` is one of `module`, which is on the "meta" device; in the file, its weights' names begin with `prefix`.
    """
    read = open_tensors(folder / weights).__getitem__
    proto = network_graph(module, [prefix], function, spec, weights, places(folder / weights), read)
    (folder / spec.file).write_bytes(proto.SerializeToString())


def network_graph(
    module: nn.Module,
    prefixes: Sequence[str],
    function: Callable[..., tuple[Tensor, ...]],
    spec: NetworkSpec,
    weights: str,
    stored: Mapping[str, Stored],
    read: Callable[[str], Tensor],
) -> "onnx.ModelProto":
    """The graph of a network whose weights are those of all `prefixes` in the file, one behind the other."""
    with quiet_exporter():
        program = torch.onnx.export(
            _Network(module, function).eval(),
            tuple(example.to("meta") for example in example_inputs(spec)),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=(_dynamic_shapes(spec),),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    taken = list(_weights_of(program.model, prefixes, stored))
    _give_values(taken, stored, read)
    _simplify(program.model)
    _point_into(program.model, taken, weights, stored)
    proto = program.model_proto
    cast_from_fp16(proto.graph)
    strip(proto)
    return proto


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without notes to the developers of torch and onnxscript, and about libraries that nobody needs here."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _weights_of(
    model: "ir.Model", prefixes: Sequence[str], stored: Mapping[str, Stored]
) -> "Iterator[tuple[ir.Value, list[str]]]":
    """The graph's initializers that are weights of the model, with their names in the file, one for each prefix."""
    for value in model.graph.initializers.values():
        names = [prefix + str(value.name).removeprefix(_PREFIX) for prefix in prefixes]
        if all(name in stored for name in names):
            yield value, names
        else:
            assert value.const_value is not None
            size = value.const_value.nbytes
            assert size <= LARGEST_INLINE, f"{value.name} ({size} bytes) is no weight of the model"


def _give_values(
    taken: "list[tuple[ir.Value, list[str]]]", stored: Mapping[str, Stored], read: Callable[[str], Tensor]
) -> None:
    """Where the simplifier asks for a weight, it is read from the file."""
    from onnxscript import ir

    for value, names in taken:
        first, *rest = stored[names[0]].shape
        value.const_value = ir.LazyTensor(
            lambda names=names: ir.tensor(torch.cat([read(name).float() for name in names]).numpy()),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape([len(names) * first, *rest]),
            name=value.name,
        )


def _simplify(model: "ir.Model") -> None:
    """Constant folding and the like, which must leave the weights as they are: they are shared with other graphs."""
    from onnxscript.optimizer import optimize_ir

    def is_weight(value: "ir.Value | None") -> bool:
        return value is not None and value.is_initializer() and str(value.name).startswith(_PREFIX)

    # One round: a second takes as long again and finds next to nothing.
    optimize_ir(model, num_iterations=1, should_fold=lambda node: False if any(map(is_weight, node.inputs)) else None)


def _point_into(
    model: "ir.Model", taken: "list[tuple[ir.Value, list[str]]]", weights: str, stored: Mapping[str, Stored]
) -> None:
    """The graph's weights become pointers to the tensors of the file, and what is of several is put together."""
    from onnxscript import ir

    def pointer(value: "ir.Value", name: str) -> None:
        place = stored[name]
        kind, shape = ir.DataType[_ONNX_DTYPES[place.dtype]], ir.Shape(place.shape)
        value.const_value = ir.ExternalTensor(
            weights, place.offset, place.length, kind, shape=shape, name=str(value.name)
        )

    for value, names in taken:
        if len(names) == 1:
            pointer(value, names[0])
            continue
        parts = [ir.Value(name=f"{value.name}/{i}", type=value.type) for i in range(len(names))]
        for part, name in zip(parts, names, strict=True):
            pointer(part, name)
            model.graph.register_initializer(part)
        whole = ir.node("Concat", parts, {"axis": 0}, name=f"{value.name}/whole")
        model.graph.insert_before(model.graph[0], whole)
        value.replace_all_uses_with(whole.outputs[0])
        del model.graph.initializers[str(value.name)]
        whole.outputs[0].name = str(value.name)


def cast_from_fp16(graph: "onnx.GraphProto") -> None:
    import onnx

    casts = []
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.data_type == onnx.TensorProto.FLOAT16:
            stored = f"{tensor.name}.fp16"
            casts.append(onnx.helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
            tensor.name = stored
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]


def _dynamic_shapes(spec: NetworkSpec) -> tuple[dict[int, object], ...]:
    named = torch.export.Dim.DYNAMIC
    return tuple({axis: named for axis, d in enumerate(t.shape) if isinstance(d, str)} for t in spec.inputs)


def strip(proto: "onnx.ModelProto") -> None:
    """Drops the exporter's notes, which hold source lines and paths of the exporting machine."""
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
