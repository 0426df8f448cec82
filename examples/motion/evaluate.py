"""How many motions meet what was asked: each expert alone, their plain mean, calibrated, and collaborative.

python -m examples.motion.evaluate --model motion
"""

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.loop import StepState
from examples.intervals import wilson
from examples.motion.experts import ACTION, WAYPOINTS
from examples.motion.judge import Verdict, held_out, judge
from examples.motion.motions import Motions, Requests, as_motions
from examples.motion.train import BUNDLE, CALIBRATED

TRUE = "true motions"
SEED = 0  # motion i of this seed belongs to request i
STYLE_ONLY, POINTS_ONLY, MEAN, WEIGHED, BOTH = (
    "action only",
    "way-points only",
    "plain mean",
    "calibrated",
    "collaborative",
)
WAYS: dict[str, tuple[tuple[str, ...], dict]] = {  # the conditions that are given, and the settings
    STYLE_ONLY: ((ACTION,), {}),
    POINTS_ONLY: ((WAYPOINTS,), {}),
    MEAN: ((ACTION, WAYPOINTS), {"influence": "as-trained", "sharpness": 0.0}),
    WEIGHED: ((ACTION, WAYPOINTS), {}),  # its weights are a file
    BOTH: ((ACTION, WAYPOINTS), {}),
}

Callback = Callable[[StepState], object]


def sample(
    folder: Path, pipeline: Pipeline, requests: Requests, i: int, way: str, *, callback: Callback | None = None
) -> np.ndarray:
    """[1, CHANNELS, FRAMES]: a motion for request i, made in one of WAYS by what training left in `folder`."""
    names, settings = WAYS[way]
    both = {ACTION: requests.words()[i], WAYPOINTS: requests.points[i]}
    if way == WEIGHED:
        settings = {"influence": str(folder / CALIBRATED)}
    given = {name: both[name] for name in names}
    return pipeline.generate(
        tier="fast", seed=SEED, first=i, callback_on_step_end=callback, **settings, **given
    ).latents


def motions(folder: Path, pipeline: Pipeline, requests: Requests, way: str) -> Motions:
    return as_motions(np.concatenate([sample(folder, pipeline, requests, i, way) for i in range(len(requests))]))


def table(found: dict[str, Verdict]) -> str:
    """Shares in per cent with their intervals, as markdown."""
    columns = next(iter(found.values())).met
    heads = ["motions", *(f"{name} met" for name in columns), "foot slide"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(_row(name, verdict) for name, verdict in found.items())])


def _row(name: str, verdict: Verdict) -> str:
    cells = [name, *(_share(met) for met in verdict.met.values()), f"{np.nanmean(verdict.slide):.2f} m/s"]
    return "| " + " | ".join(cells) + " |"


def _share(met: np.ndarray) -> str:
    low, high = wilson(met)
    return f"{100 * met.mean():.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--count", type=click.IntRange(min=1), default=250, show_default=True, help="How many requests.")
def main(model: Path, count: int) -> None:
    """Print how many of COUNT held-out requests are met by what training left in MODEL."""
    requests, truth = held_out(count)
    pipeline = Pipeline.from_pretrained(model / BUNDLE)
    found = {}
    for way in WAYS:
        found[way] = judge(motions(model, pipeline, requests, way), requests)
        print(_row(way, found[way]), flush=True)
    print(f"\n{table(found | {TRUE: judge(truth, requests)})}")


if __name__ == "__main__":
    main()
