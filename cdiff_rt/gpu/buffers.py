"""Tensors that stay where they are: what engines are bound to and a CUDA graph remembers."""

import math
from collections.abc import Mapping

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
