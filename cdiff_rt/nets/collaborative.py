"""The whole model: one expert per modality (branch, dynamic diffuser, condition encoder) and one shared autoencoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from cdiff_rt.nets.autoencoder import AutoencoderConfig, AutoencoderKL
from cdiff_rt.nets.mask_encoder import MaskEncoder, MaskEncoderConfig
from cdiff_rt.nets.text_encoder import TextEncoder, TextEncoderConfig
from cdiff_rt.nets.unet import UNet, UNetConfig

EncoderConfig = MaskEncoderConfig | TextEncoderConfig
Encoder = MaskEncoder | TextEncoder


@dataclass(frozen=True)
class ExpertConfig:
    encoder: EncoderConfig
    unet: UNetConfig
    diffuser: UNetConfig


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of all networks, as a bundle's manifest carries them."""

    experts: dict[str, ExpertConfig]
    vae: AutoencoderConfig


def build_encoder(config: EncoderConfig) -> Encoder:
    return TextEncoder(config) if isinstance(config, TextEncoderConfig) else MaskEncoder(config)


class Expert(nn.Module):
    """One modality: the branch that predicts, its dynamic diffuser, and the encoder of what conditions them.

    `condition`, `time` and `forward` are the three networks of a bundle; branch and diffuser share each call's
    inputs, their rows and keys and values are packed one behind the other.
    """

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        self.encoder = build_encoder(config.encoder)
        self.unet = UNet(config.unet)
        self.diffuser = UNet(config.diffuser)

    def condition(self, inputs: Tensor) -> Tensor:
        """What `encoder` takes -> packed keys and values [B, T, K]."""
        tokens = self.encoder(inputs)
        return torch.cat([self.unet.context_kv(tokens), self.diffuser.context_kv(tokens)], dim=2)

    def time(self, t: Tensor) -> Tensor:
        """[S] int64 -> packed rows [S, E]."""
        return torch.cat([self.unet.time_rows(t), self.diffuser.time_rows(t)], dim=1)

    def forward(self, x: Tensor, rows: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W], rows [B or 1, E], packed [B, T, K] -> prediction [B, C, H, W], logit [B, 1, H, W]."""
        e, k = self.unet.row_width, self.unet.context_width
        out = self.unet.denoise(x, rows[:, :e], packed[:, :, :k])
        return out, self.diffuser.denoise(x, rows[:, e:], packed[:, :, k:])


class CollaborativeModel(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({name: Expert(expert) for name, expert in config.experts.items()})
        self.vae = AutoencoderKL(config.vae)

    def expert(self, modality: str) -> Expert:
        return cast(Expert, self.experts[modality])


def network_functions(model: CollaborativeModel) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """The networks of a bundle by name, each a function of its inputs in the order of `export.bundle`'s specs."""
    functions: dict[str, Callable[..., tuple[Tensor, ...]]] = {
        "vae.encode": model.vae.encode,
        "vae.decode": lambda z: (model.vae.decode(z),),
    }
    for name in model.experts:
        expert = model.expert(name)
        functions[f"condition.{name}"] = lambda inputs, expert=expert: (expert.condition(inputs),)
        functions[f"time.{name}"] = lambda t, expert=expert: (expert.time(t),)
        functions[f"expert.{name}"] = expert.forward
    return functions
