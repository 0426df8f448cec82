"""What an engine is: one network of a bundle on one backend, on the CPU or on a device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from cdiff_rt.errors import BadArtefact, CdiffError, OutOfResource, ran_out
from cdiff_rt.manifest import REBUILD, Manifest, NetworkSpec, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["fp16", "bf16", "fp32", "tf32"]  # tf32: fp32 whose products a GPU rounds to 10 bits
# Which engines a step has: one for each expert; one of all, if they have one shape; or one of the whole step.
Arrangement = Literal["separate", "stacked", "whole-step"]
DTYPES: dict[Precision, str] = {  # as numpy and torch say
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "tf32": "float32",
}


COMPOSED = "composed"  # in place of a manifest's description of the networks, where they are graphs that others made


def is_composed(manifest: Manifest) -> bool:
    """Whether its networks are graphs alone, which PyTorch has no modules for."""
    return COMPOSED in manifest.source


class Engine(Protocol):
    """A loaded network. Calling it takes and gives arrays by the names of its spec."""

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Placement:
    """Where and how an engine runs. Networks that run once per image or schedule are always fp32."""

    device: str = "cuda"  # as torch writes it
    precision: Precision = "fp16"
    batch: int = 1  # of a device's engine; the CPU's take any
    threads: int = 1  # of an engine on the CPU
    kernels: bool = True  # whether PyTorch on a device computes attention and normalisation by kernels of ours


class DeviceEngine(Protocol):
    """A loaded network on a device, for buffers that somebody else owns."""

    spec: NetworkSpec  # with this engine's own types; sizes that it fixes are numbers
    capturable: bool  # whether a CUDA graph can capture its work

    def bind(self, tensors: "dict[str, Tensor]") -> Callable[[], None]:
        """Contiguous tensors of the spec, by name -> what enqueues one call on the device's current stream.

        The addresses stay bound: the owner keeps the buffers alive and in place.
        """
        ...

    def close(self) -> None: ...


_ALWAYS_FP32 = ("condition", "time")  # once per image or schedule; a timestep's sines don't survive fp16
_FP32_TENSORS = ("x", "z", "image", "mean", "logvar")  # the loop's latents and what people see


def precision_of(network: str, placement: Placement) -> Precision:
    """What a network computes in: the placement's, but for those that are fp32 whatever is asked for."""
    return "fp32" if network.split(".")[0] in _ALWAYS_FP32 else placement.precision


def device_spec(spec: NetworkSpec, network: str, placement: Placement) -> NetworkSpec:
    """A network's spec as engines on a device have it: their types, and the batch a number."""
    dtype = DTYPES[precision_of(network, placement)]

    def typed(tensor: TensorSpec) -> TensorSpec:
        shape = tuple(placement.batch if d == "batch" else d for d in tensor.shape)
        changes = tensor.dtype == "float32" and tensor.name not in (*_FP32_TENSORS, *spec.exact)
        return TensorSpec(tensor.name, shape, dtype if changes else tensor.dtype)

    return replace(spec, inputs=tuple(map(typed, spec.inputs)), outputs=tuple(map(typed, spec.outputs)), cpu_file="")


def check_inputs(spec: NetworkSpec, inputs: dict[str, np.ndarray]) -> None:
    """Our own invariant: names, types and shapes are those of the manifest, and equal names are equal sizes."""
    sizes: dict[str, int] = {}
    assert set(inputs) == {tensor.name for tensor in spec.inputs}, f"{spec.file} takes other inputs than {set(inputs)}"
    for tensor in spec.inputs:
        array = inputs[tensor.name]
        expected = tuple(
            sizes.setdefault(d, n) if isinstance(d, str) else d for d, n in zip(tensor.shape, array.shape, strict=False)
        )
        fits = array.shape == expected and len(array.shape) == len(tensor.shape) and str(array.dtype) == tensor.dtype
        assert fits, f"{spec.file}: {tensor.name} is {array.dtype} {array.shape}, expected {tensor}"


Signature = Mapping[str, tuple[str, tuple[int | None, ...] | None]]  # name -> type and shape, as far as they are known


def check_signature(spec: NetworkSpec, found: Signature) -> None:
    """Raises BadArtefact unless a network takes and gives what the manifest says."""
    wanted = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    if set(found) != set(wanted):
        raise refused(spec, f"its inputs and outputs are {', '.join(sorted(found))}")
    for name, (dtype, shape) in found.items():
        if dtype != wanted[name].dtype or (shape is not None and not _fits(shape, wanted[name].shape)):
            sizes = [size or "?" for size in shape or ()]
            raise refused(spec, f"{name} is {dtype} {sizes}, not {wanted[name].dtype} {list(wanted[name].shape)}")


def _fits(found: tuple[int | None, ...], wanted: tuple[int | str, ...]) -> bool:
    """Sizes that are open in the manifest are open in the graph, and those that are known in both are equal."""
    return len(found) == len(wanted) and all(a is None or a == b for a, b in zip(found, wanted, strict=True))


def check_outputs(spec: NetworkSpec, outputs: Mapping[str, np.ndarray]) -> None:
    """Raises BadArtefact unless their shapes are those of the manifest."""
    for tensor in spec.outputs:
        shape = outputs[tensor.name].shape
        known = tuple(n if isinstance(d, str) else d for d, n in zip(tensor.shape, shape, strict=False))
        if shape != known or len(shape) != len(tensor.shape):
            raise refused(spec, f"it gives {tensor.name} {list(shape)}, not {list(tensor.shape)}")


def refused(spec: NetworkSpec, reason: str) -> BadArtefact:
    return BadArtefact(f"network {spec.file}", reason, REBUILD)


MORE_MEMORY = "close other programs, or use a machine with more memory"


def failure(
    spec: NetworkSpec, library: str, error: Exception, inputs: Mapping[str, np.ndarray] | None = None
) -> CdiffError:
    """What a library's exception means, in loading or with `inputs`: there is no memory, or the network is at fault."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if not ran_out(error):
        return refused(spec, f"{library} {'refuses it' if inputs is None else 'cannot run it'} ({reason})")
    batches = [len(inputs[tensor.name]) for tensor in spec.inputs if tensor.shape[0] == "batch"] if inputs else []
    remedy = f"choose a smaller batch than {batches[0]}" if batches and batches[0] > 1 else MORE_MEMORY
    return OutOfResource(f"{'loading' if inputs is None else 'running'} {spec.file}", reason, remedy)
