"""Timings as a table for people, as JSON and CSV for programs, and against earlier ones."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cdiff_rt.bench.cases import BASELINES, TUNED
from cdiff_rt.bench.comparison import AT_A_TIME, Comparison, Timing
from cdiff_rt.bench.report import heading
from cdiff_rt.errors import BadInput

PERCENTILES = (50, 90, 95, 99)
RESAMPLES, CONFIDENCE = 1000, 95  # of the bootstrap
NOISE = 0.02  # what differs by less is not told apart: two runs of the same differ by that


@dataclass(frozen=True)
class Column:
    title: str
    value: Callable[[Comparison, Timing], float | None]
    form: str

    def cell(self, comparison: Comparison, timing: Timing) -> str:
        value = self.value(comparison, timing)
        return "-" if value is None else self.form.format(value)


def _percentile(q: int) -> Column:
    return Column("median ms" if q == 50 else f"p{q}", lambda c, t: t.percentile(q), "{:.4g}")


COLUMNS = (
    *map(_percentile, PERCENTILES),
    Column("spread", lambda c, t: t.spread, "{:.0%}"),
    Column("per s", lambda c, t: c.per_second(t), "{:.3g}"),
    Column("speed", lambda c, t: c.ratio(t), "{:.2f}x"),
    Column("to tuned", lambda c, t: c.to_tuned(t), "{:.2f}x"),
    Column("roofline", lambda c, t: t.roofline, "{:.0%}"),
    Column("dB", lambda c, t: t.db, "{:.0f}"),
    Column("dB later", lambda c, t: t.db_after, "{:.0f}"),
    Column("first s", lambda c, t: t.load_s, "{:.2f}"),
    Column("peak MiB", lambda c, t: t.memory_mib, "{:.0f}"),
    Column("launches", lambda c, t: t.launches, "{:d}"),
)


def table(comparison: Comparison) -> str:
    """A Markdown table under the lines that say on what it was measured, and what its columns are."""
    columns = [c for c in COLUMNS if any(c.value(comparison, t) is not None for t in comparison.timings)]
    lines = [heading(comparison.machine, comparison.settings), "", legend(comparison, {c.title for c in columns}), ""]
    lines.append(f"| case | {' | '.join(column.title for column in columns)} |")
    lines.append("|---" * (1 + len(columns)) + "|")
    for timing in comparison.timings:
        lines.append(f"| {timing.case} | {' | '.join(column.cell(comparison, timing) for column in columns)} |")
    lines += [f"\nLeft out, {name}: {reason}" for name, reason in comparison.left_out.items()]
    return "\n".join(lines)


def legend(comparison: Comparison, titles: set[str]) -> str:
    """What the columns say that their titles don't."""
    names = [timing.case for timing in comparison.timings]
    base, tuned = (next((name for name in names if name in known), "") for known in (BASELINES, TUNED))
    alone = comparison.settings.get(AT_A_TIME) == 1
    said = {
        "spread": "spread: half of the runs lie in so much of the median",
        "speed": f"speed: {'ratio of the medians' if alone else 'median of the ratios'} to {base}"
        + ("" if alone else ", run by run"),
        "to tuned": f"to tuned: ratio of the medians to {tuned}",
        "roofline": f"roofline: share of what this machine does at best ({comparison.roofline})",
        "dB": "dB: signal to error of the latents, against the first case of the same sampling",
        "dB later": f"later: after {comparison.settings.get('after')} steps",
        "first s": "first: from the start of a new process to its first result",
    }
    return "; ".join(text for title, text in said.items() if title in titles)


def write_json(comparisons: list[Comparison], path: Path) -> None:
    """All figures, every run; null for what is infinite or wasn't measured."""
    path.write_text(json.dumps([as_json(comparison) for comparison in comparisons], indent=1, allow_nan=False) + "\n")


def as_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "machine": comparison.machine,
        "settings": comparison.settings,
        "roofline": asdict(comparison.roofline) if comparison.roofline else None,
        "timings": [
            {name: _finite(value) for name, value in asdict(t).items() if name != "beside"}
            | {f"p{q}": t.percentile(q) for q in PERCENTILES}
            | {"spread": t.spread, "per_second": comparison.per_second(t), "speed": comparison.ratio(t)}
            for t in comparison.timings
        ],
        "left out": comparison.left_out,
    }


def write_csv(comparisons: list[Comparison], path: Path) -> None:
    """A row per case and batch, without the single runs."""
    rows = [
        {**comparison.settings, **{name: value for name, value in row.items() if name != "ms"}}
        for comparison in comparisons
        for row in as_json(comparison)["timings"]
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


# --- against earlier ones --------------------------------------------------------------------------------------------


def read_old(path: Path) -> list[dict[str, Any]]:
    """What `write_json` wrote. Raises BadInput."""
    try:
        data = json.loads(path.read_text())
        known = isinstance(data, list) and all(_is_comparison(comparison) for comparison in data)
        if not known:
            raise ValueError("it is no list of comparisons")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"comparison {path}", f"it cannot be read ({error or type(error).__name__})", "give a file of --json"
        ) from None
    return data


def _is_comparison(data: Any) -> bool:
    """Raises TypeError, KeyError or ValueError for much that is none."""
    timed = all(row["case"] and row["ms"] and min(row["ms"]) > 0 for row in data["timings"])
    return bool(data["machine"]["cpu"] and data["settings"]["batch"] and timed)


def against(comparison: Comparison, old: list[dict[str, Any]]) -> str:
    """A Markdown table: how many times faster each case is than it was, and whether that is more than chance."""
    same = ("model", "what", "batch")
    found = [o for o in old if all(o["settings"].get(n) == comparison.settings.get(n) for n in same)]
    cases = {row["case"]: row["ms"] for o in found for row in o["timings"]}
    lines = [f"old / new, with the {CONFIDENCE} % bootstrap interval of the medians' ratio", ""]
    cpus = sorted({o["machine"]["cpu"] for o in found} - {comparison.machine["cpu"]})
    if cpus:
        lines[:0] = [f"The earlier ones are of another processor: {', '.join(cpus)}.", ""]
    lines += ["| case | old median ms | new median ms | old / new | verdict |", "|---|---|---|---|---|"]
    for timing in comparison.timings:
        if timing.case not in cases:
            lines.append(f"| {timing.case} | - | {timing.percentile(50):.4g} | - | new |")
            continue
        before = cases[timing.case]
        ratio, low, high = gain(before, timing.ms)
        numbers = f"{np.median(before):.4g} | {timing.percentile(50):.4g} | {ratio:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {timing.case} | {numbers} | {verdict(low, high)} |")
    return "\n".join(lines)


def gain(old: list[float], new: list[float]) -> tuple[float, float, float]:
    """The ratio of the medians and its bootstrap interval."""
    rng = np.random.default_rng(0)
    drawn = [np.median(rng.choice(ms, (RESAMPLES, len(ms))), axis=1) for ms in (old, new)]
    rest = (100 - CONFIDENCE) / 2
    low, high = np.percentile(drawn[0] / drawn[1], (rest, 100 - rest))
    return float(np.median(old) / np.median(new)), float(low), float(high)


def verdict(low: float, high: float) -> str:
    """Of an interval of old / new."""
    if low > 1 + NOISE:
        return "faster"
    return "slower" if high < 1 - NOISE else "within the spread"
