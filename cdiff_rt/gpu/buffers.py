"""Tensors that stay where they are: what engines are bound to and a CUDA graph remembers."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from cdiff_rt.manifest import NetworkSpec, TensorSpec

ALIGNMENT = 256  # bytes; as cudaMalloc gives, so that a slice is as good as a tensor of its own


def shape_of(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)


def dtype_of(tensor: TensorSpec) -> torch.dtype:
    return getattr(torch, tensor.dtype)


def stacked(count: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[count, *shape] of zeros, each of the `count` contiguous and aligned."""
    size = math.prod(shape)
    unit = ALIGNMENT // dtype.itemsize
    room = torch.zeros(count, -(-size // unit) * unit, dtype=dtype, device=device)
    return room[:, :size].unflatten(1, shape) if shape else room[:, 0]


class PerStep:
    """Values that every step has its own of, selected on the device.

    All of a step's lie in one row, and which row is next is a number on the device. So one launch brings them to where
    engines and kernels read them, and the same launch does it for any step: nothing that differs between steps is known
    to what enqueues them.
    """

    def __init__(self, values: Sequence[TensorSpec], capacity: int, device: torch.device) -> None:
        shapes = [shape_of(value, {}) for value in values]
        sizes = [math.prod(shape) * dtype_of(value).itemsize for value, shape in zip(values, shapes, strict=True)]
        starts = [0, *accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]
        # In words of 8 bytes, which are copied as they are, whatever they mean.
        self._rows, self._row = (
            torch.zeros(count, starts[-1] // 8, dtype=torch.int64, device=device) for count in (capacity, 1)
        )
        self._next = torch.zeros(1, dtype=torch.int64, device=device)
        self.rows: dict[str, Tensor] = {}  # [capacity, *shape], for whoever stages a run
        self.now: dict[str, Tensor] = {}  # [*shape], the running step's
        for value, shape, start, size in zip(values, shapes, starts, sizes, strict=False):
            own = slice(start, start + size)
            rows, row = (
                words.view(torch.uint8)[:, own].view(dtype_of(value)).view(len(words), *shape)
                for words in (self._rows, self._row)
            )
            self.rows[value.name], self.now[value.name] = rows, row[0]

    def restart(self) -> None:
        """The first step is next."""
        self._next.zero_()

    def select(self) -> None:
        """Brings the next step's values into `now`."""
        torch.index_select(self._rows, 0, self._next, out=self._row)
        self._next.add_(1)


def tensors_of(spec: NetworkSpec, sizes: Mapping[str, int], device: torch.device) -> dict[str, Tensor]:
    """One tensor for each input and output of a network."""
    return {
        tensor.name: torch.zeros(shape_of(tensor, sizes), dtype=dtype_of(tensor), device=device)
        for tensor in (*spec.inputs, *spec.outputs)
    }


def sizes_of(spec: NetworkSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What the spec's named sizes are in these inputs."""
    named = ((d, n) for t in spec.inputs for d, n in zip(t.shape, arrays[t.name].shape, strict=True))
    return {d: n for d, n in named if isinstance(d, str)}


def upload(value: np.ndarray, target: Tensor) -> None:
    """Copies from the host. To a GPU it goes through pinned memory, so that the host waits for nothing."""
    source = torch.from_numpy(value)
    target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)
