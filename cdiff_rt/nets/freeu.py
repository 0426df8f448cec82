"""FreeU (Si et al., CVPR 2024): the decoder's own features are amplified, the lowest frequencies of its skips damped."""

import math
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
