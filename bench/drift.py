"""How far does a way of sampling drift from the exact one? The same x_T and conditions, latent by latent.

Solvers of the ODE have one right answer: that of as many steps as the network knows timesteps. Samplers that add noise
have none, for their steps are others and so is their noise; how far the exact one is from itself, with other noise in
its steps, is the measure of what that means. Whether their images are as good is for `bench --quality` to say.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cdiff_rt import noise
from cdiff_rt.bench.machine import machine
from cdiff_rt.bench.quality import SEED, exam_for, one_backend
from cdiff_rt.pipeline import Generated, Pipeline
from cdiff_rt.tiers import TIERS, Sampling

OTHER_SEED = SEED + 1
log = logging.getLogger("cdiff_rt")


@dataclass(frozen=True)
class Row:
    """One number per pair."""

    name: str
    against: str
    error: np.ndarray  # [N] relative, of the latents
    psnr: np.ndarray  # [N] dB, of the images; infinite where they are equal


@dataclass(frozen=True)
class Drift:
    machine: dict[str, str]
    settings: dict[str, int | str]
    rows: list[Row]


def measure(model: str, backends: tuple[str, ...], how: Sampling, pairs: int) -> Drift:
    """`how`, and what it is to be measured by, against what both are to agree with.

    Raises BadRequest if the model has no exam, of whose pairs the first are the conditions.
    """
    backend = one_backend(backends)
    pipeline = Pipeline.from_pretrained(model, backend=backend)
    exam, exact = exam_for(pipeline.manifest).first(pairs), TIERS["exact"]
    if how.eta == 0:
        reference = Sampling("dpmpp-2m", pipeline.manifest.schedule.train_steps - 1, 0.0)
        ways = {"": how, " for scale": replace(exact, eta=0.0)}
    else:
        reference, ways = exact, {"": how, " with other noise, for scale": exact}
    conditions: list[dict[str, Any]] = [exam.conditions(i) for i in range(len(exam.labels))]
    wanted = list(runs(pipeline, reference, SEED, conditions))
    rows = []
    for remark, way in ways.items():
        made = runs(pipeline, way, OTHER_SEED if way == reference else SEED, conditions)
        both = list(zip(made, wanted, strict=True))
        error = np.array([relative_error(ours.latents, its.latents) for ours, its in both])
        psnr = np.array([psnr_of(ours.images, its.images) for ours, its in both])
        rows.append(Row(f"{way}{remark}", str(reference), error, psnr))
        log.info("%s: relative error %.3f, PSNR %.1f dB", rows[-1].name, np.median(error), np.median(psnr))
    settings: dict[str, int | str] = {"model": model, "backend": backend, "seed": SEED, "pairs": len(conditions)}
    return Drift(machine(), settings, rows)


def runs(pipeline: Pipeline, how: Sampling, seed: int, conditions: list[dict[str, Any]]) -> Iterator[Generated]:
    """An image for each pair. x_T is that of SEED whatever the seed, which only the noise of the steps is drawn by."""
    for i, given in enumerate(conditions):
        x_T = noise.normal(SEED, range(i, i + 1), 0, pipeline.manifest.latent_shape)
        arguments: dict[str, Any] = asdict(how) | given
        yield pipeline.generate(seed=seed, first=i, x_T=x_T, **arguments)


def relative_error(z: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(z - wanted) / np.linalg.norm(wanted))


def psnr_of(image: np.ndarray, wanted: np.ndarray) -> float:
    """dB, of uint8 images."""
    error = np.mean((image.astype(float) - wanted) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else np.inf
