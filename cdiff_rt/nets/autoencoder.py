"""AutoencoderKL of latent diffusion: images to latents and back. Keys are those of the published checkpoints."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    image_channels: int = 3
    patch: int = 1  # the image enters and leaves as patch x patch blocks of pixels (1: the reference)
    linear: bool = False  # a linear code of whole blocks is added on both sides; the rest learns what it leaves over

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel, along one side."""
        return self.patch * 2 ** (len(self.channel_mult) - 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2, self.conv2 = _norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (to(h).flatten(2).transpose(1, 2)[:, None] for to in (self.q, self.k, self.v))  # [B, 1, H W, C]
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # the reference pads right and bottom only


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution and the change to the next, if any."""

    def __init__(self, blocks: list[nn.Module], **resample: nn.Module) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        for name, module in resample.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def _blocks(in_channels: int, out_channels: int, count: int) -> list[nn.Module]:
    return [ResnetBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(count)]


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.image_channels * config.patch**2, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (before, width) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            resample = {} if level == len(widths) - 1 else {"downsample": Downsample(width)}
            self.down.append(Level(_blocks(before, width, config.num_res_blocks), **resample))
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(F.pixel_unshuffle(image, self.patch))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """`up` is numbered by resolution, finest first, and runs from the last to the first."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for level, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            resample = {} if level == 0 else {"upsample": Upsample(width)}
            self.up.append(Level(_blocks(before, width, config.num_res_blocks + 1), **resample))
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.image_channels * config.patch**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


class AutoencoderKL(nn.Module):
    """Images in [-1, 1] [B, 3, H, W] <-> latents [B, z, H / factor, W / factor], not yet scaled."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)
        if config.linear:
            side = config.factor
            self.linear_in = nn.Conv2d(config.image_channels, config.z_channels, side, stride=side)
            self.linear_out = nn.ConvTranspose2d(config.z_channels, config.image_channels, side, stride=side)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and log-variance of the posterior."""
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        if self.config.linear:
            mean = mean + self.linear_in(image)
        return mean, torch.clamp(logvar, -30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        image = self.decoder(self.post_quant_conv(z))
        return image + self.linear_out(z) if self.config.linear else image
