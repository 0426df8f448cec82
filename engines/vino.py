"""OpenVINO: from the same graphs as ONNX Runtime, in fp32, or in bf16 where the CPU multiplies that."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cdiff_rt.engines import Placement, Precision, check_inputs, runs_fp32
from cdiff_rt.errors import BadArtefact, BadEnvironment, OutOfResource
from cdiff_rt.manifest import Bundle, NetworkSpec

HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
REPORTER = "openvino_telemetry"


class VinoEngine:
    """The network of an ONNX file whose hash was checked. Arrays are fp32 in either precision.

    A graph is compiled for each size of batch, at its first call: fixed sizes are faster, above all in bf16.
    """

    def __init__(self, path: Path, spec: NetworkSpec, threads: int, precision: Precision) -> None:
        self.spec, self._path = spec, path
        self._settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # engines run side by side, and pinned threads would meet on one core
        }
        self._requests: dict[int, Any] = {}
        self._request(1)  # so that what is wrong with a graph shows when it is loaded

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs are read where they lie; outputs are copied, as the next call writes over the request's own."""
        check_inputs(self.spec, inputs)
        batches = [inputs[t.name].shape[0] for t in self.spec.inputs if t.shape[0] == "batch"]
        request = self._request(batches[0] if batches else 1)
        try:
            outputs = request.infer(inputs, share_inputs=True)
        except Exception as error:  # a checked network with checked inputs fails for want of memory
            reason = " ".join(str(error).split())[:200]
            raise OutOfResource(f"running {self.spec.file}", reason, "choose a smaller batch") from error
        return {tensor.name: outputs[tensor.name] for tensor in self.spec.outputs}

    def close(self) -> None:
        self._requests.clear()

    def _request(self, batch: int) -> Any:
        if batch not in self._requests:
            self._requests[batch] = _compile(self._path, self.spec, batch, self._settings).create_infer_request()
        return self._requests[batch]


def _compile(path: Path, spec: NetworkSpec, batch: int, settings: dict[str, Any]) -> Any:
    sizes = {"batch": batch, "steps": -1}
    try:
        model = _core().read_model(path)
        found = {name for port in (*model.inputs, *model.outputs) for name in port.names}
        if not {tensor.name for tensor in (*spec.inputs, *spec.outputs)} <= found:
            raise _refused(spec, f"its inputs and outputs are {', '.join(sorted(found))}")
        model.reshape({t.name: [sizes.get(d, d) if isinstance(d, str) else d for d in t.shape] for t in spec.inputs})
        return _core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise _refused(spec, f"openvino refuses it ({' '.join(str(error).split())[:200]})") from error


def _refused(spec: NetworkSpec, reason: str) -> BadArtefact:
    return BadArtefact(f"network {spec.file}", reason, "export the bundle again")


@cache
def _core() -> Any:
    with unreported():
        import openvino
    return openvino.Core()


@contextmanager
def unreported() -> Iterator[None]:
    """Importing openvino would tell Google Analytics so, unasked, and write into ~/intel; without its reporter it can't."""
    missing = object()
    before = sys.modules.get(REPORTER, missing)
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
    spec: NetworkSpec = bundle.manifest.networks[network]
    precision: Precision = "fp32" if runs_fp32(network) else placement.precision
    return VinoEngine(bundle.path(spec.file), spec, placement.threads, precision)
