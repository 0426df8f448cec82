"""Multi-head attention as the UNet's transformer blocks and the text encoder use it."""

import torch.nn.functional as F
from torch import Tensor, nn

from cdiff_rt.nets.layers import linear


class Attention(nn.Module):
    """softmax(q k^T / sqrt(width) + mask) v over `heads` heads; usually there is no mask.

    `width` is the true width of a head; the projections may be wider (`padded`), with zeros in the rest, so that
    fused kernels accept them. The scale stays that of the true width, which makes the padding exact. Without a
    `context_dim`, keys and values are projected elsewhere.
    """

    def __init__(
        self, dim: int, context_dim: int | None, *, heads: int, width: int, padded: int, out: nn.Module, copies: int = 1
    ) -> None:
        super().__init__()
        self.heads, self.inner, self.scale = heads, heads * padded, width**-0.5
        self.to_q = linear(dim, self.inner, copies, bias=False)
        if context_dim is not None:
            self.to_k = linear(context_dim, self.inner, copies, bias=False)
            self.to_v = linear(context_dim, self.inner, copies, bias=False)
        self.to_out = out

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, N, dim]; keys and values [B, T, heads * padded], already projected; mask [B, 1, 1, T]."""
        q, k, v = self._split(self.to_q(x)), self._split(keys), self._split(values)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale)  # [B, heads, N, padded]
        return self.to_out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
