"""A comparison as a table for people and as JSON for programs."""

import json
from dataclasses import asdict
from pathlib import Path

from cdiff_rt.bench.latency import Comparison

HEADER = "| backend | median ms | p90 | p99 | min-max | against torch | first image s | peak MiB |"


def table(comparison: Comparison) -> str:
    """A Markdown table under one line that says on what it was measured."""
    facts = comparison.machine
    settings = ", ".join(f"{key} {value}" for key, value in comparison.settings.items())
    versions = ", ".join(f"{name} {facts[name]}" for name in ("onnxruntime", "torch", "numpy") if name in facts)
    lines = [f"{facts['cpu']}, {facts['cores']} cores; Python {facts['python']}, {versions}; {settings}", "", HEADER]
    lines.append("|---" * HEADER.count(" | ") + "|---|")
    for timing in comparison.timings:
        ratio = comparison.ratio(timing)
        cells = [
            timing.backend,
            f"{timing.percentile(50):.0f}",
            f"{timing.percentile(90):.0f}",
            f"{timing.percentile(99):.0f}",
            f"{min(timing.ms):.0f}-{max(timing.ms):.0f}",
            f"{ratio:.2f}x" if ratio else "-",
            f"{timing.load_s:.2f}",
            f"{timing.memory_mib:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_json(comparison: Comparison, path: Path) -> None:
    timings = [asdict(timing) | {f"p{q}": timing.percentile(q) for q in (50, 90, 99)} for timing in comparison.timings]
    data = {"machine": comparison.machine, "settings": comparison.settings, "timings": timings}
    path.write_text(json.dumps(data, indent=1) + "\n")
