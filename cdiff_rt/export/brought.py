"""Networks that others made: traced, or read from an ONNX file. Those that are shared have their weights once."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cdiff_rt.errors import BadRequest
from cdiff_rt.export.to_onnx import LARGEST_INLINE, OPSET, quiet_exporter

if TYPE_CHECKING:
    from onnxscript import ir

OLDEST = 13  # opset, of the nodes that are put around
FOLDED = ("ConstantOfShape", "OneHot", "Range", "Tile")
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
    rank: int = 0  # of what it gives

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


def read_file(path: Path, takes: Mapping[str, Given], out: str, prefix: str, opset_at_least: int = OLDEST) -> Network:
    """The graph of somebody's own file; its weights are read when they are written. Raises BadRequest."""
    from onnxscript import ir
    from onnxscript.version_converter import convert_version

    model = ir.load(path)
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST:
        raise BadRequest(f"file {path.name}", f"its opset is {opset}", "export it with opset 18 or later")
    if opset < opset_at_least:
        with quiet_exporter():
            convert_version(model, opset_at_least, fallback=True)
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
