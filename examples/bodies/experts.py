"""The two experts: a UNet over volumes each, and what it is shown of its condition at every place."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from cdiff_rt import Expert, Parameterisation, Schedule
from cdiff_rt.nets.unet import UNet, UNetConfig
from examples.bodies.volumes import BLOCK, LATENT, ORIGIN, REACH, SIDE, SURFACE, VOXELS, Code

SCHEDULE = Schedule(beta_start=0.0001, beta_end=0.02, prediction="v")
POSE, BUILD = "pose", "build"
CONDITIONS = {POSE: (8, 3), BUILD: (1, 3)}
CONTEXT, WIDTH = 64, 64
AT_ONCE, RIDGE = 16, 1.0

# A mannequin, in metres: where the nearer limbs begin, how long and how thick limbs are, and the bones that never move.
JOINTS = ((0.182, -0.01, 0.473), (-0.182, -0.01, 0.473), (0.114, 0.008, -0.012), (-0.114, 0.008, -0.012))
LENGTHS = (0.28, 0.3, 0.28, 0.3, 0.433, 0.45, 0.433, 0.45)
RADII = (0.07, 0.062, 0.07, 0.062, 0.095, 0.075, 0.095, 0.075)  # a little more, for coarse voxels lose some
TRUNK = (  # from, to, radius
    *((((side * 0.075, 0.0, 0.0), (side * 0.075, 0.0, 0.4), 0.1)) for side in (-1, 1)),
    ((-0.16, 0.0, 0.45), (0.16, 0.0, 0.45), 0.07),
    ((0.0, 0.0, 0.5), (0.0, -0.02, 0.7), 0.07),
    ((0.0, -0.04, 0.68), (0.0, -0.04, 0.74), 0.095),
)


class Mannequin(nn.Module):
    """A pose [B, 8, 3] -> a latent [B, *LATENT]: a figure of capsules in it, made a body of by a convolution and a mean."""

    centres: Tensor  # [V, 3], of pairs of voxels along each axis
    joints: Tensor
    lengths: Tensor
    radii: Tensor
    trunk: Tensor  # [V], how deep in it
    coding: Tensor
    mean: Tensor
    kernel: Tensor

    def __init__(self, code: Code) -> None:
        super().__init__()
        coarse = [(torch.arange(n // 2) + 0.5) * 2 * SIDE for n in VOXELS]  # distances are smooth: half the voxels do
        axes = [axis + float(start) for axis, start in zip(coarse, ORIGIN, strict=True)]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        ends = torch.tensor([(start, end) for start, end, _ in TRUNK])
        still = capsules(
            centres, ends[None, :, 0], ends[None, :, 1] - ends[None, :, 0], torch.tensor([r for *_, r in TRUNK])
        )
        known = {"centres": centres, "joints": torch.tensor(JOINTS), "lengths": torch.tensor(LENGTHS)[:, None]}
        known |= {"radii": torch.tensor(RADII), "trunk": still, "coding": torch.from_numpy(code.to)}
        for name, value in known.items():
            self.register_buffer(name, value)
        self.register_buffer("mean", torch.zeros(LATENT))
        self.register_buffer("kernel", torch.zeros(LATENT[0], LATENT[0], 3, 3, 3))

    def fit(self, latents: Tensor, poses: Tensor) -> None:
        """Least squares, with as little ridge as keeps it stable."""
        figures = torch.cat([self.figure(some) for some in poses.split(AT_ONCE)])
        mean, middle = latents.mean(0), figures.mean(0)
        padded = F.pad(figures - middle, (1,) * 6)
        count = 27 * LATENT[0]
        square, product = RIDGE * torch.eye(count), torch.zeros(count, LATENT[0])
        for one, wanted in zip(padded.split(AT_ONCE), (latents - mean).split(AT_ONCE), strict=True):
            seen = one.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)  # [B, C, x, y, z, 3, 3, 3]
            rows = seen.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, count)
            square += rows.T @ rows
            product += rows.T @ wanted.permute(0, 2, 3, 4, 1).reshape(-1, LATENT[0])
        self.kernel = torch.linalg.solve(square, product).T.reshape(self.kernel.shape).contiguous()
        self.mean = mean - F.conv3d(middle[None], self.kernel, padding=1)[0]

    def forward(self, pose: Tensor) -> Tensor:
        return self.mean + F.conv3d(self.figure(pose), self.kernel, padding=1)

    def figure(self, pose: Tensor) -> Tensor:
        limbs = pose * self.lengths
        nearer = limbs[:, 0::2]
        starts = torch.stack([self.joints.expand_as(nearer), self.joints + nearer], 2).reshape(-1, 8, 3)
        deep = torch.maximum(capsules(self.centres, starts, limbs, self.radii), self.trunk)
        fine = F.interpolate(deep.reshape(-1, 1, *(n // 2 for n in VOXELS)), scale_factor=2.0, mode="trilinear")
        body = (fine / (2 * REACH * SIDE)).clamp(-SURFACE, SURFACE) + SURFACE
        x, y, z = LATENT[1:]
        blocks = body.reshape(-1, x, BLOCK, y, BLOCK, z, BLOCK).permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
        return (blocks @ self.coding).permute(0, 4, 1, 2, 3)


def capsules(points: Tensor, starts: Tensor, along: Tensor, radii: Tensor) -> Tensor:
    """How deep points [V, 3] lie in the union of capsules [B, N, 3] -> [B, V]."""
    lengths = along.square().sum(-1).sqrt()  # [B, N]
    unit = along / lengths[..., None]
    ahead = torch.einsum("vi,bni->bnv", points, unit) - (starts * unit).sum(-1)[..., None]
    from_start = points.square().sum(-1) - 2 * torch.einsum("vi,bni->bnv", points, starts)
    from_start = from_start + starts.square().sum(-1)[..., None]
    share = torch.minimum(ahead.clamp(min=0), lengths[..., None])
    away = (from_start + share * (share - 2 * ahead)).clamp(min=1e-8).sqrt()
    return (radii[:, None] - away).amax(1)


class Standing(nn.Module):
    """Words [B, 1, 3] -> the latent that least squares say."""

    mean: Tensor
    effects: Tensor

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(LATENT))
        self.register_buffer("effects", torch.zeros(3, *LATENT))

    def fit(self, latents: Tensor, words: Tensor) -> None:
        given = torch.cat([torch.ones(len(words), 1), words[:, 0]], 1)
        found = torch.linalg.lstsq(given, latents.flatten(1)).solution.reshape(4, *LATENT)
        self.mean, self.effects = found[0].clone(), found[1:].clone()

    def forward(self, words: Tensor) -> Tensor:
        return self.mean + torch.einsum("bi,i...->b...", words[:, 0], self.effects)


class BodyExpert(nn.Module):
    """x [B, *LATENT], time [B], condition [B, tokens, 3] -> v.

    Least squares make a guess of the condition, and the UNet learns how bodies differ from it: x_0 = guess + rest. If the
    rest were normal noise of its deviation, `linear` would be the best v; the UNet is asked for what that lacks (Karras
    et al. 2022, section 5).
    """

    bars: Tensor
    deviation: Tensor  # [C, 1, 1, 1], of the rest

    def __init__(self, name: str, code: Code) -> None:
        super().__init__()
        self.guess = Mannequin(code) if name == POSE else Standing(code)
        self.register_buffer("bars", torch.from_numpy(SCHEDULE.alpha_bars()).float(), persistent=False)
        self.register_buffer("deviation", torch.ones(LATENT[0], 1, 1, 1))
        tokens, numbers = CONDITIONS[name]
        self.tokens = nn.Parameter(0.1 * torch.randn(1, tokens, CONTEXT))
        self.project = nn.Linear(numbers, CONTEXT)
        self.unet = UNet(
            UNetConfig(
                in_channels=2 * LATENT[0],
                out_channels=LATENT[0],
                model_channels=WIDTH,
                channel_mult=(1, 1),
                num_res_blocks=0,
                attention_resolutions=(2,),
                num_heads=4,
                context_dim=CONTEXT,
                dims=3,
            )
        )
        for parameter in self.unet.out[2].parameters():
            nn.init.zeros_(parameter)

    def fit(self, latents: Tensor, conditions: Tensor) -> None:
        self.guess.fit(latents, conditions)
        guesses = torch.cat([self.guess(some) for some in conditions.split(AT_ONCE)])
        self.deviation = (latents - guesses).square().mean((0, 2, 3, 4)).sqrt().reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        alpha, sigma = self.noise(time.float())
        guess = self.guess(condition)
        rest, variance = x - alpha * guess, self.deviation**2
        scale = (alpha**2 * variance + sigma**2).sqrt()  # of the rest, diffused
        linear = alpha * sigma * (1 - variance) / scale**2 * rest - sigma * guess
        shown = torch.cat([rest / scale, guess], 1)
        return linear + self.deviation / scale * self.unet(shown, time, self.tokens + self.project(condition))

    def noise(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma [B, 1, 1, 1, 1]; solvers ask between timesteps too."""
        low = time.floor().long().clamp(0, len(self.bars) - 1)
        high = (low + 1).clamp(max=len(self.bars) - 1)
        bar = torch.lerp(self.bars[low], self.bars[high], time - low).reshape(-1, 1, 1, 1, 1)
        return bar.sqrt(), (1 - bar).sqrt()


def experts_of(folder: Path, code: Code) -> dict[str, Expert]:
    """Those that were trained into it."""
    found = {}
    for name in CONDITIONS:
        module = BodyExpert(name, code)
        module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        found[name] = as_expert(name, module)
    return found


def as_expert(name: str, module: nn.Module) -> Expert:
    return Expert(module, Parameterisation("v", schedule=SCHEDULE), CONDITIONS[name], latent_shape=LATENT)
