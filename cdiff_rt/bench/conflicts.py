"""Who has his way where two conditions contradict each other, and does the disagreement of the experts tell it?

A case is a pair of them that asks two things of one attribute in one area. The judge says which of the two shows, and
whether both are followed elsewhere.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cdiff_rt.bench.edits import share
from cdiff_rt.bench.quality import CONFIDENCE, LABELS_KEPT, RESAMPLES, mean_iou
from cdiff_rt.controls import AS_TRAINED, FIRST, Region
from cdiff_rt.exam import Exam
from cdiff_rt.notes import hushed
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.tiers import Sampling
from cdiff_rt.settings import Settings

AS_IS, AGREEING = "as is", "as is, conditions that agree"
SAID, DRAWN, IOU = "as said", "as drawn", "mIoU"  # columns: what shows of the attribute is the sentence's, the mask's
HALF = 0.5  # of what the sentence says elsewhere; it counts as followed from there on, as a mask from LABELS_KEPT on
log = logging.getLogger("cdiff_rt.bench")
Rows = dict[str, dict[str, np.ndarray]]  # way -> column -> one number per case; NaN where nothing is asked


@dataclass(frozen=True, eq=False)
class Case:
    """Of attribute `about`, the sentence says `named[about]` and the mask shows `drawn`; UNASKED is what none says."""

    conditions: dict[str, Any]  # modality -> condition
    labels: np.ndarray  # [H, W], the mask
    named: np.ndarray  # [attributes], the judge's answers that the sentence names
    about: int
    drawn: int
    area: np.ndarray  # [H, W] bool, where the two contradict each other
    elsewhere: np.ndarray  # [attributes], of `named` what does not show in the area


Way = Callable[[Case], dict[str, Any]]  # settings


@dataclass(frozen=True)
class Found:
    rows: Rows
    conflicts: dict[str, np.ndarray]  # of the cases that contradict each other, and of those that agree, [N]
    failed: dict[str, np.ndarray]  # whether one of the two conditions is not followed in what they speak of, [N] bool

    def aucs(self) -> dict[str, tuple[float, float, float]]:
        """How often the disagreement is greater where a condition is not followed, with its interval.

        First by what the two speak of, where of two that contradict each other one always is not; then, of these alone,
        by the mask as a whole and what the sentence says.
        """
        conflict, failed = (np.concatenate([of[AGREEING], of[AS_IS]]) for of in (self.conflicts, self.failed))
        columns = self.rows[AS_IS]
        missed = (columns[IOU] < LABELS_KEPT) | (columns[SAID] == 0)
        return {
            f"in what they speak of, {failed.sum()} of {len(failed)} images": auc_interval(conflict, failed),
            f"mIoU below {LABELS_KEPT} or not as said, {missed.sum()} of {len(missed)} that contradict": auc_interval(
                self.conflicts[AS_IS], missed
            ),
        }


def ways(mask: str, text: str) -> dict[str, Way]:
    """The presets, and a brush in the hand of either side: alone, and with the other's where it does not paint."""

    def preset(name: str) -> Way:
        return lambda case: {"influence": name}

    def brush(inside: str, rule: Any, value: float = 1.0, outside: str = "", others: float = 1.0) -> Way:
        def painted(case: Case) -> dict[str, Any]:
            area = case.area.astype(np.float32)
            rest = [Region(outside, 1 - area, rule, others)] if outside else []
            return {"region": [Region(inside, area, rule, value), *rest]}

        return painted

    found: dict[str, Way] = {AS_IS: lambda case: {}}
    found |= {name: preset(name) for name in (AS_TRAINED, f"{mask}{FIRST}", f"{text}{FIRST}")}
    return found | {
        f"{text} at-least=1 in the area": brush(text, "at-least"),
        f"{text} only in the area, {mask} only elsewhere": brush(text, "only", outside=mask),
        f"{mask} at-least=0.6 in the area": brush(mask, "at-least", 0.6),
        f"{mask} at-least=0.6 in the area, {text} at-least=0.6 elsewhere": brush(mask, "at-least", 0.6, text, 0.6),
        f"{mask} only in the area, {text} only elsewhere": brush(mask, "only", outside=text),
    }


