"""Does an edit do what it is asked for, and nothing else? Pairs of one person before and after a change, and a judge.

Beside the edits stand a new image from scratch, SDEdit at several strengths, and edits by one condition alone.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdiff_rt.bench import likeness
from cdiff_rt.bench.quality import LABELS_KEPT, interval, mean_iou
from cdiff_rt.editing.reading import described
from cdiff_rt.editing.regions import kept_labels
from cdiff_rt.exam import UNASKED, Exam
from cdiff_rt.notes import hushed
from cdiff_rt.pipeline import Pipeline

STRENGTHS = (0.4, 0.6, 0.8, 1.0)  # of SDEdit
HIGHEST_PSNR = 60.0  # dB: of equal images
COLUMNS = ("mIoU", "attributes", "both", "changed", "unchanged", "PSNR", "SSIM")
BORDER_COLUMNS = ("left over", "error inside", "error outside")
NEAR, NOTICEABLE = 4, 20  # pixels from a border; levels of 255
log = logging.getLogger("cdiff_rt.bench")


@dataclass(frozen=True, eq=False)
class Case:
    """`answers` [attributes] are the judge's right ones after the change; UNASKED where nothing is asked."""

    photo: np.ndarray  # [H, W, 3] uint8
    before: dict[str, Any]  # modality -> condition
    after: dict[str, Any]
    labels: np.ndarray  # [H, W], the mask after the change
    named: np.ndarray  # answers that the sentence names
    changed: np.ndarray  # those that are others than before
    unchanged: np.ndarray
    stays: np.ndarray  # [H, W] bool: pixels that the change leaves alone
    becomes: np.ndarray  # [H, W, 3] uint8: the photo of the same after the change


Way = Callable[[Case, int], np.ndarray]  # a case and its number -> [H, W, 3] uint8


def ways(pipeline: Pipeline, exam: Exam) -> dict[str, Way]:
    """Every way from a photo to an edited one."""

    def edit(source: dict[str, Any], wanted: dict[str, Any], photo: np.ndarray, **settings: Any) -> np.ndarray:
        return pipeline.edit(photo, source=source, **settings, **wanted).images[0]

    def alone(name: str) -> Way:
        return lambda case, seed: edit({name: case.before[name]}, {name: case.after[name]}, case.photo, seed=seed)

    def sdedit(strength: float) -> Way:
        settings: dict[str, Any] = {"method": "sdedit", "strength": strength}
        return lambda case, seed: edit(case.before, case.after, case.photo, seed=seed, **settings)

    def scratch(case: Case, seed: int) -> np.ndarray:
        return pipeline.generate(seed=0, first=seed, **case.after).images[0]

    found: dict[str, Way] = {
        "edit": lambda case, seed: edit(case.before, case.after, case.photo, seed=seed),
        "edit, source read from the photo": lambda case, seed: edit(
            described(exam, case.photo), case.after, case.photo, seed=seed
        ),
        "edit, alpha 1.5": lambda case, seed: edit(case.before, case.after, case.photo, seed=seed, alphas=(1.5,)),
    }
    found |= {f"edit by {modality.name} only": alone(modality.name) for modality in pipeline.manifest.modalities}
    found |= {f"SDEdit, strength {strength}": sdedit(strength) for strength in STRENGTHS}
    return found | {"from scratch": scratch}


def compare(pipeline: Pipeline, exam: Exam, cases: Sequence[Case]) -> dict[str, dict[str, np.ndarray]]:
    """way -> column -> one number per case; NaN where nothing is asked. First the photos as they are."""
    rows = {"the photo, unedited": score(exam, cases, [case.photo for case in cases])}
    for name, way in ways(pipeline, exam).items():
        with hushed():
            made = [way(case, number) for number, case in enumerate(cases)]
        rows[name] = score(exam, cases, made)
        log.info("%s: %s", name, ", ".join(f"{c} {np.nanmean(v):.3f}" for c, v in rows[name].items()))
    return rows


