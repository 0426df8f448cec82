"""TensorRT in both its flavours: full TensorRT, built on the GPU that runs it, and TensorRT-RTX, built anywhere.

The one file that imports either. Precision is in the graph (export/typed.py), so one code path serves both.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.cache import KINDS, EngineCache, LoadedPlan, recipe
from cdiff_rt.engines.cuda import compute_capability, why_no_device
from cdiff_rt.engines.user_files import log
from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest, OutOfResource
from cdiff_rt.extras import install
from cdiff_rt.manifest import MODELS, Bundle, NetworkSpec

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 256  # bytes, of every tensor's address
DATA_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}  # ours -> the library's


@dataclass(frozen=True)
class Flavour:
    name: str
    module: str
    portable: bool  # a plan is built without a GPU, for the kinds of GPU that are named; else for the one that is here
    flags: tuple[str, ...] = ()  # of the builder
    defaults: tuple[str, ...] = ()  # compute capabilities, where nobody names one


FLAVOURS = {
    "tensorrt": Flavour("tensorrt", "tensorrt", portable=False),
    "tensorrt-rtx": Flavour(
        "tensorrt-rtx",
        "tensorrt_rtx",
        portable=True,
        # Memory that the library took while it runs could not be captured in a CUDA graph.
        flags=("REQUIRE_USER_ALLOCATION",),
        defaults=("8.6", "8.9", "12.0"),
    ),
}


def library(flavour: Flavour) -> Any:
    """The module. Raises BadEnvironment if it isn't installed or doesn't load."""
    try:
        return importlib.import_module(flavour.module)
    except (ImportError, OSError) as error:
        raise BadEnvironment(flavour.name, " ".join(str(error).split()), f"run {install(flavour.name)}") from None


def check_device(device: str) -> None:
    """Raises BadEnvironment without a CUDA device, where TensorRT's runtime would crash the process."""
    reason = why_no_device()
    if reason:
        raise BadEnvironment(f"device {device}", reason, "choose a backend that needs no GPU: see `cdiff-rt doctor`")


def capability_of(device: str) -> str:
    return compute_capability(int(device.partition(":")[2] or 0))


def check_capabilities(flavour: Flavour, capabilities: Sequence[str]) -> None:
    """Raises BadRequest unless the flavour builds for such GPUs, and BadEnvironment if it needs one that isn't here."""
    if not flavour.portable:
        check_device("cuda")
        here = capability_of("cuda")
        if list(capabilities) != [here]:
            seen = f"{', '.join(capabilities)}, but {flavour.name} builds for the GPU that is here, {here}"
            raise BadRequest("compute capability", seen, "leave it out, or build with --target tensorrt-rtx")
        return
    known = known_capabilities(flavour)
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown or not capabilities:
        seen = f"{unknown[0] if unknown else 'none'}, but {flavour.name} knows {', '.join(known)}"
        raise BadRequest("compute capability", seen, "for other GPUs build on one with --target tensorrt")


def known_capabilities(flavour: Flavour) -> list[str]:
    """Those that a portable flavour builds for, e.g. SM120 as 12.0."""
    names = library(flavour).ComputeCapability.__members__
    return [f"{name[2:-1]}.{name[-1]}" for name in names if name.startswith("SM")]


def new_log(trt: Any, hear: Callable[[str], None] = lambda message: None) -> Any:
    """A logger of the library: errors are kept, warnings become notes, and `hear` gets everything if it is given."""

    class Log(trt.ILogger):  # known only when the library is loaded
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            hear(message)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING:
                log.debug(message)

        def said(self, otherwise: str) -> str:
            return self.errors[-1] if self.errors else otherwise

    return Log()


