"""How many motions meet what was asked: each expert alone, their plain mean, calibrated, and collaborative.

python -m examples.motion.evaluate --model motion
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from cdiff_rt import Learned, compose
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.loop import StepState
from examples.motion.experts import ACTION, WAYPOINTS, experts
from examples.motion.judge import Verdict, held_out, judge
from examples.motion.motions import Motions, Requests, as_motions
from examples.motion.train import CALIBRATED, LEARNED

SEED = 0  # motion i of this seed belongs to request i
SURE = 1.96  # deviations, of an interval that holds in 95 of 100
STYLE_ONLY, POINTS_ONLY, MEAN, WEIGHED, BOTH = (
    "action only",
    "way-points only",
    "plain mean",
    CALIBRATED[:-5],
    "collaborative",
)
GIVEN = {STYLE_ONLY: (ACTION,), POINTS_ONLY: (WAYPOINTS,)}  # all others are given both
WAYS = (STYLE_ONLY, POINTS_ONLY, MEAN, WEIGHED, BOTH)

Callback = Callable[[StepState], object]


@dataclass(frozen=True)
class Models:
    """Two pipelines of the same experts, and the file of weights."""

    plain: Pipeline
    learned: Pipeline
    calibrated: Path

    @classmethod
    def open(cls, folder: Path) -> "Models":
        known = experts(folder)
        return cls(compose(known), compose(Learned(folder / LEARNED).over(known)), folder / CALIBRATED)

    def sample(self, requests: Requests, i: int, way: str, *, callback: Callback | None = None) -> np.ndarray:
        """[1, CHANNELS, FRAMES]: a motion for request i, made in one of WAYS."""
        both = {ACTION: requests.words()[i], WAYPOINTS: requests.points[i]}
        pipeline = self.learned if way == BOTH else self.plain
        return pipeline.generate(
            tier="fast",
            seed=SEED,
            first=i,
            callback_on_step_end=callback,
            influence=str(self.calibrated) if way == WEIGHED else "as-trained",
            **{name: both[name] for name in GIVEN.get(way, both)},
        ).latents


def motions(models: Models, requests: Requests, way: str) -> Motions:
    return as_motions(np.concatenate([models.sample(requests, i, way) for i in range(len(requests))]))


def wilson(met: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a share, from N yes or no."""
    n, share = len(met), met.mean()
    middle, half = share + SURE**2 / (2 * n), SURE * np.sqrt(share * (1 - share) / n + SURE**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + SURE**2 / n) for sign in (-1, 1))
    return float(low), float(high)


def table(found: dict[str, Verdict]) -> str:
    """Shares in per cent with their intervals, as markdown."""
    columns = next(iter(found.values())).met
    heads = ["motions", *(f"{name} met" for name in columns), "foot slide"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, verdict in found.items():
        cells = [_share(met) for met in verdict.met.values()]
        lines.append("| " + " | ".join([name, *cells, f"{np.nanmean(verdict.slide):.2f} m/s"]) + " |")
    return "\n".join(lines)


def _share(met: np.ndarray) -> str:
    low, high = wilson(met)
    return f"{100 * met.mean():.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--count", type=click.IntRange(min=1), default=250, show_default=True, help="How many requests.")
def main(model: Path, count: int) -> None:
    """Print how many of COUNT held-out requests are met by what training left in MODEL."""
    requests, truth = held_out(count)
    models = Models.open(model)
    found = {way: judge(motions(models, requests, way), requests) for way in WAYS}
    print(table(found | {"true motions": judge(truth, requests)}))
    errors = {name: round(value, 5) for name, value in models_table(model).items()}
    print(f"squared error of a prediction, on pairs held out: {json.dumps(errors)}")


def models_table(folder: Path) -> dict[str, float]:
    return Learned(folder / LEARNED).table


if __name__ == "__main__":
    main()
