"""Attention on a device as one operation: a kernel of ours for narrow heads (attention_plan.py), else PyTorch's."""

import math

import torch
from torch import Tensor

from cdiff_rt.gpu.attention_plan import choice
from cdiff_rt.nets.attention import attend

LARGEST = 2**31  # what the kernels count in 32 bits stays below


def on_cuda(q: Tensor, keys: Tensor, values: Tensor, heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
    """One launch of a kernel, on the current stream of q's device, or what PyTorch makes of it."""
    chosen = choice(q.shape[2] // heads, q.dtype)
    if chosen is None or mask is not None or not fits(q, keys, values):
        return attend(q, keys, values, heads, scale, mask)
    from cdiff_rt.gpu.attention_kernel import launch

    out = like(q, keys, values, heads, scale)
    with torch.cuda.device_of(q):  # Triton launches on the current device, wherever the tensors are
        launch(chosen, q, keys, values, out, heads, scale / math.log(2))
    return out


def fits(*tensors: Tensor) -> bool:
    """Whether a head's numbers lie side by side, and offsets within an image have 31 bits."""
    return all(x.stride(2) == 1 and x.shape[1] * x.stride(1) < LARGEST for x in tensors)


def like(q: Tensor, keys: Tensor, values: Tensor, heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
    """The operation on tensors without data."""
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


attention = torch.library.custom_op("cdiff_rt::attention", attend, mutates_args=(), device_types="cpu")
attention.register_kernel("cuda", on_cuda)
attention.register_fake(like)
