"""The whole model: one expert per modality (branch, dynamic diffuser, condition encoder) and one shared autoencoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from cdiff_rt.nets.autoencoder import AutoencoderConfig, AutoencoderKL
from cdiff_rt.nets.mask_encoder import MaskEncoder, MaskEncoderConfig
from cdiff_rt.nets.picture_encoder import PictureEncoder, PictureEncoderConfig
from cdiff_rt.nets.text_encoder import TextEncoder, TextEncoderConfig
from cdiff_rt.nets.unet import UNet, UNetConfig

EncoderConfig = MaskEncoderConfig | TextEncoderConfig | PictureEncoderConfig
Encoder = MaskEncoder | TextEncoder | PictureEncoder


@dataclass(frozen=True)
class ExpertConfig:
    """A branch that was trained alone has no dynamic diffuser; its influence logit is 0."""

    encoder: EncoderConfig
    unet: UNetConfig
    diffuser: UNetConfig | None
    diffuser_input: Literal["x_t", "prediction"] = "x_t"  # what the dynamic diffuser looks at


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of all networks, as a bundle's manifest carries them. Latents that are the data have no autoencoder."""

    experts: dict[str, ExpertConfig]
    vae: AutoencoderConfig | None


ENCODERS: dict[type, Callable[[Any], Encoder]] = {
    MaskEncoderConfig: MaskEncoder,
    TextEncoderConfig: TextEncoder,
    PictureEncoderConfig: PictureEncoder,
}


def build_encoder(config: EncoderConfig) -> Encoder:
    return ENCODERS[type(config)](config)


class Expert(nn.Module):
    """One modality: the branch that predicts, its dynamic diffuser, and the encoder of what conditions them.

    `condition`, `time` and `forward` are the three networks of a bundle; branch and diffuser share each call's
    inputs, their projections and keys and values are packed one behind the other.
    """

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.unet = UNet(config.unet)
        if config.diffuser:
            self.diffuser = UNet(config.diffuser)

    def condition(self, inputs: Tensor) -> Tensor:
        """What `encoder` takes -> packed keys and values [B, T, K]."""
        return self.pack(self.encoder(inputs))

    def pack(self, tokens: Tensor) -> Tensor:
        """The embedding of a condition [B, T, width] -> packed keys and values [B, T, K]."""
        return torch.cat([net.context_kv(tokens) for net in self._unets], dim=2)

    def time(self, t: Tensor) -> Tensor:
        """[S] int64 -> packed projections [S, E]."""
        return torch.cat([net.time_projections(t) for net in self._unets], dim=1)

    def forward(self, x: Tensor, projections: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, *latent], projections [B or 1, E], packed [B, T, K] -> prediction [B, C, *latent], logit [B, 1, *latent]."""
        e, k = self.unet.projection_width, self.unet.context_width
        out = self.unet.denoise(x, projections[:, :e], packed[:, :, :k])
        if not self.config.diffuser:
            return out, torch.zeros_like(out[:, :1])
        seen = {"x_t": x, "prediction": out}[self.config.diffuser_input]
        return out, self.diffuser.denoise(seen, projections[:, e:], packed[:, :, k:])

    @property
    def projection_width(self) -> int:
        return sum(net.projection_width for net in self._unets)

    @property
    def context_width(self) -> int:
        return sum(net.context_width for net in self._unets)

    @property
    def _unets(self) -> list[UNet]:
        return [self.unet, self.diffuser] if self.config.diffuser else [self.unet]


class CollaborativeModel(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({name: Expert(expert) for name, expert in config.experts.items()})
        if config.vae:
            self.vae = AutoencoderKL(config.vae)

    def expert(self, modality: str) -> Expert:
        return cast(Expert, self.experts[modality])


Function = Callable[..., tuple[Tensor, ...]]


def parts_of(config: ModelConfig) -> list[str]:
    return [*(f"experts.{name}" for name in config.experts), *(["vae"] if config.vae else [])]


def build_part(config: ModelConfig, part: str) -> nn.Module:
    """That module alone, so that nobody needs the memory of all."""
    if part == "vae":
        assert config.vae is not None
        return AutoencoderKL(config.vae)
    return Expert(config.experts[part.removeprefix("experts.")])


def part_functions(part: str, module: nn.Module) -> dict[str, Function]:
    """The networks of a bundle that a module makes, each a function of its inputs in the order of `export.bundle`'s."""
    if isinstance(module, AutoencoderKL):
        return {"vae.encode": module.encode, "vae.decode": lambda z: (module.decode(z),)}
    assert isinstance(module, Expert)
    name = part.removeprefix("experts.")
    return {
        f"condition.{name}": lambda inputs: (module.condition(inputs),),
        f"time.{name}": lambda t: (module.time(t),),
        f"expert.{name}": module.forward,
    }


def network_functions(model: CollaborativeModel) -> dict[str, Function]:
    """All networks of a bundle by name."""
    parts = [*(f"experts.{name}" for name in model.experts), *(["vae"] if hasattr(model, "vae") else [])]
    return {k: function for part in parts for k, function in part_functions(part, model.get_submodule(part)).items()}


# Of a part's weights, what its network that runs once reads, as pieces of their names.
_READ_ONCE = {
    "condition": (".encoder.", ".attn2.to_k.", ".attn2.to_v."),
    "time": (".time_embed.", ".emb_layers."),
    "vae.encode": (".encoder.", ".quant_conv.", ".linear_in."),
}


def reads(network: str, weight: str) -> bool:
    """Whether a network reads a weight of its part. Each weight is read by one network."""
    kind = network if network.startswith("vae.") else network.partition(".")[0]
    if kind in _READ_ONCE:
        return any(piece in f".{weight}" for piece in _READ_ONCE[kind])
    others = ("vae.encode",) if kind == "vae.decode" else ("condition", "time")
    return not any(reads(other, weight) for other in others)
