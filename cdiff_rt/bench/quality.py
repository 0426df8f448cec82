"""Do generated images follow their conditions? Held-out pairs, a judge, one row for each way of running the model."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cdiff_rt.bench.faces import face_finder
from cdiff_rt.bench.machine import machine
from cdiff_rt.errors import BadRequest
from cdiff_rt.exam import Exam
from cdiff_rt.manifest import Manifest
from cdiff_rt.notes import hushed, log
from cdiff_rt.outputs.files import check_folder
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.tiers import Sampling
from cdiff_rt.settings import Influence, Settings

LABELS_KEPT = 0.5  # a mask counts as followed from this mean IoU on, as in detection
RESAMPLES, CONFIDENCE = 2000, 95  # of the bootstrap; per cent
SEED = 0  # image i of this seed belongs to pair i
COLUMNS = ("mIoU", "attributes", "both", "face")


@dataclass(frozen=True)
class Way:
    """A way of running the model: some of its modalities, and what inference does to their influence."""

    name: str
    modalities: tuple[str, ...]
    influence: Influence


@dataclass(frozen=True)
class Scores:
    """One number per image; NaN where nothing was asked."""

    iou: np.ndarray  # [N], the mean over the classes of the mask
    right: np.ndarray  # [N, attributes], 1 or 0
    face: np.ndarray  # [N], 1 or 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {values.mean():.3f}" for name, values in self.columns.items())

    @property
    def columns(self) -> dict[str, np.ndarray]:
        asked = ~np.isnan(self.right)
        attributes = np.nansum(self.right, axis=1) / asked.sum(1)
        both = (self.iou >= LABELS_KEPT) & (attributes == 1)
        return dict(zip(COLUMNS, (self.iou, attributes, both.astype(float), self.face), strict=True))


@dataclass(frozen=True)
class Examination:
    machine: dict[str, str]
    settings: dict[str, int | str]
    exam: Exam
    rows: dict[str, Scores]  # for each of `ways`, and a control


def ways(manifest: Manifest) -> list[Way]:
    """Every modality alone, their plain mean, the influence functions as trained, and as the manifest adjusts them."""
    names = tuple(modality.name for modality in manifest.modalities)
    plain = Influence(decay="none", factor=1.0)
    return [
        *(Way(f"{name} only", (name,), plain) for name in names),
        Way("plain mean", names, replace(plain, sharpness=0.0)),
        Way("collaborative, softmax as trained", names, plain),
        Way("collaborative", names, manifest.influence),
    ]


def examine(model: str, backend: str, *, how: Sampling, pairs: int, images: Path | None = None) -> Examination:
    """Puts every way of running the model to its exam.

    The control judges the last way's images by other pairs' conditions. With `images` every image is written there,
    as <way>/<number>.png. Raises BadRequest if there is no exam for the model, or if `images` exists; BadInput if it
    cannot be written.
    """
    if images and os.path.exists(images):
        raise BadRequest("images", f"{images} exists", "choose another folder or remove it")
    if images:
        check_folder(images)
    pipeline = Pipeline.from_pretrained(model, backend=backend)
    exam = exam_for(pipeline.manifest).first(pairs)
    find, rows = face_finder(), {}
    for way in ways(pipeline.manifest):
        made = np.stack(list(generate(pipeline, exam, way, how, images)))
        rows[way.name] = score(exam, made, find)
        log.info("%s: %s", way.name, rows[way.name])
    rows[f"{way.name}, shuffled pairs"] = score(exam.shuffled(), made, find)
    settings: dict[str, int | str] = {"model": model, "backend": backend, "sampling": str(how), "seed": SEED}
    return Examination(machine(), settings | {"pairs": len(exam.labels)}, exam, rows)


def exam_for(manifest: Manifest) -> Exam:
    """Raises BadRequest if there is no exam for the model's name, or if it was made for another model of that name."""
    exam = Exam.of(manifest.name)
    names = {modality.name for modality in manifest.modalities}
    if not names <= {exam.paper.mask, exam.paper.text} or manifest.image_size != exam.paper.size:
        made = f"{exam.paper.size}-pixel images from {exam.paper.mask} and {exam.paper.text}"
        found = f"{manifest.image_size}-pixel images from {', '.join(sorted(names))}"
        raise BadRequest("quality", f"this {manifest.name!r} makes {found}", f"its exam is for {made}")
    return exam


def generate(pipeline: Pipeline, exam: Exam, way: Way, how: Sampling, images: Path | None) -> Iterator[np.ndarray]:
    """The image [H, W, 3] of every pair, in order."""
    for i in range(len(exam.labels)):
        given = exam.conditions(i)
        chosen = {name: given[name] for name in way.modalities}
        settings = Settings(seed=SEED, first=i, **asdict(way.influence), **asdict(how))
        with hushed():
            result = pipeline.generate(settings, conditions=chosen)
        if images:
            result.save(images / way.name / f"{i:03d}.png")
        yield result.images[0]


def score(exam: Exam, images: np.ndarray, find: Callable[[np.ndarray], bool] | None) -> Scores:
    """images [N, H, W, 3] uint8, one for each pair."""
    labels, answers = exam.ask(images)
    right = np.where(exam.answers < 0, np.nan, answers == exam.answers)
    face = np.array([float(find(image)) if find else np.nan for image in images])
    return Scores(mean_iou(labels, exam.labels), right, face)


def mean_iou(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """found, wanted [N, H, W] -> [N]: intersection over union, mean over the classes of each wanted map."""
    result = np.empty(len(wanted))
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        classes = np.unique(b)
        result[i] = np.mean([((a == c) & (b == c)).sum() / ((a == c) | (b == c)).sum() for c in classes])
    return result


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """values [N] -> their mean and its bootstrap interval."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    rest = (100 - CONFIDENCE) / 2
    low, high = np.percentile(values[drawn].mean(1), (rest, 100 - rest))
    return float(values.mean()), float(low), float(high)
