"""Group normalisation, and SiLU behind it, as one operation on a device instead of three or four."""

import torch
import torch.nn.functional as F
from torch import Tensor

STORED = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_GROUP = 2**17  # numbers; a group is one block's work, and larger ones would leave most of the GPU idle


def on_cpu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """The definition itself: x [B, C, *latent], weight and bias [C]."""
    normal = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(normal) if silu else normal


def on_cuda(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """One launch of the kernel where it can read x as it lies, on the current stream of its device."""
    if not fits(x, groups):
        return on_cpu(x, groups, weight, bias, eps, silu)
    from cdiff_rt.gpu.group_norm_kernel import launch

    out = torch.empty_like(x)
    with torch.cuda.device_of(x):  # Triton launches on the current device, wherever the tensors are
        launch(x.flatten(2), weight.contiguous(), bias.contiguous(), out.flatten(2), groups, eps, silu)
    return out


def fits(x: Tensor, groups: int) -> bool:
    """Whether x lies with channels first or last, without gaps, and no group is too large."""
    dense = x.is_contiguous() or x.movedim(1, -1).is_contiguous()
    return dense and x.dim() > 2 and x.dtype in STORED and x[0].numel() <= groups * LARGEST_GROUP


def like(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """The operation on tensors without data."""
    return torch.empty_like(x)


group_norm = torch.library.custom_op("cdiff_rt::group_norm", on_cpu, mutates_args=(), device_types="cpu")
group_norm.register_kernel("cuda", on_cuda)
group_norm.register_fake(like)
