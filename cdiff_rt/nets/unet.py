"""The denoising UNet of latent diffusion (openaimodel.UNetModel), cut where inference pays.

A branch predicts eps or v with it; a dynamic diffuser is the same network with one output channel. State-dict keys
are those of the published checkpoints. Latents may be lines, images or volumes (`dims`). `forward` is the composition of
three parts that the exporter takes apart: `time_projections` (once per schedule), `context_kv` (once per image) and
`denoise` (once per step). Of several networks of equal shape (`copies`, see layers.py) there is `denoise` alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdiff_rt.nets.attention import Attention
from cdiff_rt.nets.freeu import FreeUConfig, free_u
from cdiff_rt.nets.layers import add_rows, from_tokens, group_norm, join, layer_norm, linear, to_tokens

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
    tokens_at_places: bool = (
        False  # the context has a token for each place of x, row by row, which are channels beside it
    )

    def conv(
        self, in_channels: int, out_channels: int, size: int, copies: int = 1, *, shared: bool = False, **settings: int
    ) -> nn.Module:
        """A convolution for each copy, of its own channels or of an image that all share."""
        groups = 1 if shared else copies
        kind = CONVOLUTIONS[self.dims]
        return kind(groups * in_channels, copies * out_channels, size, groups=groups, **settings)  # type: ignore[arg-type]

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

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, copies: int = 1) -> None:
        super().__init__()
        self.out_channels, self.copies = out_channels, copies
        self.in_layers = nn.Sequential(
            group_norm(in_channels, copies), nn.SiLU(), config.conv(in_channels, out_channels, 3, copies, padding=1)
        )
        if copies == 1:
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.model_channels, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels, copies),
            nn.SiLU(),
            nn.Dropout(0.0),
            config.conv(out_channels, out_channels, 3, copies, padding=1),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else config.conv(in_channels, out_channels, 1, copies)

    def forward(self, x: Tensor, projection: Tensor) -> Tensor:
        """projection [B or 1, out_channels], of copies [copies, ...]: this block's projection of the time embedding."""
        h = add_rows(self.in_layers(x), projection, self.copies)
        return self.skip_connection(x) + self.out_layers(h)


