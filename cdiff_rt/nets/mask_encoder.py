"""The mask encoder: one context token per class, a linear map of where in the image that class is."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MaskEncoderConfig:
    """Cross-attention doesn't see the order of tokens, so the reference can tell classes by their shapes only.

    With `classes`, each token also gets a learned vector that says which class it is; 0 is the reference.
    """

    pixels: int
    width: int
    classes: int = 0


class MaskEncoder(nn.Module):
    """one-hot [B, classes, pixels], rows of the mask one after another -> [B, classes, width]."""

    def __init__(self, config: MaskEncoderConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.pixels, config.width)
        if config.classes:
            self.class_emb = nn.Parameter(torch.randn(config.classes, config.width))

    def forward(self, one_hot: Tensor) -> Tensor:
        tokens = self.linear(one_hot)
        return tokens + self.class_emb if hasattr(self, "class_emb") else tokens
