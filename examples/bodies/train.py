"""Train both experts, each on people of its own and with its own condition only, then find their influence from pairs.

python -m examples.bodies.train --out bodies
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from cdiff_rt import calibrate, compose
from cdiff_rt import train as learn
from examples.bodies import people
from examples.bodies.experts import BUILD, CONDITIONS, POSE, SCHEDULE, BodyExpert, experts_of
from examples.bodies.volumes import Code, volumes

SEED = 10  # and the two after it, for the sets of people; the judge's are others
COUNTS = {POSE: 2000, BUILD: 1000, "pairs": 320}  # people; the first two are mirrored too
CODED = 250  # of each of the first two sets, whose blocks the code is fitted to
FITTED = 600  # of each set, that the guess is of
AT_ONCE = 250  # bodies that are volumes at a time
BATCH, RATE, AVERAGE = 16, 1.5e-3, 0.995
STEPS = {POSE: 3000, BUILD: 1500}
MINUTES = 10.0  # of learning influence
ALPHA_BARS = torch.from_numpy(SCHEDULE.alpha_bars())
CODE, CALIBRATED, LEARNED = "code.npz", "calibrated.json", "learned"  # in the folder, beside the experts


@dataclass(frozen=True)
class Bodies:
    """N of them, with both conditions."""

    latents: np.ndarray  # [N, *LATENT] float16
    conditions: dict[str, np.ndarray]  # [N, tokens, width] float32


def draw(name: str, rng: np.random.Generator, count: int) -> people.People:
    """Dancers of middling weight in any pose, people of every build who all stand alike, or people of any build in any pose."""
    kinds = np.zeros((count, 3)) if name == POSE else people.draw_kinds(count)
    poses = people.standing(count, rng) if name == BUILD else people.draw_poses(count, rng)
    return people.make_people(kinds, poses, rng)


def conditions(some: people.People) -> dict[str, np.ndarray]:
    return {POSE: some.poses.astype(np.float32), BUILD: some.kinds[:, None].astype(np.float32)}


def encoded(some: people.People, code: Code, *, mirror: bool) -> Bodies:
    given, parts = conditions(some), []
    for first in range(0, len(some.kinds), AT_ONCE):
        made = volumes(some.vertices[first : first + AT_ONCE], people.faces())
        parts.append([code.encode(each).astype(np.float16) for each in ((made, made[:, ::-1]) if mirror else (made,))])
    latents = np.concatenate([part for side in zip(*parts, strict=True) for part in side])
    if mirror:
        other = {POSE: people.mirrored(given[POSE]).astype(np.float32), BUILD: given[BUILD]}
        given = {name: np.concatenate([given[name], other[name]]) for name in given}
    return Bodies(latents, given)


def diffuse(x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """[B, *LATENT] -> x_t at random timesteps, t [B], and v = sqrt(a) eps - sqrt(1 - a) x_0."""
    t = torch.randint(SCHEDULE.train_steps, (len(x_0),), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    signal = ALPHA_BARS[t].sqrt().float().reshape(-1, 1, 1, 1, 1)
    spread = (1 - ALPHA_BARS[t]).sqrt().float().reshape(-1, 1, 1, 1, 1)
    return signal * x_0 + spread * eps, t, signal * eps - spread * x_0


def fit(module: nn.Module, latents: np.ndarray, given: np.ndarray, steps: int, say: Callable[[str], object]) -> None:
    """An ordinary diffusion model's training; leaves the averaged weights in the module."""
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, RATE, betas=(0.9, 0.99), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=min(0.5, 100 / steps))
    average = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(SEED)
    begun, recent = time.monotonic(), []
    for step in range(1, steps + 1):
        places = torch.randint(len(latents), (BATCH,), generator=generator).numpy()
        x_t, t, v = diffuse(torch.from_numpy(latents[places]).float(), generator)
        loss = F.mse_loss(module(x_t, t, torch.from_numpy(given[places])), v)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(AVERAGE, (1 + step) / (10 + step)))
        recent.append(loss.item())
        if step % 50 == 0 or step == steps:
            say(f"step {step}, loss {np.mean(recent):.4f}, {(time.monotonic() - begun) / 60:.2f} minutes")
            recent = []
    for parameter, mean in zip(parameters, average, strict=True):
        parameter.data.copy_(mean)


def make_data(folder: Path, counts: dict[str, int]) -> None:
    """The code, and a file of each set."""
    sets = {name: draw(name, np.random.default_rng(SEED + i), count) for i, (name, count) in enumerate(counts.items())}
    code = Code.fitted(volumes(np.concatenate([sets[name].vertices[:CODED] for name in CONDITIONS]), people.faces()))
    code.save(folder / CODE)
    for name, some in sets.items():
        made = encoded(some, code, mirror=name in CONDITIONS)
        np.savez(folder / f"{name}.npz", allow_pickle=False, latents=made.latents, **made.conditions)


def read_data(folder: Path, name: str) -> Bodies:
    with np.load(folder / f"{name}.npz") as known:
        return Bodies(known["latents"], {condition: known[condition] for condition in CONDITIONS})


def train_expert(folder: Path, name: str, steps: int) -> None:
    """It never sees the other's condition, nor the other's people."""
    data = read_data(folder, name)
    torch.manual_seed(SEED)
    module = BodyExpert(name, Code.load(folder / CODE))
    some = np.random.default_rng(SEED).choice(len(data.latents), min(FITTED, len(data.latents)), replace=False)
    module.fit(torch.from_numpy(data.latents[some]).float(), torch.from_numpy(data.conditions[name][some]))
    fit(module, data.latents, data.conditions[name], steps, lambda line: print(f"{name}: {line}", flush=True))
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / f"{name}.safetensors")


def find_influence(folder: Path, minutes: float, iterations: int | None = None) -> None:
    """Weights in closed form, and learned networks, from the same pairs."""
    data, code = read_data(folder, "pairs"), Code.load(folder / CODE)
    given = [{name: values[i] for name, values in data.conditions.items()} for i in range(len(data.latents))]
    pairs = list(zip(data.latents.astype(np.float32), given, strict=True))
    pipeline = compose(experts_of(folder, code))
    calibrate(pipeline, pairs, folder / CALIBRATED, channels=code.channels)
    learned = learn(
        pipeline, pairs, folder / LEARNED, minutes=minutes, iterations=iterations, channels=code.channels, seed=SEED
    )
    print(", ".join(f"{name} {error:.4g}" for name, error in learned.table.items()))


STAGES: dict[str, Callable[[Path], None]] = {
    "data": lambda folder: make_data(folder, COUNTS),
    POSE: lambda folder: train_expert(folder, POSE, STEPS[POSE]),
    BUILD: lambda folder: train_expert(folder, BUILD, STEPS[BUILD]),
    "influence": lambda folder: find_influence(folder, MINUTES),
}


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="A folder.")
@click.option("--stage", type=click.Choice(list(STAGES)), multiple=True, help="Only these; by default all, in turn.")
def main(out: Path, stage: tuple[str, ...]) -> None:
    """Train for half an hour and leave experts and their influence in OUT."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the same sums in the same order wherever it runs
    for name in stage or STAGES:
        STAGES[name](out)


if __name__ == "__main__":
    main()
