"""Two denoisers of motions, as anybody may have them: modules of PyTorch, each with its own idea of a condition."""

from pathlib import Path

import numpy as np
import torch
from numpy.polynomial import legendre
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cdiff_rt import Expert, Parameterisation, Schedule
from cdiff_rt.nets.unet import UNet, UNetConfig
from examples.motion.gait import NAMES
from examples.motion.motions import CHANNELS, FRAMES, MOVING, RATE, RESTS, ROOT_SCALE, TIMES, WALKED

SCHEDULE = Schedule(beta_start=0.0001, beta_end=0.02, prediction="v")
ACTION, WAYPOINTS = "action", "waypoints"
SHAPE, CONDITIONS = (CHANNELS, FRAMES), {ACTION: (1, len(NAMES)), WAYPOINTS: (4, 3)}
WIDTH, CONTEXT = 64, 64  # 64 channels, for of a GroupNorm's 32 groups none may be of one channel
PATH, BODY = (10, 0), (4, 24)  # of how many polynomials and cosines over time a channel is a sum


def unet(channels: int, width: int) -> UNet:
    return UNet(
        UNetConfig(
            in_channels=channels,
            out_channels=CHANNELS,
            model_channels=width,
            channel_mult=(1, 1, 1),
            num_res_blocks=0,
            attention_resolutions=(4,),
            num_heads=4,
            context_dim=CONTEXT,
            dims=1,
        )
    )


def smooth(shape: tuple[int, int]) -> np.ndarray:
    """[FRAMES, FRAMES]: onto the nearest sum of so many polynomials and cosines."""
    polynomials, cosines = shape
    along = (np.arange(FRAMES) + 0.5) / FRAMES
    waves = np.cos(np.pi * along[:, None] * np.arange(1, cosines + 1))
    curves = np.concatenate([legendre.legvander(2 * along - 1, polynomials - 1), waves], axis=1)
    return curves @ np.linalg.pinv(curves)


class Denoiser(nn.Module):
    """What both have: a network that predicts v, of which x_0 follows; bodies go along curves of few turns."""

    bars: Tensor
    path: Tensor
    body: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.unet = unet(channels, width)
        for name, table in {"bars": SCHEDULE.alpha_bars(), "path": smooth(PATH), "body": smooth(BODY)}.items():
            self.register_buffer(name, torch.from_numpy(table).float(), persistent=False)

    def x_0(self, x: Tensor, time: Tensor, seen: Tensor, context: Tensor) -> Tensor:
        """x [B, CHANNELS, FRAMES], and as the network sees it."""
        bars = self.bars[time.long()][:, None, None]
        found = bars.sqrt() * x - (1 - bars).sqrt() * self.unet(seen, time, context)
        return torch.cat([found[:, MOVING] @ self.path, found[:, RESTS] @ self.body], dim=1)


class Action(Denoiser):
    """x [B, CHANNELS, FRAMES], time [B], word [B, 1, styles] -> x_0."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__(CHANNELS, width)
        self.word = nn.Linear(len(NAMES), CONTEXT)

    def forward(self, x: Tensor, time: Tensor, word: Tensor) -> Tensor:
        return self.x_0(x, time, x, self.word(word))


def _apart(seconds: Tensor) -> Tensor:
    """Never 0, for points of the same time."""
    return torch.where(seconds.abs() < 1 / RATE, torch.full_like(seconds, 1 / RATE), seconds)


class Waypoints(Denoiser):
    """x [B, CHANNELS, FRAMES], time [B], points [B, 4, 3] -> x_0.

    It sees the straight lines between the points, and what it says goes through them.
    """

    times: Tensor

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__(CHANNELS + 3, width)
        self.point = nn.Linear(3, CONTEXT)
        self.register_buffer("times", torch.from_numpy(TIMES).float(), persistent=False)

    def forward(self, x: Tensor, time: Tensor, points: Tensor) -> Tensor:
        found = self.x_0(x, time, torch.cat([x, self.lines(points)], dim=1), self.point(points))
        return torch.cat([self.through(found[:, WALKED], points), found[:, WALKED.stop :]], dim=1)

    def through(self, path: Tensor, points: Tensor) -> Tensor:
        """path [B, 2, FRAMES], with the cubic added by which it misses the points."""
        places, at = points[:, :, :2] / ROOT_SCALE, points[:, :, 2:]  # [B, 4, 2], [B, 4, 1]
        hats = (1 - ((self.times - at) * RATE).abs()).clamp(min=0)  # [B, 4, FRAMES]
        missed = places - hats @ path.transpose(1, 2)
        cubic = torch.zeros_like(path)
        for k in range(4):
            others = at[:, [j for j in range(4) if j != k]]  # [B, 3, 1]
            one = ((self.times - others) / _apart(at[:, k : k + 1] - others)).prod(1, keepdim=True)
            cubic = cubic + missed[:, k, :, None] * one
        return path + cubic

    def lines(self, points: Tensor) -> Tensor:
        """[B, 3, FRAMES]: x and y on the lines, and how near in time the next point is."""
        places, at = points[:, :, :2] / ROOT_SCALE, points[:, :, 2:]  # [B, 4, 2], [B, 4, 1]
        begun = (self.times - at[:, :-1]) / (at[:, 1:] - at[:, :-1]).clamp(min=1 / RATE)
        steps = places[:, 1:, :, None] - places[:, :-1, :, None]
        lines = places[:, 0, :, None] + (begun.clamp(0, 1)[:, :, None] * steps).sum(1)
        near = torch.exp(-(((self.times - at) * RATE) ** 2) / 2).sum(1, keepdim=True)
        return torch.cat([lines, near], dim=1)


MODULES: dict[str, type[Action] | type[Waypoints]] = {ACTION: Action, WAYPOINTS: Waypoints}


def save(module: nn.Module, path: Path) -> None:
    """In half precision."""
    save_file({name: value.half().contiguous() for name, value in module.state_dict().items()}, path)


def experts(folder: Path) -> dict[str, Expert]:
    """What `compose` takes, of the two files that training left."""
    found = {}
    for name, kind in MODULES.items():
        weights = load_file(folder / f"{name}.safetensors")
        module = kind(len(weights["unet.input_blocks.0.0.bias"]))
        module.load_state_dict({key: value.float() for key, value in weights.items()})
        found[name] = as_expert(name, module)
    return found


def as_expert(name: str, module: nn.Module) -> Expert:
    return Expert(
        module, Parameterisation("x0", schedule=SCHEDULE, whole_timesteps=True), CONDITIONS[name], latent_shape=SHAPE
    )


def word(style: str) -> np.ndarray:
    """[1, styles]: an action word as a condition."""
    return np.eye(len(NAMES), dtype=np.float32)[[NAMES.index(style)]]
