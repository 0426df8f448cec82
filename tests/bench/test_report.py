import json

import pytest

from cdiff_rt.bench.latency import Comparison, Timing
from cdiff_rt.bench.report import table, write_json

MACHINE = {
    "cpu": "A Processor",
    "cores": "2",
    "python": "3.12.1",
    "torch": "2.13.0",
    "onnxruntime": "1.32.0",
    "numpy": "2.4.6",
}
RESULT = Comparison(
    MACHINE,
    {"model": "tiny", "steps": 50, "batch": 1, "repeats": 3},
    [Timing("onnxruntime", 0.5, 200.4, [100.0, 110.0, 190.0]), Timing("torch", 2.25, 400.0, [200.0, 220.0, 400.0])],
)


def test_table_stands_under_a_line_that_says_what_was_measured():
    first = table(RESULT).splitlines()[0]
    for fact in (
        "A Processor",
        "2 cores",
        "Python 3.12.1",
        "torch 2.13.0",
        "onnxruntime 1.32.0",
        "steps 50",
        "batch 1",
        "repeats 3",
    ):
        assert fact in first


def test_table_has_a_row_per_backend_and_units_above():
    header, rule, *rows = table(RESULT).splitlines()[2:]
    assert len({line.count("|") for line in (header, rule, *rows)}) == 1
    assert {"median ms", "first image s", "peak MiB"} <= {cell.strip() for cell in header.split("|")}
    assert rows == [
        "| onnxruntime | 110 | 174 | 188 | 100-190 | 2.00x | 0.50 | 200 |",
        "| torch | 220 | 364 | 396 | 200-400 | 1.00x | 2.25 | 400 |",
    ]


def test_without_the_baseline_no_ratio_is_shown():
    alone = Comparison(MACHINE, {}, RESULT.timings[:1])
    assert "| - |" in table(alone).splitlines()[-1]


def test_json_holds_every_run(tmp_path):
    write_json(RESULT, tmp_path / "bench.json")
    data = json.loads((tmp_path / "bench.json").read_text())
    assert data["machine"] == MACHINE
    assert data["settings"] == RESULT.settings
    assert [row["ms"] for row in data["timings"]] == [timing.ms for timing in RESULT.timings]
    assert data["timings"][0]["p50"] == 110
    assert data["timings"][0]["p90"] == pytest.approx(174)
