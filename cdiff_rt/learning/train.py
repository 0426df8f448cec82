"""`train`: dynamic diffusers beside frozen experts, of which nothing is known but what they predict.

They learn from the squared error of the mix (Collaborative Diffusion, section 3.3). Every iteration's pairs, timesteps and
noise follow from its number and the seed: a run that was ended goes on as if it had not been.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cdiff_rt.errors import BadArtefact, BadRequest, check_range, real, whole
from cdiff_rt.extras import needed
from cdiff_rt.learning.calibrate import IN_TABLE, LEAST_PAIRS, calibrated, read_channels, tell
from cdiff_rt.learning.learned import ABOUT, About, Learned, Plan
from cdiff_rt.learning.pairs import Given, Pairs, read_pairs
from cdiff_rt.notes import collected, hushed
from cdiff_rt.outputs import files
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.schema import parse
from cdiff_rt.settings import check_seed

CLAIM, STATE = "training.json", "state.safetensors"  # of the folder
NORMALISED, MOST_WIDTH = 32, 512  # channels that are normalised together, and in all
MOST_MINUTES, MOST_ITERATIONS, LEAST_ITERATIONS = 1e5, 10**8, 20
COLLABORATIVE = "collaborative"  # a row of the table


def train(
    pipeline: Pipeline,
    pairs: Given,
    out: str | Path,
    *,
    minutes: float = 10.0,
    iterations: int | None = None,
    resume: bool = False,
    seed: int = 0,
    rate: float = 1e-3,
    channels: Sequence[float] | None = None,
    width: int = 32,
    progress: Callable[[], object] | None = None,
) -> Learned:
    """Dynamic diffusers for the experts of a pipeline, in the folder `out`: `compose(learned.over(experts), ...)`.

    They are told what the experts are told of their conditions: of a bundle's, what its encoders give.
    `pairs` and `channels` are as those of `calibrate`. It takes about so many `minutes`, or `iterations` of 32 examples;
    after each, `progress` is called, and every 10 seconds the log says how far it is. Networks have `width` channels, a
    multiple of 32. The table is of 500 pairs at most. With `resume`, a run into `out` that was ended goes on. Raises BadRequest, BadInput,
    BadEnvironment.
    """
    folder = Path(out)
    files.check_names(folder / STATE)
    files.check_folder(folder)
    check_range("minutes", real("minutes", minutes), 0.0, MOST_MINUTES)
    if iterations is not None:
        check_range("iterations", whole("iterations", iterations), 1, MOST_ITERATIONS)
    check_range("rate", real("rate", rate), 1e-6, 1.0)
    check_seed(whole("seed", seed))
    check_range("width", whole("width", width), NORMALISED, MOST_WIDTH)
    if width % NORMALISED:
        raise BadRequest("width", str(width), f"give a multiple of {NORMALISED}")
    with collected():
        read = read_pairs(pipeline, pairs, LEAST_PAIRS)
    _check_experts(read)
    visible = read_channels(channels, read.x0.shape[1])
    shown = None if channels is None else tuple(visible.tolist())
    plan = Plan(iterations, float(minutes), seed, float(rate), shown, width)
    with needed("train", "train"):
        from cdiff_rt.learning.descent import Descent
    with files.disk_errors(f"writing {folder}"), files.own_folder(folder.parent, folder.name):
        begin = lambda: Descent(pipeline, read, visible, plan, folder / STATE)
        count = _claim(folder, read, plan, lambda: begin().seconds(), resume=resume)
        descent = begin()
        descent.run(count, progress)
        with hushed():
            table = calibrated(pipeline, read.first(IN_TABLE), visible, seed=seed).table
        table |= {COLLABORATIVE: descent.held_out()}
        conditions = {name: list(shape) for name, shape in zip(read.names, descent.shapes, strict=True)}
        about = About(conditions, list(read.x0.shape[1:]), count, table)
        with files.all_or_nothing(folder / ABOUT) as new:
            descent.export(new)
            (new / ABOUT).write_text(json.dumps(asdict(about), indent=1) + "\n")
    tell(table)
    return Learned(folder)


def _check_experts(pairs: Pairs) -> None:
    if len(pairs.modalities) < 2:
        raise BadRequest("pairs", f"{pairs.names[0]} is the only expert that takes part", "give conditions of more")
    axes = pairs.x0.ndim - 2
    if not 1 <= axes <= 3:
        raise BadRequest(
            "pipeline", f"its latents have {axes} axes beside channels", "give one whose latents have 1 to 3"
        )


def _claim(folder: Path, pairs: Pairs, plan: Plan, seconds: Callable[[], float], *, resume: bool) -> int:
    """Says in `folder` what is learned there, or sees that it is this. Returns the number of iterations."""
    digest = hashlib.sha256(pairs.x0.tobytes())
    for row in pairs.inputs:
        for value in row:
            digest.update(value.tobytes())
    claim = {"pairs": digest.hexdigest(), "names": pairs.names, "plan": asdict(plan)}
    path = folder / CLAIM
    if folder.exists() and not folder.is_dir():
        raise BadRequest("out", f"{folder} is a file", "give the name of a folder")
    files.sweep(folder) if folder.exists() else None
    if not resume and folder.exists() and any(folder.iterdir()):
        raise BadRequest("out", f"{folder} is not empty", "choose another folder, or go on with resume=True")
    if resume and not path.exists():
        raise BadRequest("resume", f"nothing was begun in {folder}", "leave it out")
    if resume:
        return _resumed(path, json.loads(json.dumps(claim)))
    count = plan.iterations or max(LEAST_ITERATIONS, round(60 * plan.minutes / seconds()))
    folder.mkdir(parents=True, exist_ok=True)
    with files.all_or_nothing(path) as new:
        (new / CLAIM).write_text(json.dumps(claim | {"iterations": count}, indent=1) + "\n", encoding="utf-8")
    return count


def _resumed(path: Path, claim: dict[str, Any]) -> int:
    try:
        known = parse(path.read_text(encoding="utf-8"))
        count = known.pop("iterations")
        check_range("iterations", whole("iterations", count), 1, MOST_ITERATIONS)
    except (ValueError, KeyError, AttributeError, BadRequest) as error:
        raise BadArtefact(f"file {path}", f"it cannot be read ({error!s:.80})", "train into another folder") from None
    if known != claim:
        raise BadRequest("resume", f"{path.parent} holds other pairs or settings", "give the same, or another folder")
    return count
