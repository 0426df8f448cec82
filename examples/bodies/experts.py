"""The two experts: a UNet over volumes each, and what it is shown of its condition at every place."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cdiff_rt import Expert, Parameterisation, Schedule
from cdiff_rt.nets.unet import UNet, UNetConfig
from examples.bodies.volumes import BLOCK, LATENT, ORIGIN, SIDE

SCHEDULE = Schedule(beta_start=0.0001, beta_end=0.02, prediction="v")
POSE, BUILD = "pose", "build"
CONDITIONS = {POSE: (8, 3), BUILD: (1, 3)}
PLACES = 16  # channels that are learned of each place
CONTEXT, WIDTH = 64, 64
NEAR = 1.2 * BLOCK * SIDE  # metres within which a limb is seen

# Where the nearer limbs begin and how long limbs are, mean over dancers.
JOINTS = ((0.182, -0.01, 0.473), (-0.182, -0.01, 0.473), (0.114, 0.008, -0.012), (-0.114, 0.008, -0.012))
LENGTHS = (0.28, 0.249, 0.28, 0.249, 0.433, 0.45, 0.433, 0.45)


class Stick(nn.Module):
    """A pose [B, 8, 3] -> [B, 56, x, y, z]: of each limb of a stick figure how near it is, where, and its direction."""

    channels = 7 * len(LENGTHS)
    centres: Tensor  # [P, 1, 3], of blocks
    joints: Tensor
    lengths: Tensor

    def __init__(self) -> None:
        super().__init__()
        axes = [(torch.arange(n) + 0.5) * BLOCK * SIDE + float(o) for n, o in zip(LATENT[1:], ORIGIN, strict=True)]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 1, 3)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("joints", torch.tensor(JOINTS), persistent=False)
        self.register_buffer("lengths", torch.tensor(LENGTHS)[:, None], persistent=False)

    def forward(self, pose: Tensor) -> Tensor:
        limbs = pose * self.lengths
        nearer, further = limbs[:, 0::2], limbs[:, 1::2]
        starts = torch.stack([self.joints.expand_as(nearer), self.joints + nearer], 2).reshape(-1, 1, 8, 3)
        limbs, pose = torch.stack([nearer, further], 2).reshape(-1, 1, 8, 3), pose[:, None]
        along = ((self.centres - starts) * pose).sum(-1, keepdim=True)
        along = torch.minimum(along.clamp(min=0), self.lengths)
        away = (starts + along * pose - self.centres) / NEAR  # [B, P, 8, 3]
        near = torch.exp(-away.square().sum(-1, keepdim=True))
        seen = near * torch.cat([torch.ones_like(near), away, pose.expand_as(away)], -1)
        return seen.flatten(2).transpose(1, 2).unflatten(2, LATENT[1:])


class Everywhere(nn.Module):
    """Words [B, 1, 3] -> [B, 3, x, y, z]: the same at every place."""

    channels = 3

    def forward(self, words: Tensor) -> Tensor:
        return words.transpose(1, 2)[..., None, None].expand(-1, -1, *LATENT[1:])


class BodyExpert(nn.Module):
    """x [B, *LATENT], time [B], condition [B, tokens, 3] -> v."""

    def __init__(self, name: str, width: int = WIDTH) -> None:
        super().__init__()
        self.seen = {POSE: Stick, BUILD: Everywhere}[name]()
        tokens, numbers = CONDITIONS[name]
        self.places = nn.Parameter(0.1 * torch.randn(1, PLACES, *LATENT[1:]))
        self.tokens = nn.Parameter(0.1 * torch.randn(1, tokens, CONTEXT))
        self.project = nn.Linear(numbers, CONTEXT)
        self.unet = UNet(
            UNetConfig(
                in_channels=LATENT[0] + self.seen.channels + PLACES,
                out_channels=LATENT[0],
                model_channels=width,
                channel_mult=(1, 1),
                num_res_blocks=0,
                attention_resolutions=(2,),
                num_heads=4,
                context_dim=CONTEXT,
                dims=3,
            )
        )

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        places = self.places.expand(len(x), *self.places.shape[1:])
        shown = torch.cat([x, self.seen(condition), places], 1)
        return self.unet(shown, time, self.tokens + self.project(condition))


def experts_of(folder: Path) -> dict[str, Expert]:
    """Those that were trained into it."""
    found = {}
    for name in CONDITIONS:
        module = BodyExpert(name)
        module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        found[name] = as_expert(name, module)
    return found


def as_expert(name: str, module: nn.Module) -> Expert:
    return Expert(module, Parameterisation("v", schedule=SCHEDULE), CONDITIONS[name], latent_shape=LATENT)
