"""Zero-padding of attention heads to a width that fused kernels accept. Exact: the padded part adds zeros to every sum.

The reference's heads are 12, 18 and 30 (branches) or 2, 3 and 5 (dynamic diffusers) wide, which no fused attention of
GPUs takes; a multiple of 8 is. The scale stays that of the true width (nets/attention.py).
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


def padded_config(config: ModelConfig, multiple: int) -> ModelConfig:
    """The same model with every UNet's heads as wide as the next multiple of `multiple`."""

    def wider(unet: UNetConfig) -> UNetConfig:
        return dataclasses.replace(unet, head_multiple=multiple)

    experts = {
        name: dataclasses.replace(expert, unet=wider(expert.unet), diffuser=expert.diffuser and wider(expert.diffuser))
        for name, expert in config.experts.items()
    }
    return dataclasses.replace(config, experts=experts)


def pad_weight(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """A weight of the model without padding -> that of the padded `config`."""
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
