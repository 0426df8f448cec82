"""OpenVINO: from the bundle's plain graphs, in fp32, or in bf16 where the CPU multiplies that."""

import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from cdiff_rt.engines.base import (
    Placement,
    Precision,
    Signature,
    check_inputs,
    check_outputs,
    check_signature,
    failure,
    precision_of,
)
from cdiff_rt.engines.graphs import Graph, at_address, graph_of
from cdiff_rt.engines.recent import Recent
from cdiff_rt.errors import BadEnvironment, OutOfResource
from cdiff_rt.manifest import Bundle, NetworkSpec
from cdiff_rt.process import startable_once

HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
FP32_OUTPUTS = {"logit"}  # of networks in bf16: 2 % of a step's operations, and a softmax exponentiates their errors
REPORTER = "openvino_telemetry"
MOST_SIZES = 4  # of batches, for each of which a network is compiled


class VinoEngine:
    """The network of a graph that was checked. Arrays are fp32 in either precision.

    It is compiled for each size of batch, at its first call: fixed sizes are faster, above all in bf16. The last few are
    kept. In bf16, what adds up or amplifies errors stays fp32: the sums of residual blocks, and what gives
    `FP32_OUTPUTS`, attention excepted.
    """

    def __init__(self, graph: Graph, spec: NetworkSpec, threads: int, precision: Precision) -> None:
        self.spec, self._graph, self._precision = spec, graph, precision
        self._settings = {
            "INFERENCE_NUM_THREADS": startable_once(threads),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # engines run side by side, and pinned threads would meet on one core
        }
        self._requests = Recent[int, list[Any]](MOST_SIZES)
        self._compiled(1)  # so that what is wrong with a graph shows when it is loaded

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs are read where they lie; outputs are copied, as the next call writes over the request's own."""
        check_inputs(self.spec, inputs)
        batches = [inputs[t.name].shape[0] for t in self.spec.inputs if t.shape[0] == "batch"]
        requests = self._compiled(batches[0] if batches else 1)
        try:
            found = [request.infer(inputs, share_inputs=True) for request in requests]
        except Exception as error:
            raise failure(self.spec, "openvino", error, inputs) from error
        named = {name: outputs[name] for outputs in found for names in outputs.names() for name in names}
        check_outputs(self.spec, named)
        return {tensor.name: named[tensor.name] for tensor in self.spec.outputs}

    def close(self) -> None:
        self._requests.clear()

    def _compiled(self, batch: int) -> list[Any]:
        make = lambda: _compile(self._graph, self.spec, batch, self._precision, self._settings)
        return self._requests.get(batch, make)


def _compile(graph: Graph, spec: NetworkSpec, batch: int, precision: Precision, settings: dict[str, Any]) -> list[Any]:
    """The requests that together give the network's outputs."""
    sizes = {"batch": batch, "steps": -1}
    try:
        model = _read(graph)
        check_signature(spec, _signature(model, spec))
        model.reshape({t.name: [sizes.get(d, d) if isinstance(d, str) else d for d in t.shape] for t in spec.inputs})
        convolve_before_upsampling(model)
        requests = []
        for kind, part in by_precision(model, precision):
            compiled = _core().compile_model(part, "CPU", settings | {"INFERENCE_PRECISION_HINT": HINTS[kind]})
            requests.append(compiled.create_infer_request())
        return requests
    except (RuntimeError, MemoryError) as error:
        if os.strerror(errno.EAGAIN) in str(error):
            raise OutOfResource("threads", "openvino cannot start its own", "raise the limit of `ulimit -u`") from error
        raise failure(spec, "openvino", error) from error


def _read(graph: Graph) -> Any:
    """The weights are read where they lie in memory: a file that openvino maps could change or be cut under it."""
    return _core().read_model(at_address(graph.model, np.frombuffer(graph.data, np.uint8).ctypes.data))