class TrtEngine:
    """A plan that the cache vouches for, on a CUDA device. Implements `DeviceEngine`."""

    def __init__(self, flavour: Flavour, plan: LoadedPlan, device: str, again: str) -> None:
        check_device(device)
        self._trt = trt = library(flavour)
        self.spec = plan.engine.spec
        self.capturable = not any(isinstance(d, str) for t in self.spec.inputs for d in t.shape)
        self._flavour, self._device, self._again, self._log = flavour, device, again, new_log(trt)
        self._runtime = trt.Runtime(self._log)
        assert not self._runtime.engine_host_code_allowed
        self._check_validity(plan.data)
        self._engine = self._runtime.deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise self._bad(self._log.said("the library cannot read it"))
        self._check_tensors()

    def bind(self, tensors: "dict[str, Tensor]") -> Callable[[], None]:
        """A context with these addresses, and memory of its own -> what enqueues one call on the current stream."""
        import torch

        check_tensors(self.spec, tensors, self._device)
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise OutOfResource(f"engine {self.spec.file}", self._log.said("no context"), "choose a smaller batch")
        memory = torch.empty(max(self._engine.device_memory_size_v2, 1), dtype=torch.uint8, device=self._device)
        context.set_device_memory(memory.data_ptr(), memory.numel())
        for tensor in self.spec.inputs:
            if not context.set_input_shape(tensor.name, tuple(tensors[tensor.name].shape)):
                raise self._bad(self._log.said(f"it does not take {tensor.name} of this shape"))
        for name, value in tensors.items():
            if not context.set_tensor_address(name, value.data_ptr()):
                raise self._bad(self._log.said(f"it does not take the address of {name}"))

        if self._flavour.portable:  # TensorRT-RTX compiles kernels here, and says whether that spoils a capture
            stream = torch.cuda.current_stream(self._device).cuda_stream
            self.capturable = self.capturable and context.is_stream_capturable(stream)

        def enqueue() -> None:
            assert memory.numel()  # which this function keeps alive
            if not context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
                raise BadEnvironment(f"engine {self.spec.file}", self._log.said("it did not run"), self._again)

        return enqueue

    def refit(self, weights: "dict[str, Tensor]") -> None:
        """Other weights of the same shapes and types, on the CPU, by their names in the typed graph."""
        if not self._engine.refittable:
            raise self._bad("it was built with its weights fixed")
        trt = self._trt
        refitter = trt.Refitter(self._engine, self._log)
        for name, weight in weights.items():
            kind = getattr(trt.DataType, DATA_TYPES[str(weight.dtype).removeprefix("torch.")])
            if not refitter.set_named_weights(name, trt.Weights(kind, weight.data_ptr(), weight.numel())):
                raise self._bad(self._log.said(f"it does not take the weight {name}"))
        if not refitter.refit_cuda_engine():
            raise self._bad(self._log.said(f"it lacks the weights {', '.join(refitter.get_missing_weights())}"))

    def close(self) -> None:
        del self._engine, self._runtime

    def _bad(self, reason: str) -> BadArtefact:
        return BadArtefact(f"engine {self.spec.file}", reason, self._again)

    def _check_validity(self, data: bytes) -> None:
        """The library's own word on version and device, where it has one. Not on tampering: that was the cache's."""
        trt = self._trt
        if hasattr(self._runtime, "get_engine_validity"):
            validity, _ = self._runtime.get_engine_validity(data)
            if validity == trt.EngineValidity.INVALID:
                raise self._bad(self._log.said(f"{trt.__name__} {trt.__version__} cannot run it here"))

    def _check_tensors(self) -> None:
        """Raises BadArtefact unless names, types and sizes are those of the spec."""
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        found = {n: (engine.get_tensor_dtype(n).name, tuple(engine.get_tensor_shape(n))) for n in names}
        expected = {
            tensor.name: (DATA_TYPES[tensor.dtype], tuple(-1 if isinstance(d, str) else d for d in tensor.shape))
            for tensor in (*self.spec.inputs, *self.spec.outputs)
        }
        if found != expected:
            raise self._bad(f"its inputs and outputs are {found}")


def check_tensors(spec: NetworkSpec, tensors: "dict[str, Tensor]", device: str) -> None:
    """Our own invariant: buffers are the spec's, contiguous, aligned, on the device; equal names are equal sizes."""
    wanted, sizes = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}, dict[str, int]()
    assert set(tensors) == set(wanted), f"{spec.file} has other tensors than {sorted(tensors)}"
    for name, tensor in wanted.items():
        value, dtype = tensors[name], str(tensors[name].dtype).removeprefix("torch.")
        shape = tuple(
            sizes.setdefault(d, n) if isinstance(d, str) else d for d, n in zip(tensor.shape, value.shape, strict=False)
        )
        fits = tuple(value.shape) == shape and len(shape) == len(tensor.shape) and dtype == tensor.dtype
        assert fits, f"{spec.file}: {name} is {dtype} {tuple(value.shape)}, expected {tensor}"
        assert value.is_contiguous(), f"{spec.file}: {name} is not contiguous"
        assert value.data_ptr() % ALIGNMENT == 0, f"{spec.file}: {name} is not aligned to {ALIGNMENT} bytes"
        assert value.device.type == device.partition(":")[0], f"{spec.file}: {name} is on {value.device}"


def load_tensorrt(bundle: Bundle, network: str, placement: Placement, cache: EngineCache | None = None) -> TrtEngine:
    return _load(FLAVOURS["tensorrt"], bundle, network, placement, cache)


def load_rtx(bundle: Bundle, network: str, placement: Placement, cache: EngineCache | None = None) -> TrtEngine:
    return _load(FLAVOURS["tensorrt-rtx"], bundle, network, placement, cache)


def _load(flavour: Flavour, bundle: Bundle, network: str, placement: Placement, cache: EngineCache | None) -> TrtEngine:
    """Raises BadEnvironment without a GPU or the library, BadArtefact without an intact engine for this GPU."""
    check_device(placement.device)
    here, version = capability_of(placement.device), library(flavour).__version__
    if flavour.portable:
        check_capabilities(flavour, (here,))
    wanted = recipe(
        bundle, network, placement, flavour=flavour.name, version=version, capabilities=(here,), flags=flavour.flags
    )
    again = f"run `{export_command(flavour, bundle, network, placement, here)}`"
    plan = (cache or EngineCache()).load(wanted, here, again)
    return TrtEngine(flavour, plan, placement.device, again)


def export_command(flavour: Flavour, bundle: Bundle, network: str, placement: Placement, capability: str) -> str:
    """What builds the engines that this placement needs."""
    embedded = bundle.folder.parent == MODELS
    words = [
        "cdiff-rt export --model",
        bundle.folder.name if embedded else str(bundle.folder),
        "--target",
        flavour.name,
    ]
    if flavour.portable and capability not in flavour.defaults:
        words += ["--compute-capability", capability]
    if placement.precision != "fp16":
        words += ["--engine-precision", placement.precision]
    if placement.batch != 1:
        words += ["--engine-batch", str(placement.batch)]
    words += [f"--experts {experts}" for experts, kind in KINDS.items() if network.startswith(kind)]
    return " ".join(words)
