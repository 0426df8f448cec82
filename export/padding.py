"""Zero-padding of attention heads to a width that fused kernels accept. Exact: the padded part adds zeros to every sum.

The reference's heads are 12, 18 and 30 (branches) or 2, 3 and 5 (dynamic diffusers) wide, which no fused attention
takes; a multiple of 8 is. The scale stays that of the true width (nets/attention.py).
"""

import dataclasses
import re

import torch.nn.functional as F
from torch import Tensor

from cdiff_rt.nets.collaborative import ModelConfig
from cdiff_rt.nets.unet import UNetConfig

_ATTENTION = re.compile(
    r"experts\.(?P<expert>[^.]+)\.(?P<net>unet|diffuser)\..*\.attn[12]\.(?P<layer>to_[qkv]|to_out\.0)\.weight"
)


def pad_heads(config: ModelConfig, weights: dict[str, Tensor], multiple: int) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same model with every UNet's heads as wide as the next multiple of `multiple`."""
    experts = {
        name: dataclasses.replace(
            expert,
            unet=dataclasses.replace(expert.unet, head_multiple=multiple),
            diffuser=dataclasses.replace(expert.diffuser, head_multiple=multiple),
        )
        for name, expert in config.experts.items()
    }
    padded = dataclasses.replace(config, experts=experts)
    return padded, {name: _pad(name, weight, padded) for name, weight in weights.items()}


def _pad(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    match = _ATTENTION.fullmatch(name)
    if not match:
        return weight
    net: UNetConfig = getattr(config.experts[match["expert"]], match["net"])
    if match["layer"].startswith("to_out"):
        return _pad_rows(weight.T, net).T.contiguous()
    return _pad_rows(weight, net)


def _pad_rows(weight: Tensor, net: UNetConfig) -> Tensor:
    """[heads * width, other] -> [heads * padded, other], zeros behind each head."""
    heads = weight.unflatten(0, (net.num_heads, -1))
    extra = -heads.shape[1] % net.head_multiple
    return F.pad(heads, (0, 0, 0, extra)).flatten(0, 1)