def _signature(model: Any, spec: NetworkSpec) -> Signature:
    """By the names of the manifest, where a port has one of these beside others."""
    known, found = {tensor.name for tensor in (*spec.inputs, *spec.outputs)}, {}
    for port in (*model.inputs, *model.outputs):
        dtype, shape = port.get_element_type().get_type_name(), port.get_partial_shape()
        sizes = [size.get_length() if size.is_static else None for size in shape] if shape.rank.is_static else None
        for name in port.names & known or port.names:
            found[name] = _DTYPES.get(dtype, dtype), sizes if sizes is None else tuple(sizes)
    return found


_DTYPES = {"f32": "float32", "i64": "int64"}


# --- graphs ----------------------------------------------------------------------------------------------------------

# [phase, tap, tap of 3]: which taps of a kernel meet which of two pixels, where each pixel stands twice in a row.
PHASES = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


def convolve_before_upsampling(model: Any) -> None:
    """Convolutions of 3 taps after a doubling of every pixel become ones of 2 taps before it, one for each phase.

    Taps that meet the same pixel are added up, in fp32: an image takes 4 products a pixel instead of 9.
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        kernel = _kernel_after_doubling(node)
        if kernel is None:
            continue
        small, axes = node.input_value(0).get_node().input_value(0), kernel.ndim - 2
        ones, phases = [1] * axes, []
        for phase in itertools.product((0, 1), repeat=axes):
            taps = kernel
            for axis, shift in enumerate(phase, start=2):
                taps = np.moveaxis(np.tensordot(taps, PHASES[shift], (axis, 1)), -1, axis)
            before = [1 - shift for shift in phase]
            phases.append(ops.convolution(small, np.ascontiguousarray(taps), ones, before, list(phase), ones))
        doubled = ops.depth_to_space(ops.concat(phases, 1), "blocks_first", 2)
        for port in node.output(0).get_target_inputs():
            port.replace_source_output(doubled.output(0))


def _kernel_after_doubling(node: Any) -> np.ndarray | None:
    """[out, in, 3 ...] in fp32, if the node is a convolution that `convolve_before_upsampling` takes; else None."""
    if node.get_type_name() != "Convolution":
        return None
    before, weight = (port.get_node() for port in node.input_values())
    if before.get_type_name() != "Interpolate" or before.get_attributes()["mode"] != "nearest":
        return None
    if weight.get_type_name() == "Convert":
        weight = weight.input_value(0).get_node()
    small, large = before.get_input_partial_shape(0), before.get_output_partial_shape(0)
    if weight.get_type_name() != "Constant" or small.is_dynamic or large.is_dynamic:
        return None
    axes, given = len(small) - 2, node.get_attributes()
    plain = all(list(given[name]) == [1] * axes for name in ("strides", "dilations", "pads_begin", "pads_end"))
    doubles = [2 * d for d in list(small.to_shape())[2:]] == list(large.to_shape())[2:]
    fits = plain and doubles and list(weight.get_output_shape(0))[2:] == [3] * axes
    return weight.data.astype(np.float32) if fits else None


VECTOR, PAGE = 16, 1024  # numbers of fp32 in a register of AVX-512; in 4 KiB


def pad_keys(model: Any) -> None:
    """In a graph of fp32: attention gets keys that nothing looks at, so that its scores lie well in memory.

    A row of whole vectors has no remainder to be computed apart; rows of whole pages would all lie on the same few
    lines of the cache and push each other out. Rows of bf16 don't, and there OpenVINO 2026.4 makes nonsense of masks.
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        query, key, value, *given = node.input_values()
        shape, masked = key.get_partial_shape(), any(len(port.get_partial_shape()) for port in given[:1])
        if shape.is_dynamic or masked or node.get_attributes()["causal"]:
            continue
        *_, keys, _ = shape.to_shape()
        added = -keys % VECTOR
        added += VECTOR * ((keys + added) % PAGE == 0)
        if added:
            mask = np.where(np.arange(keys + added) < keys, 0, -np.inf).astype(np.float32)[np.newaxis]
            none, below = [0] * len(shape), [0] * (len(shape) - 2) + [added, 0]
            key, value = (ops.pad(port, none, below, "constant", np.float32(0)) for port in (key, value))
            seen = ops.scaled_dot_product_attention(query, key, value, mask, *given[1:])
            for port in node.output(0).get_target_inputs():
                port.replace_source_output(seen.output(0))


