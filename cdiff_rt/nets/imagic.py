"""Imagic's two optimisations (Kawar et al., CVPR 2023) on one branch, as Collaborative Diffusion's editing has them.

First the embedding of the wanted condition moves until the frozen branch explains the photo by it; then the branch does,
under that embedding. Both descend the loss that it was trained by, at latents of the photo alone.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t [1, C, *latent], t [1], embedding [1, T, width]
Draw = tuple[int, Tensor]  # timestep, noise [1, C, *latent]


@dataclass(frozen=True)
class Diffusion:
    """What x_t and its target are at each timestep."""

    alpha_bars: Tensor  # [train_steps]
    prediction: Literal["eps", "v"]

    def noisy(self, z: Tensor, t: int, noise: Tensor) -> Tensor:
        """q(x_t | x_0)."""
        a = self.alpha_bars[t]
        return a.sqrt() * z + (1 - a).sqrt() * noise

    def target(self, z: Tensor, t: int, noise: Tensor) -> Tensor:
        a = self.alpha_bars[t]
        return a.sqrt() * noise - (1 - a).sqrt() * z if self.prediction == "v" else noise


def adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), lr=learning_rate)


def descend(
    denoise: Denoise,
    embedding: Tensor,
    optimizer: torch.optim.Optimizer,
    z: Tensor,
    draws: Iterable[Draw],
    diffusion: Diffusion,
) -> Iterator[float]:
    """One step of the optimizer per draw; gives each step's loss, the mean over the elements of z [1, C, *latent]."""
    for t, noise in draws:
        predicted = denoise(diffusion.noisy(z, t, noise), torch.tensor([t]), embedding)
        loss = F.mse_loss(predicted, diffusion.target(z, t, noise))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()
