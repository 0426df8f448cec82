"""A dynamic diffuser beside an expert of any make: x_t, time and the expert's condition -> its influence logit."""

import math

from torch import Tensor, nn

from cdiff_rt.nets.unet import UNet, UNetConfig

WIDTH, LARGEST_SIDE, MOST_SEEN, MOST_LEVELS = 32, 16, 256, 4  # channels; places, along an axis and in all, that attend
MOST_PLACES, LARGEST_PATCH = 1024, 4  # that a network computes at; places along an axis that are one to it
LEAST = 1e-20  # of what is divided by


def patch_of(sides: tuple[int, ...]) -> int:
    """How many places along each axis are channels of one, so that large latents cost no more than small ones."""
    patch = 1
    while (
        patch < LARGEST_PATCH
        and math.prod(sides) > MOST_PLACES * patch ** len(sides)
        and not any(side % (2 * patch) for side in sides)
    ):
        patch *= 2
    return patch


def config_of(latent: tuple[int, ...], condition: tuple[int, int], width: int = WIDTH) -> UNetConfig:
    """For latents [C, *latent] and conditions [tokens, width]: axes are halved while they are long and even."""
    patch = patch_of(latent[1:])
    levels, sides = 1, tuple(side // patch for side in latent[1:])
    small = lambda sides: max(sides) <= LARGEST_SIDE and math.prod(sides) <= MOST_SEEN
    while not small(sides) and all(side % 2 == 0 for side in sides) and levels < MOST_LEVELS:
        levels, sides = levels + 1, tuple(side // 2 for side in sides)
    return UNetConfig(
        in_channels=latent[0] * patch ** len(sides),
        out_channels=patch ** len(sides),
        model_channels=width,
        channel_mult=(1,) * levels,
        num_res_blocks=1,
        attention_resolutions=(2 ** (levels - 1),),
        num_heads=2,
        context_dim=condition[1],
        dims=len(latent) - 1,
    )


class DynamicDiffuser(nn.Module):
    """x [B, C, *latent], time [B], condition [B, tokens, width] as users have it -> logit [B, 1, *latent], at first 0."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: UNetConfig, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.unet, self.patch = UNet(config), round(config.out_channels ** (1 / config.dims))
        for parameter in self.unet.out[2].parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        logit = self.unet(folded(x, self.patch), time, (condition - self.mean) / self.deviation)
        return unfolded(logit, self.patch)


def folded(x: Tensor, patch: int) -> Tensor:
    """[B, C, *latent] -> [B, C patch^axes, *latent / patch]"""
    if patch == 1:
        return x
    axes = x.dim() - 2
    pairs = [part for side in x.shape[2:] for part in (side // patch, patch)]
    within = [3 + 2 * axis for axis in range(axes)]
    x = x.reshape(x.shape[0], x.shape[1], *pairs).permute(0, 1, *within, *(place - 1 for place in within))
    return x.flatten(1, 1 + axes)


def unfolded(logit: Tensor, patch: int) -> Tensor:
    """[B, patch^axes, *latent / patch] -> [B, 1, *latent]"""
    if patch == 1:
        return logit
    axes, sides = logit.dim() - 2, logit.shape[2:]
    parts = logit.reshape(logit.shape[0], *(patch,) * axes, *sides)
    order = [place for axis in range(axes) for place in (1 + axes + axis, 1 + axis)]
    return parts.permute(0, *order).reshape(logit.shape[0], 1, *(side * patch for side in sides))


def mixing_error(influence: Tensor, outs: Tensor, wanted: Tensor, visible: Tensor, agree: float = 0.0) -> Tensor:
    """influence [M, B, 1, *latent], outs [M, B, C, *latent], wanted [B, C, *latent], visible [C, 1, ...] -> [B].

    The squared error of the mix. Channels count as they show: one may make more than half of what does. And each example
    counts relative to the variance of the experts: at late timesteps they differ little, and would hardly count. `agree`
    is a share of the error that is added to it, for where they do not differ there is nothing to learn.
    """
    axes = tuple(range(1, wanted.ndim))
    error = (visible * ((influence * outs).sum(0) - wanted) ** 2).mean(axes)
    variance = (visible * outs.var(0, correction=0)).mean(axes)
    return error / (variance + agree * error.detach()).clamp(min=LEAST)
