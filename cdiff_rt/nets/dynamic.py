"""A dynamic diffuser beside an expert of any make: x_t, time and the expert's condition -> its influence logit."""

from torch import Tensor, nn

from cdiff_rt.nets.unet import UNet, UNetConfig

WIDTH, LARGEST_SIDE, MOST_LEVELS = 32, 16, 4  # channels; places along an axis where attention looks at all
LEAST = 1e-20  # of what is divided by


def config_of(latent: tuple[int, ...], condition: tuple[int, int]) -> UNetConfig:
    """For latents [C, *latent] and conditions [tokens, width]: axes are halved while they are long and even."""
    levels, sides = 1, latent[1:]
    while max(sides) > LARGEST_SIDE and all(side % 2 == 0 for side in sides) and levels < MOST_LEVELS:
        levels, sides = levels + 1, tuple(side // 2 for side in sides)
    return UNetConfig(
        in_channels=latent[0],
        out_channels=1,
        model_channels=WIDTH,
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
        self.unet = UNet(config)
        for parameter in self.unet.out[2].parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        return self.unet(x, time, (condition - self.mean) / self.deviation)


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
