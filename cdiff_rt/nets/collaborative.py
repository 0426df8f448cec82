"""The whole model: one expert per modality (branch, dynamic diffuser, condition encoder) and one shared autoencoder."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from cdiff_rt.nets.autoencoder import AutoencoderConfig, AutoencoderKL
from cdiff_rt.nets.mask_encoder import MaskEncoder, MaskEncoderConfig
from cdiff_rt.nets.text_encoder import TextEncoder, TextEncoderConfig
from cdiff_rt.nets.unet import UNet, UNetConfig

EncoderConfig = MaskEncoderConfig | TextEncoderConfig
Encoder = MaskEncoder | TextEncoder
Config = TypeVar("Config")


@dataclass(frozen=True)
class ExpertConfig:
    encoder: EncoderConfig
    unet: UNetConfig
    diffuser: UNetConfig


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of all networks; `to_json` and `from_json` carry them through a bundle's manifest."""

    experts: dict[str, ExpertConfig]
    vae: AutoencoderConfig

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> "ModelConfig":
        experts = {name: _expert_config(expert) for name, expert in data["experts"].items()}
        return cls(experts, _config(AutoencoderConfig, data["vae"]))


def _config(kind: type[Config], fields: dict) -> Config:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def _expert_config(data: dict) -> ExpertConfig:
    kind: type[EncoderConfig] = TextEncoderConfig if "vocabulary" in data["encoder"] else MaskEncoderConfig
    return ExpertConfig(
        _config(kind, data["encoder"]), _config(UNetConfig, data["unet"]), _config(UNetConfig, data["diffuser"])
    )


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
