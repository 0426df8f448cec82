"""Engines of TensorRT, whichever flavour it is, from plans that the cache vouches for."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.cache import EngineCache, LoadedPlan, Recipe, recipe
from cdiff_rt.engines.stacked import KINDS
from cdiff_rt.engines.trt_library import (
    FLAVOURS,
    Flavour,
    capability_of,
    check_capabilities,
    check_device,
    library,
    name_of,
    new_log,
)
from cdiff_rt.errors import BadArtefact, BadEnvironment, CdiffError, OutOfResource
from cdiff_rt.manifest import MODELS, Bundle, NetworkSpec
from cdiff_rt.notes import log

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 256  # bytes, of every tensor's address
DATA_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}  # ours -> the library's


class TrtEngine:
    """A plan that the cache vouches for, on a CUDA device. Implements `DeviceEngine`."""

    def __init__(
        self, flavour: Flavour, plan: LoadedPlan, device: str, again: str, kernels: "Kernels | None" = None
    ) -> None:
        """`kernels` keeps what the library compiles here, if it compiles anything."""
        check_device(device)
        self._trt = trt = library(flavour)
        self.spec = plan.engine.spec
        self.capturable = not any(isinstance(d, str) for t in self.spec.inputs for d in t.shape)
        self._flavour, self._device, self._again, self._log = flavour, device, again, new_log(trt)
        self._kernels = kernels
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
        context = self._context()
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

        new = [self._kernels] if self._kernels else []

        def enqueue() -> None:
            assert memory.numel()  # which this function keeps alive
            if not context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
                raise BadEnvironment(f"engine {self.spec.file}", self._log.said("it did not run"), self._again)
            while new:  # after the first run, which is never captured, all are compiled
                new.pop().keep()

        return enqueue

    def _context(self) -> Any:
        given = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._kernels:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(given)
            self._kernels.attach(config)
            given = config
        context = self._engine.create_execution_context(given)
        if context is None:
            raise OutOfResource(f"engine {self.spec.file}", self._log.said("no context"), "choose a smaller batch")
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE  # else layers are announced as the build asked for
        return context

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


class Kernels:
    """What TensorRT-RTX compiles when an engine first runs on a GPU, kept from one process to the next."""

    def __init__(self, cache: EngineCache, plan: LoadedPlan, gpu: str) -> None:
        self._cache, self._file = cache, f"{plan.engine.recipe.key}-{sha256(gpu.encode()).hexdigest()[:12]}.kernels"
        self._kept = cache.learned(self._file)
        self._live: Any = None  # the library's

    def attach(self, config: Any) -> None:
        """To a runtime config. What another driver or version compiled, the library itself leaves out."""
        if self._live is None:
            self._live = config.create_runtime_cache()
            if self._kept and not self._live.deserialize(self._kept):
                log.info("%s does not fit the driver or library that is here; compiling anew", self._file)
        config.set_runtime_cache(self._live)

    def keep(self) -> None:
        data = bytes(self._live.serialize())
        if data == self._kept:
            return
        try:
            self._cache.keep_learned(self._file, data)
            self._kept = data
        except CdiffError as error:  # the engine runs as well without
            log.warning("compiled kernels were not kept: %s", error)


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
    here, gpu, cache = capability_of(placement.device), name_of(placement.device), cache or EngineCache()
    if flavour.portable:
        check_capabilities(flavour, (here,))
    wanted = recipe_for(flavour, bundle, network, placement, (here,))
    again = f"run `{export_command(flavour, bundle, network, placement, here)}`"
    plan = cache.load(wanted, here, again)
    kernels = Kernels(cache, plan, gpu) if flavour.portable else None
    return TrtEngine(flavour, plan, placement.device, again, kernels)


def recipe_for(
    flavour: Flavour, bundle: Bundle, network: str, placement: Placement, capabilities: Sequence[str]
) -> Recipe:
    """Of the engine that this placement asks for, in the version of the library that is here.

    What isn't portable was tuned on a GPU and is for others of its name only: they differ in clocks and memory.
    """
    return recipe(
        bundle,
        network,
        placement,
        flavour=flavour.name,
        version=library(flavour).__version__,
        capabilities=capabilities,
        flags=flavour.flags,
        gpu="" if flavour.portable else name_of(placement.device),
    )


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
