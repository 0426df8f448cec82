"""PyTorch's networks on a device with attention and group normalisation as operations of ours.

They are swapped in when a network is loaded, so the networks themselves know of none.
"""

from itertools import zip_longest

from torch import Tensor, nn

from cdiff_rt.engines import eager
from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.modules import as_it_is
from cdiff_rt.gpu.attention import attention
from cdiff_rt.gpu.group_norm import group_norm
from cdiff_rt.manifest import Bundle
from cdiff_rt.nets.attention import Attention


class Norm(nn.Module):
    """A GroupNorm, and the SiLU behind it if there is one, as one operation."""

    def __init__(self, norm: nn.GroupNorm, silu: bool) -> None:
        super().__init__()
        self.norm, self.silu = norm, silu

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        return group_norm(x, n.num_groups, n.weight, n.bias, n.eps, self.silu)


def with_kernels(module: nn.Module) -> None:
    """Swaps both kinds."""
    with_attention(module)
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (name, child), (after, follower) in zip_longest(children, children[1:], fillvalue=("", None)):
            if isinstance(child, nn.GroupNorm):
                silu = isinstance(parent, nn.Sequential) and isinstance(follower, nn.SiLU)
                setattr(parent, name, Norm(child, silu))
                if silu:
                    setattr(parent, after, nn.Identity())


def with_attention(module: nn.Module) -> None:
    """Swaps attention alone. Inductor has kernels for normalisation, which it fuses with what is around."""
    for part in module.modules():
        if isinstance(part, Attention):
            part.attend = attention


def load_device(bundle: Bundle, network: str, placement: Placement) -> eager.EagerDeviceEngine:
    return eager.load_device(bundle, network, placement, with_kernels if placement.kernels else as_it_is)


def load_device_compiled(bundle: Bundle, network: str, placement: Placement) -> eager.EagerDeviceEngine:
    prepare = with_attention if placement.kernels else as_it_is
    return eager.load_device_compiled(bundle, network, placement, prepare)
