"""What a CUDA graph forbids, looked for on CPU tensors: modes that watch every call of torch while work runs.

A captured graph repeats launches with the addresses they had. So work that is to be captured must not wait for the
device, copy from or to the host, draw random numbers, or let shapes depend on values (`capturable`); it must launch the
same for every step (`trace`); and it must write where the owner of the graph said (`StaticBuffers`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

HOST = {
    *(Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.cuda, Tensor.numpy, Tensor.pin_memory, Tensor.equal),
    *(Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.__array__, Tensor.__repr__),
    *(Tensor.__contains__, torch.tensor, torch.as_tensor, torch.equal, torch.allclose),
}
RANDOM = {torch.randn, torch.rand, torch.randint, torch.randn_like, torch.rand_like, torch.normal, torch.bernoulli}
RANDOM |= {Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.random_}
OF_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class NotCapturable(AssertionError):
    """Says which call."""


class _Calls(TorchFunctionMode):
    """Of the Python interface, where a transfer shows even when both sides are the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = resolve_name(function) or str(function)
        if function in HOST:
            raise NotCapturable(f"{name} waits for the device or copies from the host")
        if function in RANDOM:
            raise NotCapturable(f"{name} draws random numbers")
        places = (*args[1:], *(kwargs or {}).values())
        if function is Tensor.to and any(isinstance(place, str | torch.device) for place in places):
            raise NotCapturable(f"{name} moves a tensor to another device")
        return function(*args, **kwargs or {})


class _Operations(TorchDispatchMode):
    """Of operations, where shapes that depend on values show."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        masks = any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:]))
        if OF_VALUES & set(operation.tags) or (operation.__name__.startswith("index") and masks):
            raise NotCapturable(f"{operation} has a shape that depends on values")
        return operation(*args, **kwargs or {})


@contextmanager
def capturable() -> Iterator[None]:
    """Raises NotCapturable at the first call that a CUDA graph cannot capture."""
    with _Operations(), _Calls():
        yield


class _Trace(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        self.rows.append((str(operation), *((tuple(t.shape), t.dtype, t.stride()) for t in tensors)))
        return result


def trace(work: Callable[[], object]) -> list[tuple]:
    """Every operation of `work` with the shapes, types and strides of its tensors."""
    with _Trace() as watching:
        work()
    return watching.rows


class StaticBuffers(TorchDispatchMode):
    """Collects every write, and every new tensor, that is not in the storage of a registered buffer."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        super().__init__()
        self._known = {buffer.untyped_storage()._cdata for buffer in buffers}
        self.strays: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **kwargs or {})
        written = [
            value
            for argument, value in zip(operation._schema.arguments, args, strict=False)
            if isinstance(value, Tensor) and argument.alias_info and argument.alias_info.is_write
        ]
        for tensor in (*written, *(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))):
            if tensor.untyped_storage()._cdata not in self._known:
                self.strays.append(f"{operation} {tuple(tensor.shape)}")
        return result


def unseen(work: Callable[[], None]) -> Callable[[], None]:
    """The same work, whose inside no lint sees: an engine's own memory is the engine's affair."""

    def run() -> None:
        with _disable_current_modes():
            work()

    return run
