"""Multi-head attention as the UNet's transformer blocks and the text encoder use it."""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """softmax(q k^T / sqrt(width)) v over `heads` heads, without a mask.

    `width` is the true width of a head; the projections may be wider (`padded`), with zeros in the rest, so that
    fused kernels accept them. The scale stays that of the true width, which makes the padding exact.
    """

    def __init__(self, dim: int, context_dim: int, *, heads: int, width: int, padded: int, out: nn.Module) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.to_q = nn.Linear(dim, heads * padded, bias=False)
        self.to_k = nn.Linear(context_dim, heads * padded, bias=False)
        self.to_v = nn.Linear(context_dim, heads * padded, bias=False)
        self.to_out = out

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x [B, N, dim]; keys and values [B, T, heads * padded], already projected."""
        q, k, v = self._split(self.to_q(x)), self._split(keys), self._split(values)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)  # [B, heads, N, padded]
        return self.to_out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
