"""ONNX Runtime: on the CPU the default backend, which needs neither PyTorch nor a GPU; and on CUDA."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdiff_rt.engines.base import Placement, check_inputs, check_outputs, check_signature, failure
from cdiff_rt.engines.graphs import Graph, graph_of
from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest
from cdiff_rt.extras import install
from cdiff_rt.manifest import Bundle, NetworkSpec
from cdiff_rt.process import startable

if TYPE_CHECKING:
    from torch import Tensor


class OrtEngine:
    """The network of a graph that was checked."""

    def __init__(self, graph: Graph, spec: NetworkSpec, threads: int) -> None:
        import onnxruntime as ort

        self.spec = spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = startable(threads)
        # Threads that spin while they wait would take the cores from the other engines of the step.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = _open(graph, spec, options, ["CPUExecutionProvider"])
        self._outputs = [tensor.name for tensor in self.spec.outputs]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        check_inputs(self.spec, inputs)
        try:
            outputs = self._session.run(self._outputs, inputs)
        except Exception as error:  # onnxruntime's own exceptions share no base class but this
            raise failure(self.spec, "onnxruntime", error, inputs) from error
        found = dict(zip(self._outputs, outputs, strict=True))
        check_outputs(self.spec, found)
        return found

    def close(self) -> None:
        del self._session


class OrtDeviceEngine:
    """The same on a device: tensors are bound by address, so nothing is copied. CUDA graphs can't capture it."""

    capturable = False

    def __init__(self, graph: Graph, spec: NetworkSpec, device: str) -> None:
        import onnxruntime as ort

        self.spec, self._device = spec, device
        self._session = _open(graph, spec, ort.SessionOptions(), [_provider(device)])
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the stream keeps the order

    def bind(self, tensors: "dict[str, Tensor]") -> Callable[[], None]:
        binding = self._session.io_binding()
        kind, _, index = self._device.partition(":")
        for parts, bind in ((self.spec.inputs, binding.bind_input), (self.spec.outputs, binding.bind_output)):
            for tensor in parts:
                value = tensors[tensor.name]
                assert value.is_contiguous(), f"{tensor.name} is bound by its address alone"
                bind(tensor.name, kind, int(index or 0), np.dtype(tensor.dtype), list(value.shape), value.data_ptr())
        return lambda: self._session.run_with_iobinding(binding, self._options)

    def close(self) -> None:
        del self._session


class OrtFile:
    """Somebody's own ONNX file on the CPU, whatever it takes: name -> type and sizes, a name or None where one is open."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = startable(threads), 4  # what fails is told here
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # see above
            reason = " ".join(str(error).split())[:200]
            raise BadArtefact(f"file {path.name}", f"onnxruntime refuses it ({reason})", "export it again") from error
        self.inputs = {t.name: (_DTYPES.get(t.type, t.type), tuple(t.shape)) for t in self._session.get_inputs()}
        self.outputs = {t.name: (_DTYPES.get(t.type, t.type), tuple(t.shape)) for t in self._session.get_outputs()}

    def __call__(self, out: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        try:
            return self._session.run([out], inputs)[0]
        except Exception as error:  # see above
            reason = " ".join(str(error).split())[:200]
            raise BadRequest("its graph", f"onnxruntime cannot run it ({reason})", "export it again") from error


def _provider(device: str) -> "str | tuple[str, dict[str, str]]":
    """On CUDA, work goes to torch's current stream, so that both keep one order."""
    if not device.startswith("cuda"):
        return "CPUExecutionProvider"
    import torch

    stream = torch.cuda.current_stream(device).cuda_stream
    assert stream, "onnxruntime takes the default stream for none"
    index = str(torch.device(device).index or 0)
    return "CUDAExecutionProvider", {"device_id": index, "user_compute_stream": str(stream), "use_tf32": "0"}


def _open(graph: Graph, spec: NetworkSpec, options: Any, providers: list) -> Any:
    """A session on the first of `providers`, and nowhere else. Raises BadArtefact, BadEnvironment, OutOfResource."""
    import onnxruntime as ort

    options.log_severity_level = 3
    options.add_external_initializers_from_files_in_memory([graph.weights], [graph.data], [len(graph.data)])
    try:
        session = ort.InferenceSession(graph.model, options, providers=providers)
    except Exception as error:  # see above
        raise failure(spec, "onnxruntime", error) from error
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if session.get_providers()[0] != wanted:  # it goes on without, and says so in a log only
        raise BadEnvironment("onnxruntime", *_why_no(wanted))
    tensors = (*session.get_inputs(), *session.get_outputs())
    sizes = {t.name: tuple(size if isinstance(size, int) else None for size in t.shape) for t in tensors}
    check_signature(spec, {t.name: (_DTYPES.get(t.type, t.type), sizes[t.name]) for t in tensors})
    return session


def _why_no(provider: str) -> tuple[str, str]:
    """Why one does not start, and the remedy."""
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        return f"it is a build without {provider}", f"run {install('gpu')}, or choose another backend"
    folder, cause = Path(ort.__file__).parent / "capi", ""
    try:  # as it does itself, and then says in a log only what was missing
        for library in ("shared", "cuda"):
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{library}.so"), ctypes.RTLD_GLOBAL)
    except OSError as error:
        cause = f" ({error})"
    remedy = "install that library, and a CUDA and cuDNN that it was built for, or choose another backend"
    return f"{provider} does not start, it fell back to the CPU{cause}", remedy


_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32"}


def load(bundle: Bundle, network: str, placement: Placement) -> OrtEngine:
    spec = bundle.manifest.networks[network]
    return OrtEngine(graph_of(bundle, network, spec.cpu_file), spec, placement.threads)