def compare(pipeline: Pipeline, exam: Exam, cases: Sequence[Case], agreeing: Sequence[Case], how: Sampling) -> Found:
    """Image i of seed 0 for case i."""
    names, found = (exam.paper.mask, exam.paper.text), Found({}, {}, {})
    unchanged: Way = lambda case: {}
    for name, way in {AGREEING: unchanged, **ways(*names)}.items():
        asked = agreeing if name == AGREEING else cases
        made, conflict = images(pipeline, asked, how, way)
        found.rows[name], failed = score(exam, asked, made, names)
        if name in (AS_IS, AGREEING):
            found.conflicts[name], found.failed[name] = conflict, failed
        log.info("%s: %s", name, ", ".join(f"{c} {np.nanmean(v):.3f}" for c, v in found.rows[name].items()))
    return found


def images(pipeline: Pipeline, cases: Sequence[Case], how: Sampling, way: Way) -> tuple[np.ndarray, np.ndarray]:
    """Of every case the image [H, W, 3], and how much the experts disagreed."""
    pixels, conflict = [], []
    for number, case in enumerate(cases):
        settings = Settings(first=number, **asdict(how), **way(case))
        with hushed():
            made = pipeline.generate(settings, conditions=case.conditions, callback_on_step_end=lambda state: None)
        assert made.conflict
        pixels.append(made.images[0])
        conflict += made.conflict.of_images
    return np.stack(pixels), np.array(conflict)


def score(
    exam: Exam, cases: Sequence[Case], made: np.ndarray, names: tuple[str, str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """column -> [N]; and [N] whether either condition is not followed in what they both speak of."""
    mask, text = names
    labels, answers = exam.ask(made)
    about = np.array([case.about for case in cases])
    seen, asked, drawn = (
        answers[np.arange(len(cases)), about],
        np.array([case.named[case.about] for case in cases]),
        np.array([case.drawn for case in cases]),
    )
    outside = np.array([iou_where(found, case.labels, ~case.area) for found, case in zip(labels, cases, strict=True)])
    left, all_ = (
        np.array([share(got, getattr(case, of)) for got, case in zip(answers, cases, strict=True)])
        for of in ("elsewhere", "named")
    )
    columns = {
        SAID: (seen == asked).astype(float),
        DRAWN: (seen == drawn).astype(float),
        f"{text} elsewhere": np.where(np.isnan(left), np.nan, left >= HALF),
        f"{mask} elsewhere": (outside >= LABELS_KEPT).astype(float),
        IOU: mean_iou(labels, np.stack([case.labels for case in cases])),
        "attributes": all_,
    }
    return columns, (seen != asked) | (seen != drawn)


def iou_where(found: np.ndarray, wanted: np.ndarray, where: np.ndarray) -> float:
    """Of maps [H, W], within `where` [H, W] bool; NaN where there is nothing."""
    return float(mean_iou(found[None, where], wanted[None, where])[0]) if where.any() else float("nan")


def auc(scores: np.ndarray, failed: np.ndarray) -> float:
    """The share of all pairs of a failed one and another in which the failed one's score is higher; ties count half."""
    low, high = scores[~failed], scores[failed][:, None]
    return float(((high > low) + (high == low) / 2).mean()) if low.size and high.size else float("nan")


def auc_interval(scores: np.ndarray, failed: np.ndarray) -> tuple[float, float, float]:
    """With its bootstrap interval."""
    drawn = np.random.default_rng(0).integers(len(scores), size=(RESAMPLES, len(scores)))
    rest = (100 - CONFIDENCE) / 2
    low, high = np.nanpercentile([auc(scores[i], failed[i]) for i in drawn], (rest, 100 - rest))
    return auc(scores, failed), float(low), float(high)
