"""FreeU (Si et al., CVPR 2024): the decoder's own features are amplified, the lowest frequencies of its skips damped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FreeUConfig:
    """Factors at 3 and at 2 times the UNet's width, the two places where the reference applies them."""

    b1: float = 1.1
    b2: float = 1.2
    s1: float = 1.0
    s2: float = 1.0


class FreeU(nn.Module):
    """Backbone features and the skip that joins them -> both, changed where the features have the widths above."""

    def __init__(self, config: FreeUConfig, model_channels: int) -> None:
        super().__init__()
        self._factors = {
            3 * model_channels: (config.b1, config.s1),
            2 * model_channels: (config.b2, config.s2),
        }

    def forward(self, features: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """features [B, C, H, W], skip [B, C', H, W]."""
        if features.shape[1] not in self._factors:
            return features, skip
        backbone, low = self._factors[features.shape[1]]
        amplified, rest = features.chunk(2, dim=1)
        return torch.cat([backbone * amplified, rest], dim=1), skip + (low - 1) * lowest_frequencies(skip)


class FreeUOfCopies(nn.Module):
    """Each copy's own, or none, on the channels of several copies one behind the other."""

    def __init__(self, each: Sequence[FreeU | None]) -> None:
        super().__init__()
        self._each = each

    def forward(self, features: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """features [B, copies * C, H, W], skip [B, copies * C', H, W]."""
        parts = zip(self._each, features.chunk(len(self._each), 1), skip.chunk(len(self._each), 1), strict=True)
        changed = [freeu(*pair) if freeu else pair for freeu, *pair in parts]
        return torch.cat([pair[0] for pair in changed], dim=1), torch.cat([pair[1] for pair in changed], dim=1)


def free_u(configs: Sequence[FreeUConfig | None], model_channels: int) -> FreeU | FreeUOfCopies | None:
    """What changes the features of one network, or of several copies; None if nothing does."""
    each = [FreeU(config, model_channels) if config else None for config in configs]
    return (each[0] if len(each) == 1 else FreeUOfCopies(each)) if any(each) else None


def lowest_frequencies(x: Tensor) -> Tensor:
    """[B, C, H, W] -> the part of it with frequencies 0 and -1 along each side, of which the real part is taken.

    It is what the reference's filter scales: 2 x 2 frequencies in the middle of the shifted spectrum. Written as a
    projection on four cosines and sines, for graphs of engines have no Fourier transform that all of them know.
    """
    height, width = x.shape[2:]
    y, x_axis = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    angles = torch.stack(
        [
            -2 * math.pi * (down * y[:, None] / height + right * x_axis[None] / width)
            for down in (0, 1)
            for right in (0, 1)
        ]
    ).flatten(1)  # [4, H W]
    waves = torch.cat([angles.cos(), angles.sin()]).to(x.dtype)  # [8, H W]
    return ((x.flatten(2) @ waves.T) @ waves / (height * width)).unflatten(2, (height, width))