def by_precision(model: Any, precision: Precision) -> list[tuple[Precision, Any]]:
    """The model; or in bf16 two, one of them fp32 but for its attention, if `FP32_OUTPUTS` don't depend on the others.

    Marks, as `keep_sums_fp32` sets them, would not do for these: half of the products don't heed them.
    """
    if precision == "fp32":
        pad_keys(model)
        return [(precision, model)]
    apart, rest = (
        _giving(model, lambda name: name in FP32_OUTPUTS),
        _giving(model, lambda name: name not in FP32_OUTPUTS),
    )
    sources = {result.input_value(0).get_node().get_friendly_name() for result in rest.get_results()}
    separate = apart.get_results() and not any(op.get_friendly_name() in sources for op in apart.get_ops())
    if not separate:
        keep_sums_fp32(model)
        return [(precision, model)]
    attend_in_bf16(apart)
    keep_sums_fp32(rest)
    return [("fp32", apart), (precision, rest)]


def _giving(model: Any, wanted: Callable[[str], bool]) -> Any:
    """A copy with those outputs alone; constants are shared."""
    copy = model.clone()
    for result in copy.get_results():
        if not any(map(wanted, result.output(0).names)):
            copy.remove_result(result)
    return copy


def attend_in_bf16(model: Any) -> None:
    """In a graph of fp32: what attention takes and gives is rounded, all else is not.

    It is most of a dynamic diffuser's time, and averages its roundings away with what it attends to.
    """
    from openvino import Type
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            readers = node.output(0).get_target_inputs()
            for port in node.inputs():
                port.replace_source_output(ops.convert(port.get_source_output(), Type.bf16).output(0))
            widened = ops.convert(node.output(0), Type.f32).output(0)
            for port in readers:
                port.replace_source_output(widened)


def keep_sums_fp32(model: Any) -> None:
    """What is added to a residual is rounded, but not the sum, which goes through all the network."""
    name, mark = _fp32_mark()
    for node in model.get_ops():
        if node.get_type_name() == "Add":
            ours, theirs = (port.get_partial_shape() for port in node.input_values())
            if ours == theirs:  # of biases and projected timesteps one is smaller
                node.set_rt_info(mark, name)


# OpenVINO writes the mark of an operation that keeps its precision, and reads it; its interface for Python can't make one.
MARKED = b"""<net name="" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="" element_type="f32"/>
<rt_info><attribute name="precise" version="0"/></rt_info><output><port id="0" precision="FP32"/></output></layer>
<layer id="1" name="y" type="Result" version="opset1"><input><port id="0" precision="FP32"/></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges></net>"""


def _fp32_mark() -> tuple[str, Any]:
    """Name and value of what keeps an operation fp32 in a graph of bf16."""
    ((name, value),) = _core().read_model(MARKED).get_parameters()[0].rt_info.items()
    return name, value


# --- openvino itself -------------------------------------------------------------------------------------------------


@cache
def _core() -> Any:
    with unreported():
        import openvino
    return openvino.Core()


@contextmanager
def unreported() -> Iterator[None]:
    """Importing openvino would tell Google Analytics so, unasked, and write into ~/intel; without its reporter it can't."""
    before = sys.modules.get(REPORTER, missing := object())
    sys.modules[REPORTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is missing:
            del sys.modules[REPORTER]
        else:
            sys.modules[REPORTER] = before  # type: ignore[assignment]


def check_cpu(precision: Precision) -> None:
    """Raises BadEnvironment where the CPU does not compute in it: OpenVINO would take another in silence."""
    able = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in able:
        reason = f"this CPU does not compute in bf16, it has {', '.join(able)}"
        raise BadEnvironment("precision bf16", reason, "take precision fp32")


def load(bundle: Bundle, network: str, placement: Placement) -> VinoEngine:
    check_cpu(placement.precision)
    spec, precision = bundle.manifest.networks[network], precision_of(network, placement)
    return VinoEngine(graph_of(bundle, network), spec, placement.threads, precision)
