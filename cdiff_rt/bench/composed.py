"""What the loop of a composition costs beside its experts, and what more experts cost.

    python -m cdiff_rt.bench.composed --rounds 20

Experts are convolutions of PyTorch, of a millisecond or more a call. Cases take turns within a round, so that whatever
else the machine does falls on all of them; of each, the median of the rounds and its ratio to the case it is held
against. A case's calls alone are timed within its own run.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np

from cdiff_rt.bench.machine import machine
from cdiff_rt.composing.composition import compose
from cdiff_rt.composing.expert import Expert
from cdiff_rt.foreign.modules import as_function
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.preconditioning import Parameterisation

LATENT, CHANNELS, STEPS, BATCH = (4, 64, 64), 64, 10, 1
COUNTS, TOP_K = (1, 2, 4, 8), 2


@dataclass
class Timed:
    """A function, and how long its calls took in all since the last look."""

    function: Callable[..., np.ndarray]
    seconds: float = 0.0

    def __call__(self, *given: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        made = self.function(*given)
        self.seconds += time.perf_counter() - start
        return made


@dataclass
class Case:
    """A pipeline, its experts' calls, and the milliseconds of each round: of the whole run, and of these calls."""

    name: str
    pipeline: Pipeline
    calls: list[Timed]
    whole: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)

    def round(self) -> None:
        for call in self.calls:
            call.seconds = 0.0
        start = time.perf_counter()
        self.pipeline.generate(steps=STEPS, batch=BATCH, eta=0.0)
        self.whole.append(1000 * (time.perf_counter() - start))
        self.alone.append(1000 * sum(call.seconds for call in self.calls))


def network(seed: int) -> Any:
    """Some convolutions, as a function of arrays."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    inner = [layer for _ in range(6) for layer in (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.SiLU())]
    stack = nn.Sequential(nn.Conv2d(LATENT[0], CHANNELS, 3, padding=1), *inner, nn.Conv2d(CHANNELS, LATENT[0], 1))

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = stack

        def forward(self, x: Any, time: Any) -> Any:
            return self.stack(x)

    return as_function(Denoiser())


def case(name: str, count: int, top_k: int | None = None) -> Case:
    calls = [Timed(network(seed)) for seed in range(count)]
    logits = [(lambda x, alpha_bar, of=i: np.full(len(x), float(-of))) if top_k else None for i in range(count)]
    experts = {f"e{i}": Expert(call, Parameterisation(), logit=logits[i]) for i, call in enumerate(calls)}
    return Case(name, compose(experts, LATENT, top_k=top_k), calls)


def measure(rounds: int) -> list[Case]:
    """The first round warms up, and is not counted."""
    cases = [case(f"{count} experts" if count > 1 else "1 expert", count) for count in COUNTS]
    cases.append(case(f"top {TOP_K} of {COUNTS[-1]}", COUNTS[-1], TOP_K))
    for _ in range(1 + rounds):
        for each in cases:
            each.round()
    for each in cases:
        del each.whole[0], each.alone[0]
    return cases


def table(cases: list[Case]) -> str:
    lines = ["| case | median ms | to 1 expert | to linear | beside the experts' calls |", "|---|---|---|---|---|"]
    one = cases[0]
    for each in cases:
        ratio = statistics.median(a / b for a, b in zip(each.whole, one.whole, strict=True))
        called = TOP_K if each.name.startswith("top") else len(each.calls)
        beside = statistics.median(w / a - 1 for w, a in zip(each.whole, each.alone, strict=True))
        ms = statistics.median(each.whole)
        lines.append(f"| {each.name} | {ms:.1f} | {ratio:.2f}x | {ratio / called:.2f} | {beside:.1%} |")
    return "\n".join(lines)


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Count so many rounds.")
def main(rounds: int) -> None:
    """Tell what compositions of 1 to 8 experts cost."""
    told = ", ".join(f"{name} {value}" for name, value in machine().items())
    print(f"{told}; {STEPS} steps, batch {BATCH}, latents {LATENT}, 1 round of warm-up, {rounds} rounds in turns\n")
    print(table(measure(rounds)))


if __name__ == "__main__":
    main()
