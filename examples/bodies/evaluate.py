"""How many bodies meet what was asked: each expert alone, their plain mean, calibrated, and the two in collaboration.

python -m examples.bodies.evaluate --out bodies
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from cdiff_rt import Learned, Pipeline, StepState, compose
from examples.bodies.experts import BUILD, POSE, experts_of
from examples.bodies.judge import Judge, Verdict, held_out, true_bodies
from examples.bodies.people import People
from examples.bodies.train import CALIBRATED, CODE, LEARNED
from examples.bodies.volumes import Code
from examples.intervals import SURE, wilson

SEED, SOLVER, STEPS = 0, "dpmpp-2m", 12  # body i of this seed belongs to request i
POSES, BUILDS, MEAN, WEIGHED, BOTH = "pose only", "words only", "plain mean", "calibrated", "collaborative"
TRUTH = "true people"


@dataclass(frozen=True)
class Model:
    """What a training left."""

    plain: Pipeline
    learned: Pipeline
    code: Code
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Model":
        code = Code.load(folder / CODE)
        experts = experts_of(folder, code)
        learned = Learned(folder / LEARNED).over(experts)
        return cls(compose(experts), compose(learned), code, folder)

    def body(self, asked: People, i: int, way: str, see: Callable[[StepState], Any] | None = None) -> np.ndarray:
        """VOXELS: for request i."""
        given = {POSE: asked.poses[i].astype(np.float32), BUILD: asked.kinds[i, None].astype(np.float32)}
        given = {POSES: {POSE: given[POSE]}, BUILDS: {BUILD: given[BUILD]}}.get(way, given)
        if way == WEIGHED:
            given["influence"] = str(self.folder / CALIBRATED)
        pipeline = self.learned if way == BOTH else self.plain
        made = pipeline.generate(solver=SOLVER, steps=STEPS, seed=SEED, first=i, callback_on_step_end=see, **given)
        return self.code.decode(made.latents)[0]


WAYS = (POSES, BUILDS, MEAN, WEIGHED, BOTH)


def verdicts(model: Model, count: int, ways: tuple[str, ...] = WAYS) -> dict[str, Verdict]:
    """For each way, and for true people."""
    asked = held_out(count)
    judge, found = Judge(asked, model.code), dict[str, Verdict]()
    for way in ways:
        found[way] = judge(np.stack([model.body(asked, i, way) for i in range(count)]))
        click.echo(f"{way}: {found[way].met['both'].sum()} of {count}", err=True)
    return found | {TRUTH: judge(true_bodies(asked, model.code))}


def gain(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The interval of how much more often `one` meets than `other`, request by request."""
    difference = one.astype(float) - other
    half = SURE * difference.std(ddof=1) / len(one) ** 0.5
    return difference.mean() - half, difference.mean() + half


def table(found: dict[str, Verdict]) -> str:
    """Counts and intervals, as markdown."""
    columns = next(iter(found.values())).met
    lines = ["| bodies | " + " | ".join(f"{name} met" for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, verdict in found.items():
        cells = []
        for met in verdict.met.values():
            low, high = wilson(met)
            cells.append(f"{met.sum()} of {len(met)} ({low:.2f} to {high:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="Of training."
)
@click.option("--count", type=click.IntRange(min=8), default=240, show_default=True, help="How many requests.")
def main(out: Path, count: int) -> None:
    """Print how many of COUNT held-out requests are met."""
    found = verdicts(Model.open(out), count)
    print(table(found))
    for other in (MEAN, WEIGHED):
        low, high = gain(found[BOTH].met["both"], found[other].met["both"])
        print(f"both met, {BOTH} against {other}: {low:+.3f} to {high:+.3f}")


if __name__ == "__main__":
    main()
