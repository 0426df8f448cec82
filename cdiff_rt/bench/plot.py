"""Timings as a picture: a bar per case on one scale, drawn as SVG without a library."""

from html import escape
from pathlib import Path

from cdiff_rt.bench.comparison import Comparison
from cdiff_rt.bench.report import heading
from cdiff_rt.errors import BadRequest

ROW, NAMES, BARS, NUMBERS, MARGIN = 26, 300, 420, 190, 12  # pixels
FONT = "font-family='system-ui, sans-serif' font-size='13'"
WRAP = 130  # characters of the line that says what was measured


def check_suffix(path: Path) -> None:
    if path.suffix.lower() != ".svg":
        raise BadRequest("plot", path.name, "it is drawn as .svg, name it so")


def write_plot(comparisons: list[Comparison], path: Path) -> None:
    """One below the other. Bars are medians, whiskers go from the 10th to the 90th percentile."""
    parts, top = [], MARGIN
    for comparison in comparisons:
        drawn, top = _panel(comparison, top)
        parts += drawn
    width = NAMES + BARS + NUMBERS + 2 * MARGIN
    head = f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{top}' viewBox='0 0 {width} {top}' {FONT}>"
    back = f"<rect width='{width}' height='{top}' fill='white'/>"
    path.write_text("\n".join([head, back, *parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(comparison: Comparison, top: int) -> tuple[list[str], int]:
    parts = []
    for line in _wrapped(heading(comparison.machine, comparison.settings)):
        parts.append(_text(MARGIN, top + 12, line, "fill='#555' font-size='11'"))
        top += 15
    longest = max(timing.percentile(90) for timing in comparison.timings)
    left = MARGIN + NAMES
    for timing in comparison.timings:
        low, middle, high = (BARS * timing.percentile(q) / longest for q in (10, 50, 90))
        ratio, y = comparison.ratio(timing), top + ROW // 2
        told = f"{timing.percentile(50):.4g} ms" + (f", {ratio:.2f}x" if ratio else "")
        parts += [
            _text(left - 8, y + 4, timing.case, "text-anchor='end'"),
            f"<rect x='{left}' y='{y - 8}' width='{middle:.1f}' height='16' fill='#4878a8'/>",
            f"<path d='M{left + low:.1f} {y}H{left + high:.1f}' stroke='#111' stroke-width='1.5'/>",
            _text(left + max(high, middle) + 8, y + 4, told, ""),
        ]
        top += ROW
    return parts, top + MARGIN


def _text(x: float, y: float, content: str, style: str) -> str:
    return f"<text x='{x:.1f}' y='{y}' {style}>{escape(content)}</text>"


def _wrapped(line: str) -> list[str]:
    lines = [""]
    for word in line.split(" "):
        if len(lines[-1]) + len(word) > WRAP:
            lines.append("")
        lines[-1] += f"{word} "
    return [part.rstrip() for part in lines]
