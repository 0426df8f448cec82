"""The training loop that all stages share: time-boxed, seeded, resumable, with an averaged copy of the weights."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Plan:
    """`minutes` of computing in all, over however many resumed runs; the learning rate falls to zero at their end."""

    stage: str
    folder: Path
    minutes: float
    resume: bool
    seed: int
    examples: int
    batch: int = 32
    learning_rate: float = 1e-3
    ema: float = 0.998
    save_every: int = 200

    @property
    def state(self) -> Path:
        return self.folder / f"{self.stage}.pt"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.stage}.jsonl"

    def check(self) -> None:
        """Hours of work are neither overwritten nor, where they are missed, begun anew without a word."""
        if self.resume and not self.state.exists():
            raise click.UsageError(f"there is no {self.state} to resume; leave --resume out")
        if self.state.exists() and not self.resume:
            raise click.UsageError(f"{self.state} exists; add --resume to go on from it, or remove it")


def clock() -> float:
    """Seconds of work. The main thread's own time, so that a paused or a shared machine doesn't use up the plan."""
    return time.thread_time()


def rate(done: float, step: int) -> float:
    """The share of the learning rate: 100 steps of warm-up, then half a cosine to zero over the plan."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def fit(plan: Plan, module: nn.Module, loss: Loss) -> None:
    """Trains `module` in place and leaves its averaged weights in it. `loss(indices, generator)` is one batch's."""
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = [p.detach().clone() for p in trained]
    step, seconds, wall = 0, 0.0, 0.0
    if plan.resume and plan.state.exists():
        saved = torch.load(plan.state, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        average, step, seconds, wall = (saved[key] for key in ("average", "step", "seconds", "wall"))
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
    start, began, recent = clock() - seconds, time.monotonic() - wall, []
    while seconds < 60 * plan.minutes:
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * rate(seconds / (60 * plan.minutes), step)
        indices = torch.randint(plan.examples, (plan.batch,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(indices, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        recent.append(value.item())
        decay = min(plan.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in trained], 1 - decay)
        seconds = clock() - start
        if step % plan.save_every == 0:
            wall = time.monotonic() - began
            _report(plan, step, seconds, wall, recent)
            _save(plan, module, optimizer, {"average": average, "step": step, "seconds": seconds, "wall": wall})
            recent = []
    wall = time.monotonic() - began
    if recent:
        _report(plan, step, seconds, wall, recent)
    _save(plan, module, optimizer, {"average": average, "step": step, "seconds": seconds, "wall": wall})
    for parameter, mean in zip(trained, average, strict=True):
        parameter.data.copy_(mean)


def _report(plan: Plan, step: int, seconds: float, wall: float, recent: list[float]) -> None:
    row = {"step": step, "images": step * plan.batch, "minutes": round(seconds / 60, 2), "wall": round(wall / 60, 2)}
    row["loss"] = round(sum(recent) / len(recent), 5)
    print(plan.stage, json.dumps(row), flush=True)
    with plan.log.open("a") as log:
        log.write(json.dumps(row) + "\n")


def _save(plan: Plan, module: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    partial = plan.state.with_suffix(".partial")
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict(), **progress}, partial)
    partial.replace(plan.state)


def load_state(folder: Path, stage: str, part: str) -> dict[str, Tensor]:
    """The weights of one part of a stage's module, from its last save; the stage may still run."""
    path = folder / f"{stage}.pt"
    if not path.exists():
        raise click.UsageError(f"there is no {path} to begin from; train {stage} first")
    module = torch.load(path, weights_only=True)["module"]
    return {name.removeprefix(f"{part}."): value for name, value in module.items() if name.startswith(f"{part}.")}
