"""The denoising UNet of latent diffusion (openaimodel.UNetModel), cut where inference pays.

A branch predicts eps or v with it; a dynamic diffuser is the same network with one output channel. State-dict keys
are those of the published checkpoints. Latents may be lines, images or volumes (`dims`). `forward` is the composition of three parts that the exporter takes apart:
`time_projections` (once per schedule), `context_kv` (once per image) and `denoise` (once per step).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdiff_rt.nets.attention import Attention
from cdiff_rt.nets.freeu import FreeU, FreeUConfig

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class UNetConfig:
    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]  # downsampling factors that have a transformer block
    num_heads: int
    context_dim: int
    head_multiple: int = 1  # head widths are zero-padded to a multiple of this
    dims: int = 2  # axes of a latent: 1 a line, 2 an image, 3 a volume
    freeu: FreeUConfig | None = None  # off in the reference's generate.py

    def conv(self, in_channels: int, out_channels: int, size: int, **settings: int) -> nn.Module:
        return CONVOLUTIONS[self.dims](in_channels, out_channels, size, **settings)  # type: ignore[arg-type]

    def padded_width(self, channels: int) -> int:
        """The stored width of a head where the network is `channels` wide."""
        width = channels // self.num_heads
        return -(-width // self.head_multiple) * self.head_multiple


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """[S] integer timesteps -> [S, dim]: cosines first, then sines, of t * 10000^(-i / half)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    """Two convolutions of width 3; the projected time embedding is added between them."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, in_channels), nn.SiLU(), config.conv(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.model_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Dropout(0.0),
            config.conv(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else config.conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, projection: Tensor) -> Tensor:
        """projection [B or 1, out_channels]: this block's projection of the time embedding."""
        h = self.in_layers(x) + projection.reshape(*projection.shape, *(1,) * (x.dim() - 2))
        return self.skip_connection(x) + self.out_layers(h)


class GEGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each behind its LayerNorm, each added to its input."""

    def __init__(self, dim: int, config: UNetConfig) -> None:
        super().__init__()
        self.attn1 = self._attention(dim, dim, config)
        self.ff = FeedForward(dim)
        self.attn2 = self._attention(dim, config.context_dim, config)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    @staticmethod
    def _attention(dim: int, context_dim: int, config: UNetConfig) -> Attention:
        padded = config.padded_width(dim)
        out = nn.Sequential(nn.Linear(config.num_heads * padded, dim), nn.Dropout(0.0))
        return Attention(
            dim, context_dim, heads=config.num_heads, width=dim // config.num_heads, padded=padded, out=out
        )

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, self.attn1.to_k(h), self.attn1.to_v(h))
        x = x + self.attn2(self.norm2(x), keys, values)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = config.conv(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, config)])
        self.proj_out = config.conv(channels, channels, 1)

    @property
    def cross_attention(self) -> Attention:
        return self.transformer_blocks[0].attn2  # type: ignore[return-value]

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x))
        tokens = self.transformer_blocks[0](h.flatten(2).transpose(1, 2), keys, values)  # [B, pixels, C]
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.op = config.conv(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.conv = config.conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """x [B, in, *latent], timesteps [B], context [B, T, context_dim] -> [B, out, *latent]."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, emb = config.model_channels, 4 * config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.input_blocks = nn.ModuleList([nn.ModuleList([config.conv(config.in_channels, width, 3, padding=1)])])
        skips, channels = [width], width
        last = len(config.channel_mult) - 1
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(self._stage(channels, width * mult, level))
                channels = width * mult
                skips.append(channels)
            if level != last:
                self.input_blocks.append(nn.ModuleList([Downsample(channels, config)]))
                skips.append(channels)
        self.middle_block = nn.ModuleList(
            [
                ResBlock(channels, channels, config),
                SpatialTransformer(channels, config),
                ResBlock(channels, channels, config),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for block in range(config.num_res_blocks + 1):
                stage = self._stage(channels + skips.pop(), width * mult, level)
                channels = width * mult
                if level and block == config.num_res_blocks:
                    stage.append(Upsample(channels, config))
                self.output_blocks.append(stage)
        self.out = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), config.conv(channels, config.out_channels, 3, padding=1)
        )
        self.freeu = FreeU(config.freeu, config.model_channels) if config.freeu else None

    def _stage(self, in_channels: int, out_channels: int, level: int) -> nn.ModuleList:
        stage = nn.ModuleList([ResBlock(in_channels, out_channels, self.config)])
        if 2**level in self.config.attention_resolutions:
            stage.append(SpatialTransformer(out_channels, self.config))
        return stage

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.denoise(x, self.time_projections(t), self.context_kv(context))

    def time_projections(self, t: Tensor) -> Tensor:
        """[S] timesteps -> [S, E]: the projections of all residual blocks, in the order of the modules."""
        dtype = next(self.parameters()).dtype
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels).to(dtype))
        return torch.cat([block.emb_layers(emb) for block in self._of_type(ResBlock)], dim=1)

    def context_kv(self, context: Tensor) -> Tensor:
        """[B, T, context_dim] -> [B, T, K]: keys and values of all cross-attentions, in the order of the modules."""
        layers = [block.cross_attention for block in self._of_type(SpatialTransformer)]
        return torch.cat([to(context) for layer in layers for to in (layer.to_k, layer.to_v)], dim=2)

    def denoise(self, x: Tensor, projections: Tensor, packed: Tensor) -> Tensor:
        """x [B, in, *latent], projections [B or 1, E] of `time_projections`, packed [B, T, K] of `context_kv`."""
        per_block = iter(projections.split(self._projection_widths, dim=1))
        keys_values = iter(packed.split(self._context_widths, dim=2))

        def run(stage: nn.ModuleList, h: Tensor) -> Tensor:
            for layer in stage:
                if isinstance(layer, ResBlock):
                    h = layer(h, next(per_block))
                elif isinstance(layer, SpatialTransformer):
                    h = layer(h, next(keys_values), next(keys_values))
                else:
                    h = layer(h)
            return h

        skips = []
        for stage in self.input_blocks:
            x = run(stage, x)  # type: ignore[arg-type]
            skips.append(x)
        x = run(self.middle_block, x)
        for stage in self.output_blocks:
            skip = skips.pop()
            if self.freeu:
                x, skip = self.freeu(x, skip)
            x = run(stage, torch.cat([x, skip], dim=1))  # type: ignore[arg-type]
        return self.out(x)

    @property
    def projection_width(self) -> int:
        return sum(self._projection_widths)

    @property
    def context_width(self) -> int:
        return sum(self._context_widths)

    @property
    def _projection_widths(self) -> list[int]:
        return [block.emb_layers[1].out_features for block in self._of_type(ResBlock)]

    @property
    def _context_widths(self) -> list[int]:
        widths = [block.cross_attention.to_k.out_features for block in self._of_type(SpatialTransformer)]
        return [width for width in widths for _ in ("keys", "values")]

    def _of_type(self, kind: type) -> list:
        return [module for module in self.modules() if isinstance(module, kind)]
