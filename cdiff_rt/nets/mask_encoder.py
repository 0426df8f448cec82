"""The mask encoder: one context token per class, a linear map of where in the image that class is."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class MaskEncoderConfig:
    pixels: int
    width: int


class MaskEncoder(nn.Module):
    """one-hot [B, classes, pixels], rows of the mask one after another -> [B, classes, width]."""

    def __init__(self, config: MaskEncoderConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.pixels, config.width)

    def forward(self, one_hot: Tensor) -> Tensor:
        return self.linear(one_hot)
