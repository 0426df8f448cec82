"""How far does a way of sampling drift from the exact one? The same x_T and conditions, latent by latent.

Solvers of the ODE are measured against its answer, that of as many steps as the network knows timesteps; samplers that
add noise against the exact tier, whose path of noise they share. A second row says what far is: for the ODE, DDIM; else
the exact tier itself with other noise in its steps. Whether images are as good is for `bench quality` to say.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cdiff_rt.bench.likeness import psnr, ssim
from cdiff_rt.bench.machine import machine
from cdiff_rt.bench.quality import SEED, exam_for
from cdiff_rt.notes import hushed, log
from cdiff_rt.pipeline import Generated, Pipeline
from cdiff_rt.sampling import noise
from cdiff_rt.sampling.tiers import TIERS, Sampling
from cdiff_rt.settings import Settings

OTHER_SEED = SEED + 1


@dataclass(frozen=True)
class Row:
    """One number per pair."""

    name: str
    against: str
    error: np.ndarray  # [N] relative, of the latents
    psnr: np.ndarray  # [N] dB, of the images; infinite where they are equal
    ssim: np.ndarray  # [N]


@dataclass(frozen=True)
class Drift:
    machine: dict[str, str]
    settings: dict[str, int | str]
    rows: list[Row]


def measure(model: str, backend: str, *, how: Sampling, pairs: int) -> Drift:
    """`how`, and what it is to be measured by, against what both are to agree with.

    Raises BadRequest if the model has no exam, of whose pairs the first are the conditions.
    """
    pipeline = Pipeline.from_pretrained(model, backend=backend)
    exam, exact = exam_for(pipeline.manifest).first(pairs), TIERS["exact"]
    how.table(pipeline.manifest.schedule)  # before what it is held against is made
    if how.eta == 0:
        reference = Sampling("dpmpp-2m", pipeline.manifest.schedule.train_steps - 1, 0.0)
        scale, remark, seed = replace(exact, eta=0.0), "for scale", SEED
    else:
        reference, scale, remark, seed = exact, exact, "with other noise, for scale", OTHER_SEED
    conditions: list[dict[str, Any]] = [exam.conditions(i) for i in range(len(exam.labels))]
    wanted = list(runs(pipeline, reference, SEED, conditions))
    rows = []
    for name, way, its_seed in ((str(how), how, SEED), (f"{scale} {remark}", scale, seed)):
        made = runs(pipeline, way, its_seed, conditions)
        both = list(zip(made, wanted, strict=True))
        error = np.array([relative_error(ours.latents, its.latents) for ours, its in both])
        alike = {
            of.__name__: np.array([of(ours.images[0], its.images[0]) for ours, its in both]) for of in (psnr, ssim)
        }
        rows.append(Row(name, str(reference), error, **alike))
        log.info("%s: relative error %.3f, PSNR %.1f dB", name, np.median(error), np.median(rows[-1].psnr))
    settings: dict[str, int | str] = {"model": model, "backend": backend, "seed": SEED, "pairs": len(conditions)}
    return Drift(machine(), settings, rows)


def runs(pipeline: Pipeline, how: Sampling, seed: int, conditions: list[dict[str, Any]]) -> Iterator[Generated]:
    """An image for each pair. x_T is that of SEED whatever the seed, which only the noise of the steps is drawn by."""
    for i, given in enumerate(conditions):
        x_T = noise.normal(SEED, range(i, i + 1), 0, pipeline.manifest.latent_shape)
        with hushed():
            made = pipeline.generate(Settings(seed=seed, first=i, **asdict(how)), conditions=given, x_T=x_T)
        yield made


def relative_error(z: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(z - wanted) / np.linalg.norm(wanted))