class GEGLU(nn.Module):
    def __init__(self, dim: int, hidden: int, copies: int = 1) -> None:
        super().__init__()
        self.proj = linear(dim, 2 * hidden, copies)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int, copies: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim, copies), nn.Dropout(0.0), linear(4 * dim, dim, copies))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each behind its LayerNorm, each added to its input."""

    def __init__(self, dim: int, config: UNetConfig, copies: int = 1) -> None:
        super().__init__()
        self.attn1 = self._attention(dim, dim, config, copies)
        self.ff = FeedForward(dim, copies)
        self.attn2 = self._attention(dim, config.context_dim if copies == 1 else None, config, copies)
        self.norm1, self.norm2, self.norm3 = (layer_norm(dim, copies) for _ in range(3))

    @staticmethod
    def _attention(dim: int, context_dim: int | None, config: UNetConfig, copies: int) -> Attention:
        heads, padded = config.num_heads, config.padded_width(dim)
        out = nn.Sequential(linear(heads * padded, dim, copies), nn.Dropout(0.0))
        return Attention(dim, context_dim, heads=heads, width=dim // heads, padded=padded, out=out, copies=copies)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, self.attn1.to_k(h), self.attn1.to_v(h))
        x = x + self.attn2(self.norm2(x), keys, values, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, config: UNetConfig, copies: int = 1) -> None:
        super().__init__()
        self.copies = copies
        self.norm = group_norm(channels, copies, eps=1e-6)
        self.proj_in = config.conv(channels, channels, 1, copies)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, config, copies)])
        self.proj_out = config.conv(channels, channels, 1, copies)

    @property
    def cross_attention(self) -> Attention:
        return self.transformer_blocks[0].attn2  # type: ignore[return-value]

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """keys and values [copies * B, T, heads * padded]; `mask` is added to the scores of cross-attention."""
        tokens = to_tokens(self.proj_in(self.norm(x)), self.copies)
        tokens = self.transformer_blocks[0](tokens, keys, values, mask)
        return x + self.proj_out(from_tokens(tokens, self.copies, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, channels: int, config: UNetConfig, copies: int = 1) -> None:
        super().__init__()
        self.op = config.conv(channels, channels, 3, copies, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int, config: UNetConfig, copies: int = 1) -> None:
        super().__init__()
        self.conv = config.conv(channels, channels, 3, copies, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """x [B, in, *latent], timesteps [B], context [B, T, context_dim] -> [B, out, *latent].

    The configurations of several copies differ in their FreeU and `context_dim` at most; if x is `shared`, all see it.
    """

    def __init__(self, config: UNetConfig, *others: UNetConfig, shared: bool = True) -> None:
        super().__init__()
        self.config, self.copies = config, 1 + len(others)
        copies, width, emb = self.copies, config.model_channels, 4 * config.model_channels
        if copies == 1:
            self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        beside = config.context_dim if config.tokens_at_places else 0
        assert not (beside and others), "tokens at places are not those of several networks"
        first = config.conv(config.in_channels + beside, width, 3, copies, shared=shared, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        skips, channels = [width], width
        last = len(config.channel_mult) - 1
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(self._stage(channels, width * mult, level))
                channels = width * mult
                skips.append(channels)
            if level != last:
                self.input_blocks.append(nn.ModuleList([Downsample(channels, config, copies)]))
                skips.append(channels)
        self.middle_block = nn.ModuleList(
            [
                ResBlock(channels, channels, config, copies),
                SpatialTransformer(channels, config, copies),
                ResBlock(channels, channels, config, copies),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for block in range(config.num_res_blocks + 1):
                stage = self._stage(channels + skips.pop(), width * mult, level)
                channels = width * mult
                if level and block == config.num_res_blocks:
                    stage.append(Upsample(channels, config, copies))
                self.output_blocks.append(stage)
        self.out = nn.Sequential(
            group_norm(channels, copies), nn.SiLU(), config.conv(channels, config.out_channels, 3, copies, padding=1)
        )
        self.freeu = free_u([each.freeu for each in (config, *others)], config.model_channels)

    def _stage(self, in_channels: int, out_channels: int, level: int) -> nn.ModuleList:
        stage = nn.ModuleList([ResBlock(in_channels, out_channels, self.config, self.copies)])
        if 2**level in self.config.attention_resolutions:
            stage.append(SpatialTransformer(out_channels, self.config, self.copies))
        return stage

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.denoise(x, self.time_projections(t), self.context_kv(context))

    def time_projections(self, t: Tensor) -> Tensor:
        """[S] timesteps -> [S, E]: the projections of all residual blocks, in the order of the modules."""
        dtype = next(self.parameters()).dtype
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels).to(dtype))
        return torch.cat([block.emb_layers(emb) for block in self._of_type(ResBlock)], dim=1)

    def context_kv(self, context: Tensor) -> Tensor:
        """[B, T, context_dim] -> [B, T, K]: keys and values of all cross-attentions, in the order of the modules.

        Behind them the context itself, if its tokens stand for places.
        """
        layers = [block.cross_attention for block in self._of_type(SpatialTransformer)]
        packed = [to(context) for layer in layers for to in (layer.to_k, layer.to_v)]
        return torch.cat([*packed, *([context] if self.config.tokens_at_places else [])], dim=2)

    def denoise(self, x: Tensor, projections: Tensor, packed: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, in, *latent], projections [B or 1, E] of `time_projections`, packed [B, T, K] of `context_kv`.

        Of copies: [copies, E] and [copies * B, T, K] -> [B, copies * out, *latent]; `mask` is added to their scores.
        """
        per_block = iter(projections.split(self._projection_widths, dim=1))
        keys_values = iter(parts := packed.split(self._context_widths, dim=2))
        if self.config.tokens_at_places:
            x = torch.cat([x, from_tokens(parts[-1], self.copies, x.shape[2:])], dim=1)

        def run(stage: nn.ModuleList, h: Tensor) -> Tensor:
            for layer in stage:
                if isinstance(layer, ResBlock):
                    h = layer(h, next(per_block))
                elif isinstance(layer, SpatialTransformer):
                    h = layer(h, next(keys_values), next(keys_values), mask)
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
            x = run(stage, join(x, skip, self.copies))  # type: ignore[arg-type]
        return self.out(x)

    @property
    def projection_width(self) -> int:
        return sum(self._projection_widths)

    @property
    def context_width(self) -> int:
        return sum(self._context_widths)

    @property
    def _projection_widths(self) -> list[int]:
        return [block.out_channels for block in self._of_type(ResBlock)]

    @property
    def _context_widths(self) -> list[int]:
        widths = [block.cross_attention.inner for block in self._of_type(SpatialTransformer)]
        beside = [self.config.context_dim] if self.config.tokens_at_places else []
        return [width for width in widths for _ in ("keys", "values")] + beside

    def _of_type(self, kind: type) -> list:
        return [module for module in self.modules() if isinstance(module, kind)]
