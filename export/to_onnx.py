"""One network of a model as an ONNX graph whose weights lie in the bundle's safetensors file.

The graph stores no weight itself: an initializer is a pointer into that file, where the weight is kept as fp16, and a
Cast brings it to fp32. So all graphs and PyTorch share one copy of the weights, and runtimes fold the casts at load.
"""

import json
import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cdiff_rt.manifest import NetworkSpec

if TYPE_CHECKING:
    import onnx
    from onnxscript import ir

OPSET = 23
LARGEST_INLINE = 4096  # bytes of a constant that may stay in the graph
_TORCH_DTYPES = {"float32": torch.float32, "int64": torch.int64}


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
        example(tuple(size if isinstance(d, str) else d for d in tensor.shape), _TORCH_DTYPES[tensor.dtype])
        for tensor in spec.inputs
    )


def export_network(
    model: nn.Module, function: Callable[..., tuple[Tensor, ...]], spec: NetworkSpec, folder: Path, weights: str
) -> None:
    """Writes `spec.file` into `folder`, with its weights taken from the safetensors file `weights` there."""
    with _quiet_exporter():
        program = torch.onnx.export(
            _Network(model, function).eval(),
            example_inputs(spec),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=(_dynamic_shapes(spec),),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    _simplify(program.model)
    proto = program.model_proto
    _point_into(proto.graph, folder / weights)
    _strip(proto)
    (folder / spec.file).write_bytes(proto.SerializeToString())


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without torch's notes to its own developers and about libraries that nobody needs here."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        registry.setLevel(level)


def _simplify(model: "ir.Model") -> None:
    """Constant folding and the like, which must leave the weights as they are: they are shared with other graphs."""
    from onnxscript.optimizer import optimize_ir

    def is_weight(value: "ir.Value | None") -> bool:
        return value is not None and value.is_initializer() and str(value.name).startswith("model.")

    optimize_ir(model, should_fold=lambda node: False if any(map(is_weight, node.inputs)) else None)


def _dynamic_shapes(spec: NetworkSpec) -> tuple[dict[int, object], ...]:
    named = torch.export.Dim.DYNAMIC
    return tuple({axis: named for axis, d in enumerate(t.shape) if isinstance(d, str)} for t in spec.inputs)


def _point_into(graph: "onnx.GraphProto", weights: Path) -> None:
    """Replaces the graph's weights by pointers to the fp16 tensors of the same names, and casts."""
    import onnx

    places = _places(weights)
    casts = []
    for tensor in graph.initializer:
        name = tensor.name.removeprefix("model.")
        if name not in places:
            size = len(tensor.raw_data)
            assert size <= LARGEST_INLINE, f"{tensor.name} ({size} bytes) is no weight of the model"
            continue
        offset, length = places[name]
        stored = f"{tensor.name}.fp16"
        casts.append(onnx.helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
        tensor.name, tensor.data_type = stored, onnx.TensorProto.FLOAT16
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", weights.name), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]


def _strip(proto: "onnx.ModelProto") -> None:
    """Drops the exporter's notes, which hold source lines and paths of the exporting machine."""
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _places(weights: Path) -> dict[str, tuple[int, int]]:
    """name -> (offset in the file, length) of every tensor of a safetensors file."""
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    start = 8 + size
    tensors = {name: row["data_offsets"] for name, row in header.items() if name != "__metadata__"}
    return {name: (start + begin, end - begin) for name, (begin, end) in tensors.items()}
