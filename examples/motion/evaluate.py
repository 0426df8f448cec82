"""How many paths meet what was asked: each branch alone, their plain mean, and the two together.

python -m examples.motion.evaluate --bundle motion/bundle
"""

from pathlib import Path

import click
import numpy as np

from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.loop import Callback
from examples.motion.judge import Verdict, held_out, judge
from examples.motion.paths import NAMES, Requests, as_numbers, as_paths

SEED = 0  # path i of this seed belongs to request i
PLAIN_MEAN = {"influence": "as-trained", "sharpness": 0.0}
ENDPOINTS, STYLE, MEAN, BOTH = "endpoints only", "style only", "plain mean", "collaborative"
WAYS: dict[str, tuple[set[str], dict]] = {  # the conditions that are given, and the settings
    ENDPOINTS: ({"endpoints"}, {}),
    STYLE: ({"style"}, {}),
    MEAN: ({"endpoints", "style"}, PLAIN_MEAN),
    BOTH: ({"endpoints", "style"}, {}),
}


def sample(
    pipeline: Pipeline,
    requests: Requests,
    i: int,
    way: str,
    *,
    first: int = 0,
    batch: int = 1,
    callback: Callback | None = None,
) -> np.ndarray:
    """[batch, POINTS] complex: paths for request i, run in one of WAYS."""
    names, settings = WAYS[way]
    result = pipeline.generate(
        seed=SEED,
        first=first,
        batch=batch,
        **settings,
        callback_on_step_end=callback,
        endpoints=as_numbers(requests.ends)[i] if "endpoints" in names else None,
        style=NAMES[requests.styles[i]] if "style" in names else None,
    )
    return as_paths(result.latents)


def verdicts(pipeline: Pipeline, count: int) -> dict[str, Verdict]:
    """For each of WAYS and for true paths."""
    requests, truth = held_out(count)
    found = {}
    for way in WAYS:
        paths = np.concatenate([sample(pipeline, requests, i, way, first=i) for i in range(count)])
        found[way] = judge(paths, requests)
    return found | {"true paths": judge(truth, requests)}


def table(found: dict[str, Verdict]) -> str:
    """Counts, as markdown."""
    columns = next(iter(found.values())).met
    lines = ["| paths | " + " | ".join(f"{name} met" for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, verdict in found.items():
        cells = (f"{met.sum()} of {len(met)}" for met in verdict.met.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--count", type=click.IntRange(min=1), default=250, show_default=True, help="How many requests.")
@click.option("--backend", default="onnxruntime", show_default=True)
def main(bundle: Path, count: int, backend: str) -> None:
    """Print how many of COUNT held-out requests are met."""
    print(table(verdicts(Pipeline.from_pretrained(bundle, backend=backend), count)))


if __name__ == "__main__":
    main()
