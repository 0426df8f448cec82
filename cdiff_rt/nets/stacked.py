"""Experts of equal shape as one network: half the launches for two, and the same sums but for their order.

Whatever has weights has those of all experts: convolutions are grouped, linear layers batched products, the groups and
heads are those of all. The first convolution sees the x that all share. Contexts of different lengths are padded with
tokens that cross-attention does not see.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cdiff_rt.nets.collaborative import ExpertConfig
from cdiff_rt.nets.unet import UNet


class Stacked(nn.Module):
    """Of experts that differ in their encoders at most, and in their FreeU; `tokens` are the lengths of their contexts.

    Each weight is that of the experts one behind the other, along the first axis.
    """

    def __init__(self, experts: Sequence[ExpertConfig], tokens: Sequence[int]) -> None:
        super().__init__()
        self.config, self.tokens = experts[0], tokens
        self.unet = UNet(*(expert.unet for expert in experts))
        diffusers = [expert.diffuser for expert in experts if expert.diffuser]
        if diffusers:
            self.diffuser = UNet(*diffusers, shared=self.config.diffuser_input == "x_t")

    def forward(self, x: Tensor, projections: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, *latent], projections [M, E], packed [M, B, T, K] -> [M, B, C, *latent], logits [M, B, 1, *latent]."""
        e, k = self.unet.projection_width, self.unet.context_width
        contexts, mask = packed.flatten(0, 1), self._mask(packed)

        def by_expert(out: Tensor) -> Tensor:
            return out.unflatten(1, (len(packed), -1)).transpose(0, 1)

        out = self.unet.denoise(x, projections[:, :e], contexts[:, :, :k], mask)
        if not self.config.diffuser:
            return by_expert(out), torch.zeros_like(by_expert(out)[:, :, :1])
        seen = {"x_t": x, "prediction": out}[self.config.diffuser_input]
        return by_expert(out), by_expert(self.diffuser.denoise(seen, projections[:, e:], contexts[:, :, k:], mask))

    def _mask(self, packed: Tensor) -> Tensor | None:
        """[M * B, 1, 1, T]: what hides the tokens that an expert's context lacks, if one is shorter than another."""
        count, batch, longest, _ = packed.shape
        if min(self.tokens) == longest:
            return None
        places = torch.arange(longest, device=packed.device)
        lacking = torch.stack([places >= own for own in self.tokens])
        mask = torch.zeros_like(lacking, dtype=packed.dtype).masked_fill(lacking, -torch.inf)
        return mask[:, None].expand(count, batch, longest).reshape(count * batch, 1, 1, longest)
