"""The UNet's layers, for one network or for several of equal shape that run as one (`copies`).

Then images hold the channels of all copies one behind the other, and tokens the copies as a part of the batch, the
first copy's images first. A weight holds those of the copies one behind the other, along its first axis.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CopiesLinear(nn.Module):
    """A linear layer for each copy, as one batched product."""

    def __init__(self, in_features: int, out_features: int, copies: int, bias: bool) -> None:
        super().__init__()
        self.copies = copies
        self.weight = nn.Parameter(torch.empty(copies * out_features, in_features))
        self.bias = nn.Parameter(torch.empty(copies * out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[copies * B, N, in] -> [copies * B, N, out]"""
        weight = self.weight.unflatten(0, (self.copies, -1))
        out = x.reshape(self.copies, -1, x.shape[2]) @ weight.mT
        if self.bias is not None:
            out = out + self.bias.reshape(self.copies, 1, -1)
        return out.reshape(*x.shape[:2], -1)


class CopiesLayerNorm(nn.Module):
    def __init__(self, dim: int, copies: int) -> None:
        super().__init__()
        self.dim, self.copies = dim, copies
        self.weight, self.bias = (nn.Parameter(torch.empty(copies * dim)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[copies * B, N, dim] -> the same"""
        normal = F.layer_norm(x, (self.dim,)).reshape(self.copies, -1, self.dim)
        scale, shift = (value.reshape(self.copies, 1, -1) for value in (self.weight, self.bias))
        return torch.addcmul(shift, normal, scale).reshape(x.shape)


def linear(in_features: int, out_features: int, copies: int = 1, *, bias: bool = True) -> nn.Module:
    if copies == 1:
        return nn.Linear(in_features, out_features, bias=bias)
    return CopiesLinear(in_features, out_features, copies, bias)


def layer_norm(dim: int, copies: int = 1) -> nn.Module:
    return nn.LayerNorm(dim) if copies == 1 else CopiesLayerNorm(dim, copies)


def group_norm(channels: int, copies: int = 1, eps: float = 1e-5) -> nn.Module:
    return nn.GroupNorm(32 * copies, channels * copies, eps=eps)


def to_tokens(x: Tensor, copies: int) -> Tensor:
    """[B, copies * C, *latent] -> [copies * B, pixels, C]"""
    if copies == 1:
        return x.flatten(2).transpose(1, 2)
    return x.flatten(2).unflatten(1, (copies, -1)).permute(1, 0, 3, 2).flatten(0, 1)


def from_tokens(tokens: Tensor, copies: int, latent: torch.Size) -> Tensor:
    """[copies * B, pixels, C] -> [B, copies * C, *latent]"""
    if copies == 1:
        return tokens.transpose(1, 2).unflatten(2, latent)
    return tokens.unflatten(0, (copies, -1)).permute(1, 0, 3, 2).flatten(1, 2).unflatten(2, latent)


def add_rows(x: Tensor, rows: Tensor, copies: int) -> Tensor:
    """x [B, copies * C, *latent] + rows, which are [B or 1, C], or of several copies [copies, C]."""
    rows = rows.reshape(*rows.shape, *(1,) * (x.dim() - 2))
    return x + rows if copies == 1 else (x.unflatten(1, (copies, -1)) + rows).flatten(1, 2)


def join(x: Tensor, other: Tensor, copies: int) -> Tensor:
    """The channels of both, copy by copy."""
    if copies == 1:
        return torch.cat([x, other], dim=1)
    return torch.cat([part.unflatten(1, (copies, -1)) for part in (x, other)], dim=2).flatten(1, 2)
