"""The picture encoder: one context token for each patch of a grey picture, by convolutions that see a little around it."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn


@dataclass(frozen=True)
class PictureEncoderConfig:
    """Pictures of `size` pixels a side become tokens of patches of 2**halvings pixels a side."""

    size: int
    width: int
    halvings: int

    @property
    def tokens(self) -> int:
        return (self.size >> self.halvings) ** 2


class PictureEncoder(nn.Module):
    """[B, 1, size, size] in [0, 1] -> [B, tokens, width], patches row by row."""

    def __init__(self, config: PictureEncoderConfig) -> None:
        super().__init__()
        widths = [1, *(config.width >> (config.halvings - i) for i in range(1, config.halvings + 1))]
        halved = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)]
        self.halved = nn.ModuleList(halved)
        self.around = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.norm = nn.LayerNorm(config.width)
        for layer in (*halved, self.around):  # biases of the usual size would drown out thin lines
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, picture: Tensor) -> Tensor:
        x = 1 - picture  # paper is nothing
        for layer in self.halved:
            x = nn.functional.silu(layer(x))
        tokens = self.around(x).flatten(2).transpose(1, 2)
        return self.norm(tokens)
