"""Multi-head attention as the UNet's transformer blocks and the text encoder use it."""

import torch.nn.functional as F
from torch import Tensor, nn


def attend(q: Tensor, keys: Tensor, values: Tensor, heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T scale + mask) v of each head: q [B, N, heads * width], keys and values [B, T, heads * width] -> as q.

    mask [B, 1, 1, T] is added to the scores.
    """
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, keys, values))
    mixed = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)  # [B, heads, N, width]
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(width)) v over `heads` heads, without a mask.

    `width` is the true width of a head; the projections may be wider (`padded`), with zeros in the rest, so that
    fused kernels accept them. The scale stays that of the true width, which makes the padding exact. `attend` may be
    replaced by what computes the same on a device.
    """

    def __init__(self, dim: int, context_dim: int, *, heads: int, width: int, padded: int, out: nn.Module) -> None:
        super().__init__()
        self.heads, self.scale, self.attend = heads, width**-0.5, attend
        self.to_q = nn.Linear(dim, heads * padded, bias=False)
        self.to_k = nn.Linear(context_dim, heads * padded, bias=False)
        self.to_v = nn.Linear(context_dim, heads * padded, bias=False)
        self.to_out = out

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x [B, N, dim]; keys and values [B, T, heads * padded], already projected."""
        return self.to_out(self.attend(self.to_q(x), keys, values, self.heads, self.scale))
