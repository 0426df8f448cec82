"""From a typed graph to a plan, and what the library says it made of it."""

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cdiff_rt.engines.trt_library import Flavour, check_capabilities, library, new_log
from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest

_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), .*?TacticName: (?P<tactic>[^,]*),", re.MULTILINE
)
_TENSOR = re.compile(r"Dimensions: \[([\d,]+)\][^}]*?Datatype: (\w+)")
_BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int32": 4, "Int64": 8, "Int8": 1, "UInt8": 1, "Bool": 1}
_MADE_OF = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_OPERATION = re.compile(r"[A-Z][a-z]+")
_STEM = re.compile(r"^__myl_(?P<operations>[A-Za-z]+)_")  # of a kernel that the library wrote itself
_NO_KERNELS = {"signal", "wait"}  # layers that only order streams
_FUSED_ATTENTION = re.compile(r"_mha(_|$)")
_COPIES = {"Move", "Tran", "Resh", "Slic", "Conc", "Repl"}
_LONGEST = 400  # characters of the library's words


@dataclass(frozen=True)
class Layer:
    name: str
    kind: str
    tactic: str
    made_of: tuple[str, ...]  # nodes of the graph
    bytes: int  # that it reads and writes, weights included

    @property
    def operations(self) -> set[str]:
        """Of a kernel that the library wrote itself, abbreviated as it does, e.g. Silu, Cast, Tran."""
        stem = _STEM.match(self.name)
        return set(_OPERATION.findall(stem["operations"])) if stem else set()


@dataclass(frozen=True)
class Report:
    """What became of a network. One list serves all devices that a plan is for."""

    layers: tuple[Layer, ...]
    softmax_nodes: tuple[str, ...]  # of the graph: one per attention
    seconds: float

    @property
    def attentions(self) -> int:
        return len(self.softmax_nodes)

    @cached_property
    def kernels(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.kind not in _NO_KERNELS]

    @property
    def bytes(self) -> int:
        """That all kernels of a call read and write, weights included, as if no cache held anything."""
        return sum(layer.bytes for layer in self.kernels)

    @property
    def fused_attentions(self) -> list[Layer]:
        return [layer for layer in self.kernels if _FUSED_ATTENTION.search(layer.name)]

    @property
    def softmaxes(self) -> list[Layer]:
        """Kernels that an attention's softmax got of its own."""
        fused = self.fused_attentions
        return [layer for layer in self.kernels if layer not in fused and set(layer.made_of) & set(self.softmax_nodes)]

    @property
    def casts(self) -> list[Layer]:
        """Kernels that change a type and nothing else."""
        return [k for k in self.kernels if "Cast" in k.operations and k.operations <= _COPIES | {"Cast"}]

    @property
    def copies(self) -> list[Layer]:
        """Kernels that reorder a tensor and nothing else."""
        return [layer for layer in self.kernels if layer.operations and layer.operations <= _COPIES]


@dataclass(frozen=True)
class Built:
    plan: bytes
    report: Report
    timing: bytes  # what the library learned; nothing where it learns nothing


def build_plan(
    path: Path,
    flavour: Flavour,
    capabilities: Sequence[str],
    profile: dict[str, tuple[int, int, int]],
    *,
    refit: bool = False,
    timing: bytes = b"",
) -> Built:
    """The plan of a typed graph; `profile` holds the smallest, usual and largest of each size that is not fixed.

    `refit` leaves the weights exchangeable. Raises BadArtefact, BadRequest or BadEnvironment with the library's words.
    """
    check_capabilities(flavour, capabilities)
    if refit and flavour.portable:
        raise BadRequest("refit", f"{flavour.name} builds no such engine without a GPU", "use --target tensorrt")
    trt, lines = library(flavour), list[str]()
    log = new_log(trt, lambda message: lines.append(message) if "Name: " in message else None)
    builder = trt.Builder(log)
    network, _parser = _parsed(trt, builder, log, path)  # the parser owns the network's weights
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # which is set unless one says so: fp32 is to be fp32
    for flag in (*flavour.flags, *(["REFIT"] if refit else [])):
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if flavour.portable:
        config.num_compute_capabilities = len(capabilities)
        for i, capability in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), i)
    else:  # TensorRT-RTX learns nothing from earlier builds
        config.set_timing_cache(config.create_timing_cache(timing), ignore_mismatch=False)
    _add_profile(builder, config, network, profile, path)
    begun = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(path, log.said("the builder gave up without a word"))
    softmaxes = [layer.name for layer in map(network.get_layer, range(network.num_layers)) if _is_softmax(trt, layer)]
    report = Report(tuple(_layers("\n".join(lines))), tuple(softmaxes), time.monotonic() - begun)
    return Built(bytes(plan), report, b"" if flavour.portable else bytes(config.get_timing_cache().serialize()))


def _parsed(trt: Any, builder: Any, log: Any, path: Path) -> tuple[Any, Any]:
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 knows no other networks
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        words = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" if e.node_name() else e.desc() for e in errors]
        raise _failure(path, words[0] if words else log.said("the parser gave up without a word"))
    return network, parser


def _add_profile(builder: Any, config: Any, network: Any, profile: dict[str, tuple[int, int, int]], path: Path) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    named = {tensor.name: _named_sizes(tensor) for tensor in inputs}
    missing = sorted({size for sizes in named.values() for size in sizes} - set(profile))
    if missing:
        raise BadRequest(f"network {path.stem}", f"its size {missing[0]!r} is open", "fix it, or give a range for it")
    if not any(named.values()):
        return
    ranges = builder.create_optimization_profile()
    for tensor in inputs:
        if named[tensor.name]:
            names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
            sizes = [profile.get(name, (d, d, d)) for name, d in zip(names, tensor.shape, strict=True)]
            ranges.set_shape(tensor.name, *zip(*sizes, strict=True))
    config.add_optimization_profile(ranges)


def _named_sizes(tensor: Any) -> list[str]:
    return [tensor.get_dimension_name(axis) for axis, size in enumerate(tensor.shape) if size == -1]


def _is_softmax(trt: Any, layer: Any) -> bool:
    return layer.type == trt.LayerType.SOFTMAX


def _failure(path: Path, reason: str) -> BadArtefact | BadEnvironment:
    words = " ".join(reason.split())[:_LONGEST]
    if re.search(r"\bcuda ?error|CUDA (initialization|driver)", words, re.IGNORECASE):
        return BadEnvironment(f"building {path.stem}", words, "check the GPU and its driver")
    return BadArtefact(
        f"network {path.stem}", f"TensorRT refuses it ({words})", "export it in another precision or form"
    )


def _layers(report: str) -> Iterator[Layer]:
    for line in report.split("\n"):
        found = _LAYER.match(line)
        if found:
            moved = sum(math.prod(map(int, d.split(","))) * _BYTES.get(kind, 0) for d, kind in _TENSOR.findall(line))
            yield Layer(found["name"], found["kind"], found["tactic"], tuple(_MADE_OF.findall(line)), moved)
