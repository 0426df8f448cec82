"""What was measured otherwise than by the clock, as a table for people and as JSON for programs."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cdiff_rt.bench.budget import Budget
from cdiff_rt.bench.drift import Drift
from cdiff_rt.bench.floor import Gpu, Work
from cdiff_rt.bench.quality import COLUMNS, CONFIDENCE, LABELS_KEPT, Examination, interval

VERSIONS = ("onnxruntime", "openvino", "onnxruntime-gpu", "tensorrt-cu13", "tensorrt-rtx-cu13", "torch", "numpy")


def heading(machine: dict[str, str], settings: dict[str, int | str]) -> str:
    """One line that says on what something was measured."""
    listed = ", ".join(f"{key} {value}" for key, value in settings.items())
    versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS if name in machine)
    gpu = f"{machine['gpu']} ({machine['compute capability']}); " if "gpu" in machine else ""
    return f"{gpu}{machine['cpu']}, {machine['cores']} cores; Python {machine['python']}, {versions}; {listed}"


def quality_table(examination: Examination) -> str:
    """A Markdown table: means over the pairs, with their intervals; first the portraits that the exam was made of."""
    truth = examination.exam.paper.truth
    cells = {"painted portraits, all": [truth[name] for name in COLUMNS]}
    for name, scores in examination.rows.items():
        cells[name] = [list(interval(scores.columns[column])) for column in COLUMNS]
    both = f"both: mIoU >= {LABELS_KEPT} and every attribute that the sentence names"
    lines = [
        f"{heading(examination.machine, examination.settings)}; mean [{CONFIDENCE} % interval]; {both}",
        "",
        f"| images | {' | '.join(COLUMNS)} |",
        "|---" * (1 + len(COLUMNS)) + "|",
        *(f"| {name} | " + " | ".join(_cell(*values) for values in row) + " |" for name, row in cells.items()),
    ]
    return "\n".join(lines)


def drift_table(drift: Drift) -> str:
    """A Markdown table: medians over the pairs, with the lowest and the highest."""
    lines = [
        f"{heading(drift.machine, drift.settings)}; median (lowest to highest)",
        "",
        "| sampling | against | latent relative error | PSNR dB | SSIM |",
        "|---|---|---|---|---|",
    ]
    for row in drift.rows:
        figures = (_range(row.error, ".3f"), _range(row.psnr, ".1f"), _range(row.ssim, ".3f"))
        lines.append(f"| {row.name} | {row.against} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _range(values: np.ndarray, form: str) -> str:
    return f"{np.median(values):{form}} ({values.min():{form}} to {values.max():{form}})"


def write_drift(drift: Drift, path: Path) -> None:
    """Every pair's figures; null for a PSNR that is infinite."""
    rows = [
        asdict(row) | {"error": row.error.tolist(), "psnr": _finite(row.psnr), "ssim": row.ssim.tolist()}
        for row in drift.rows
    ]
    path.write_text(json.dumps({"machine": drift.machine, "settings": drift.settings, "rows": rows}, indent=1) + "\n")


def _finite(values: np.ndarray) -> list:
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _cell(mean: float, low: float, high: float) -> str:
    return "-" if np.isnan(mean) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def write_quality(examination: Examination, path: Path) -> None:
    """Every image's scores; null where nothing was asked."""
    images = {
        name: {column: _plain(values) for column, values in scores.columns.items()} | {"right": _plain(scores.right)}
        for name, scores in examination.rows.items()
    }
    facts = {"machine": examination.machine, "settings": examination.settings}
    data = facts | {"attributes": list(examination.exam.paper.attributes), "images": images}
    path.write_text(json.dumps(data, indent=1) + "\n")


def _plain(values: np.ndarray) -> list:
    rounded = values.round(4).astype(object)
    rounded[np.isnan(values)] = None
    return rounded.tolist()


def budget_table(budget: Budget) -> str:
    """Two Markdown tables: a step's launches, bytes and operations, and by layers how long it takes at least."""
    lines = [
        f"{budget.model}, batch 1, {budget.steps} steps; engines: {budget.target}",
        "",
        "| way | launches per step | by the host per image | MB per step | GFLOP per step |",
        "|---|---|---|---|---|",
    ]
    for row in budget.rows:
        host = f"{row.launches * budget.steps:,}" if row.replays is None else f"{row.replays} of a graph"
        lines.append(f"| {row.way} | {row.launches:,} | {host} | {row.bytes / 1e6:.1f} | {row.flops / 1e9:.2f} |")
    return "\n".join([*lines, "", *_floor_table(budget)])


def _floor_table(budget: Budget) -> list[str]:
    layers, floor = list(budget.floor.layers.values()), budget.floor
    together = floor.total.seconds(budget.peaks)
    return [
        f"At least on {budget.gpu} in fp16, by its published peaks; activations and launches are not counted",
        "",
        "| layers of a step | number | weights, MB | GFLOP | exponentials, millions | µs |",
        "|---|---|---|---|---|---|",
        *(_floor_row(name, works, budget.peaks) for name, works in floor.groups().items()),
        _floor_row("all, one after the other", layers, budget.peaks),
        f"| all, side by side as far as they can be | | | | | {1e6 * together:.1f} |",
    ]


def _floor_row(name: str, works: list[Work], peaks: Gpu) -> str:
    total, seconds = sum(works, Work()), sum(work.seconds(peaks) for work in works)
    counts = f"{total.weights / 1e6:.1f} | {total.flops / 1e9:.2f} | {total.exponentials / 1e6:.1f}"
    return f"| {name} | {sum(work != Work() for work in works)} | {counts} | {1e6 * seconds:.1f} |"


def write_budget(budget: Budget, path: Path) -> None:
    path.write_text(json.dumps(asdict(budget), indent=1) + "\n")