def score(exam: Exam, cases: Sequence[Case], made: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """column -> [N]."""
    labels, answers = exam.ask(np.stack(made))
    named, changed, unchanged = (
        np.array([share(got, getattr(case, of)) for got, case in zip(answers, cases, strict=True)])
        for of in ("named", "changed", "unchanged")
    )
    iou = mean_iou(labels, np.stack([case.labels for case in cases]))
    both = ((iou >= LABELS_KEPT) & (named == 1)).astype(float)
    pairs = list(zip(cases, made, strict=True))
    kept = [np.array([of(case.photo, image, case.stays) for case, image in pairs]) for of in (psnr, likeness.ssim)]
    return dict(zip(COLUMNS, (iou, named, both, changed, unchanged, *kept), strict=True))


def compare_borders(
    pipeline: Pipeline, exam: Exam, cases: Sequence[Case], keep: str
) -> dict[str, dict[str, np.ndarray]]:
    """What `keep` leaves at its borders, and what pasting all that has the kept labels would leave.

    way -> column -> one number per case; NaN where nothing was to change. Cases without such labels are left out.
    """
    rows: dict[str, dict[str, np.ndarray]] = {}
    for name in ("source given", "source read from the photo"):
        found: dict[str, list[list[float]]] = {name: [], f"{name}, pasted to the border": []}
        for number, case in enumerate(cases):
            source = case.before if name == "source given" else described(exam, case.photo)
            was, becomes = np.asarray(source[exam.paper.mask]), case.labels
            kept = (was == becomes) & np.isin(was, sorted(kept_labels(keep, exam.paper.classes)))
            if kept.any():
                made = pipeline.edit(case.photo, source=source, seed=number, keep=keep, **case.after).images[0]
                pasted = np.where(kept[..., None], case.photo, made)
                for way, image in zip(found, (made, pasted), strict=True):
                    found[way].append(at_border(case, image, kept))
        rows |= {way: dict(zip(BORDER_COLUMNS, np.array(of).T, strict=True)) for way, of in found.items()}
    return rows


def at_border(case: Case, image: np.ndarray, kept: np.ndarray) -> list[float]:
    """`BORDER_COLUMNS` of an edited image [H, W, 3] uint8, near the border of what is `kept` [H, W] bool.

    Inside it, of the pixels that ought to change noticeably, the share that is more like the photo than like what they
    ought to become; and how far, in levels, those inside and those outside are from that.
    """
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(kept, NEAR, mode="edge"), (2 * NEAR + 1,) * 2)
    near = windows.any((2, 3)) & ~windows.all((2, 3))
    moved, short, wrong = (
        np.abs(a.astype(int) - b).mean(-1)
        for a, b in ((case.photo, case.becomes), (image, case.photo), (image, case.becomes))
    )
    inside, outside = near & kept, near & ~kept
    parts = ((short < wrong, inside & (moved > NOTICEABLE)), (wrong, inside), (wrong, outside))
    return [float(values[where].mean()) if where.any() else float("nan") for values, where in parts]


def share(answers: np.ndarray, right: np.ndarray) -> float:
    """Of the right answers, where something is asked."""
    asked = right != UNASKED
    return float((answers == right)[asked].mean()) if asked.any() else float("nan")


def psnr(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> float:
    """In dB, of the pixels `where` [H, W] of two images [H, W, 3] uint8; NaN where there are none."""
    return min(HIGHEST_PSNR, likeness.psnr(first[where], second[where])) if where.any() else float("nan")


def table(rows: dict[str, dict[str, np.ndarray]]) -> str:
    """Markdown: means over the cases, with their 95 % bootstrap intervals."""
    titles = list(next(iter(rows.values())))
    lines = [f"| images | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for name, columns in rows.items():
        cells = []
        for column in titles:
            values = columns[column][~np.isnan(columns[column])]
            places = 1 if column == "PSNR" else 3
            mean, low, high = interval(values) if len(values) else (np.nan, np.nan, np.nan)
            cells.append(f"{mean:.{places}f} [{low:.{places}f}, {high:.{places}f}]" if len(values) else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plain(rows: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list[float | None]]]:
    """For JSON; null where nothing is asked."""
    return {
        name: {c: [None if np.isnan(v) else round(float(v), 4) for v in values] for c, values in row.items()}
        for name, row in rows.items()
    }
