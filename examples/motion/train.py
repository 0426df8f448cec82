"""Train both experts, each with its own condition only, then their influence on pairs of both.

python -m examples.motion.train --out motion
"""

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from cdiff_rt import Learned, calibrate, compose, export_composition, train
from cdiff_rt.learning.descent import adamw, share_of_rate
from cdiff_rt.nets.unet import UNet
from examples.motion.experts import ACTION, MODULES, SCHEDULE, WAYPOINTS, WIDTH, experts, save
from examples.motion.motions import WALKED, as_latents, draw

SEED = 10  # and the two after it, for the data of the stages; the judge's is another
MOTIONS, PAIRS, BATCH, RATE, AVERAGE = 12_000, 1000, 64, 2e-3, 0.998
ROOT_COUNTS = {ACTION: 2.0, WAYPOINTS: 8.0}  # how much an error of the root's x and y counts; of another channel 1
CHANNELS = [0.03] * 4 + [
    1.0
] * 43  # the same, of the two together: what moves over the ground is exact as soon as it can be
SHARES = {ACTION: 0.3, WAYPOINTS: 0.3, "influence": 0.4}  # of the minutes
LEAST_NOISE = 0.01
WARM, TIMED = 3, 10  # steps; how long the second take tells how many there will be
CALIBRATED, LEARNED, BUNDLE = "calibrated.json", "learned", "bundle"  # in the folder, beside a file for each expert
ALPHA_BARS = torch.from_numpy(SCHEDULE.alpha_bars())

Told = Callable[[str], None]


def examples(name: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """What an expert learns from: latents, and its condition. The other's is not known here."""
    requests, motions = draw(count, np.random.default_rng(seed), corridor=name == ACTION)
    condition = requests.words() if name == ACTION else requests.points
    return torch.from_numpy(as_latents(motions)), torch.from_numpy(condition)


def pairs(count: int, seed: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Motions that meet both conditions."""
    requests, motions = draw(count, np.random.default_rng(seed))
    rows = zip(as_latents(motions), requests.words(), requests.points, strict=True)
    return [(latents, {ACTION: word, WAYPOINTS: points}) for latents, word, points in rows]


def loss_of(module: nn.Module, x_0: Tensor, condition: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """An ordinary diffusion model's: the squared error of x_0, relative to the noise as that of v is."""
    t = torch.randint(SCHEDULE.train_steps, (len(x_0),), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    bars = ALPHA_BARS[t].float()[:, None, None]
    out = module(bars.sqrt() * x_0 + (1 - bars).sqrt() * eps, t.float(), condition)
    return (counts * (out - x_0) ** 2 / (1 - bars).clamp(min=LEAST_NOISE)).mean()


def fit(
    module: nn.Module, name: str, data: tuple[Tensor, Tensor], seed: int, *, minutes: float, steps: int = 0
) -> None:
    """So many steps, or as many as the minutes have room for; leaves averaged weights."""
    parameters = list(module.parameters())
    optimizer, average = adamw(parameters, RATE), [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(seed)
    counts = torch.ones(data[0].shape[1], 1)
    counts[WALKED] = ROOT_COUNTS[name]
    begun, losses, step, total = time.monotonic(), list[float](), 0, steps or WARM + TIMED
    while step < total:
        rows = torch.randint(len(data[0]), (BATCH,), generator=generator)
        loss = loss_of(module, data[0][rows], data[1][rows], counts, generator)
        for group in optimizer.param_groups:
            group["lr"] = RATE * share_of_rate(step, max(total, 1000))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(AVERAGE, (1 + step) / (10 + step)))
        losses, step = [*losses, loss.item()], step + 1
        if not steps and step == WARM:
            begun = time.monotonic()
        if not steps and step == WARM + TIMED:
            total = max(total, round(60 * minutes * TIMED / (time.monotonic() - begun)))
        if step % 200 == 0 or step == total:
            print(f"{name}: step {step} of {total}, loss {np.mean(losses):.4f}", flush=True)
            losses = []
    for parameter, mean in zip(parameters, average, strict=True):
        parameter.data.copy_(mean)


def train_expert(name: str, out: Path, minutes: float, seed: int, *, steps: int = 0, width: int = WIDTH) -> None:
    """The second begins with how bodies move, as the first knows it; of words it is told nothing."""
    torch.manual_seed(seed)
    module = MODULES[name](width)
    if (out / f"{ACTION}.safetensors").exists():
        _begin(module.unet, load_file(out / f"{ACTION}.safetensors"))
    data = examples(name, MOTIONS, seed + list(MODULES).index(name))
    fit(module, name, data, seed, minutes=minutes, steps=steps)
    save(module.eval(), out / f"{name}.safetensors")


def _begin(unet: UNet, known: dict[str, Tensor]) -> None:
    """With the other's weights; what else it sees adds nothing yet."""
    weights = {name.removeprefix("unet."): value.float() for name, value in known.items() if name.startswith("unet.")}
    first = weights["input_blocks.0.0.weight"]
    more = unet.config.in_channels - first.shape[1]
    weights["input_blocks.0.0.weight"] = F.pad(first, (0, 0, 0, more))
    unet.load_state_dict(weights)


def train_influence(out: Path, minutes: float, seed: int, *, iterations: int | None = None) -> Learned:
    """Calibrated and learned, of the experts in `out`; goes on with what was begun there."""
    pipeline, known = compose(experts(out)), pairs(PAIRS, seed + len(MODULES))
    if not (out / CALIBRATED).exists():
        print(calibrate(pipeline, known[:300], out / CALIBRATED, channels=CHANNELS).table, flush=True)
    return train(
        pipeline,
        known,
        out / LEARNED,
        minutes=minutes,
        iterations=iterations,
        resume=(out / LEARNED).exists(),
        seed=seed,
        channels=CHANNELS,
    )


def export(out: Path) -> dict[str, float]:
    """Experts and influence as one bundle, which needs no PyTorch; how far its networks are from these."""
    pipeline = compose(Learned(out / LEARNED).over(experts(out)))
    return export_composition(pipeline, out / BUNDLE, precision="fp16")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder; what is there already is kept.")
@click.option("--minutes", type=click.FloatRange(min=0.1), default=25.0, show_default=True, help="In all.")
@click.option("--seed", type=click.IntRange(min=2), default=SEED, show_default=True)
def main(out: Path, minutes: float, seed: int) -> None:
    """Train experts and influence, and leave them in OUT."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the same sums in the same order wherever it runs; these networks gain little by more
    for name in MODULES:
        if not (out / f"{name}.safetensors").exists():
            train_expert(name, out, SHARES[name] * minutes, seed)
    print(train_influence(out, SHARES["influence"] * minutes, seed).table)
    print(f"{out / BUNDLE}: its networks and these differ by {max(export(out).values()):.1e} or less")


if __name__ == "__main__":
    main()
