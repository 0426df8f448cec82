import csv
import dataclasses
import json
import math

import pytest

from cdiff_rt.bench.comparison import Comparison, Timing
from cdiff_rt.bench.roofline import Roofline
from cdiff_rt.bench.timings import against, gain, read_old, table, verdict, write_csv, write_json
from cdiff_rt.errors import BadInput

MACHINE = {
    "cpu": "A Processor",
    "cores": "2",
    "python": "3.12.1",
    "torch": "2.13.0",
    "onnxruntime": "1.32.0",
    "numpy": "2.4.6",
}
TORCH = [200.0, 220.0, 400.0]
RESULT = Comparison(
    MACHINE,
    {"model": "tiny", "what": "image", "sampling": "exact: ddim, 50 steps, eta 1", "batch": 2, "repeats": 3},
    [
        Timing("torch", 2.25, 400.0, TORCH, TORCH),
        Timing("onnxruntime", 0.5, 200.4, [100.0, 110.0, 190.0], TORCH, db=math.inf, db_after=61.6, roofline=0.625),
    ],
    Roofline({"fp32": 2e11}, {"fp32": 1.5e11}, 1.4e10),
)


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_table_stands_under_lines_that_say_what_was_measured():
    first, _, legend, *_ = table(RESULT).splitlines()
    for fact in (
        "A Processor",
        "2 cores",
        "Python 3.12.1",
        "torch 2.13.0",
        "onnxruntime 1.32.0",
        "50 steps",
        "batch 2",
    ):
        assert fact in first
    assert "ratios to torch, run by run" in legend
    assert "matrix product fp32 200 GFLOP/s, convolution fp32 150 GFLOP/s, memory 14.0 GB/s" in legend


def test_table_has_a_row_per_case_and_a_column_for_what_was_measured():
    header, rule, *rows = table(RESULT).splitlines()[4:]
    assert len({line.count("|") for line in (header, rule, *rows)}) == 1
    titles = [
        "case",
        "median ms",
        "p90",
        "p95",
        "p99",
        "spread",
        "per s",
        "speed",
        "roofline",
        "dB",
        "dB later",
        "first s",
        "peak MiB",
    ]
    assert cells(header) == titles
    assert cells(rows[0]) == [
        "torch",
        "220",
        "364",
        "382",
        "396.4",
        "45%",
        "9.09",
        "1.00x",
        "-",
        "-",
        "-",
        "2.25",
        "400",
    ]
    assert cells(rows[1]) == [
        "onnxruntime",
        "110",
        "174",
        "182",
        "188.4",
        "41%",
        "18.2",
        "2.00x",
        "62%",
        "inf",
        "62",
        "0.50",
        "200",
    ]


def test_a_gpu_and_the_launches_are_told_where_there_are_any():
    machine = MACHINE | {"gpu": "A GPU", "compute capability": "9.0"}
    timings = [dataclasses.replace(timing, launches=7) for timing in RESULT.timings]
    first, _, _, _, header, _, *rows = table(Comparison(machine, {"batch": 1}, timings)).splitlines()
    assert first.startswith("A GPU (9.0); A Processor, 2 cores")
    assert cells(header)[-1] == "launches" and all(cells(row)[-1] == "7" for row in rows)


def test_what_was_left_out_and_how_cases_of_their_own_compare_is_told():
    alone = [dataclasses.replace(timing, beside=[]) for timing in RESULT.timings]
    result = Comparison(MACHINE, {"batch": 1, "at a time": 1}, alone, left_out={"tensorrt": "none was built; build it"})
    _, _, legend, _, _, _, *rows = table(result).splitlines()
    assert "speed: ratio of the medians to torch;" in legend and "| 2.00x |" in rows[1]
    assert rows[-1] == "Left out, tensorrt: none was built; build it"


def test_without_the_baseline_no_ratio_is_shown():
    alone = dataclasses.replace(RESULT.timings[1], beside=[])
    assert "speed" not in table(Comparison(MACHINE, {"batch": 1}, [alone]))


def test_json_holds_every_run_and_nothing_that_is_no_json(tmp_path):
    write_json([RESULT], tmp_path / "bench.json")
    (data,) = json.loads((tmp_path / "bench.json").read_text(), parse_constant=pytest.fail)
    assert data["machine"] == MACHINE and data["settings"] == RESULT.settings
    assert data["roofline"]["bandwidth"] == 1.4e10
    assert [row["ms"] for row in data["timings"]] == [timing.ms for timing in RESULT.timings]
    ours = data["timings"][1]
    assert ours["p50"] == 110 and ours["p90"] == pytest.approx(174) and ours["p95"] == pytest.approx(182)
    assert ours["speed"] == 2 and ours["db"] is None and ours["db_after"] == 61.6


def test_csv_has_a_row_per_case_and_batch(tmp_path):
    other = dataclasses.replace(RESULT, settings=RESULT.settings | {"batch": 4})
    write_csv([RESULT, other], tmp_path / "bench.csv")
    with (tmp_path / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["batch"]) for row in rows] == [
        (case, batch) for batch in ("2", "4") for case in ("torch", "onnxruntime")
    ]
    assert rows[1]["p50"] == "110.0" and rows[1]["sampling"] == "exact: ddim, 50 steps, eta 1" and "ms" not in rows[1]


@pytest.fixture
def old(tmp_path):
    write_json([RESULT], tmp_path / "old.json")
    return read_old(tmp_path / "old.json")


def faster(factor, name="onnxruntime"):
    runs = [100.0, 101.0, 102.0, 103.0, 104.0] * 4
    return Timing(name, 1.0, 1.0, [ms / factor for ms in runs])


def verdicts(new, old):
    rows = against(dataclasses.replace(RESULT, timings=new), old).splitlines()
    return {cells(row)[0]: cells(row)[-1] for row in rows if row.startswith("| ") and "verdict" not in row}


def test_a_case_is_compared_with_what_it_was(tmp_path):
    write_json([dataclasses.replace(RESULT, timings=[faster(1, name) for name in "abcd"])], tmp_path / "old.json")
    new = [faster(2, "a"), faster(0.5, "b"), faster(1.01, "c"), faster(1.0, "new one")]
    assert verdicts(new, read_old(tmp_path / "old.json")) == {
        "a": "faster",
        "b": "slower",
        "c": "within the spread",
        "new one": "new",
    }


def test_runs_that_scatter_decide_nothing():
    """Medians differ by half, and each three runs lie wide apart."""
    ratio, low, high = gain([100.0, 300.0, 500.0], [80.0, 200.0, 450.0])
    assert ratio == 1.5 and low < 1 < high and verdict(low, high) == "within the spread"


def test_only_the_same_task_is_compared(old):
    assert set(verdicts(RESULT.timings, old).values()) == {"within the spread"}
    for name, value in (("what", "step"), ("batch", 1), ("model", "other")):
        other = [o | {"settings": o["settings"] | {name: value}} for o in old]
        assert set(verdicts(RESULT.timings, other).values()) == {"new"}


def test_another_processor_is_told(old):
    assert "another processor" not in against(RESULT, old)
    assert "another processor: Else" in against(RESULT, [o | {"machine": {"cpu": "Else"}} for o in old])


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"machine": {}, "settings": {}, "timings": []}]', None])
def test_what_is_no_comparison_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "old.json").write_text(content)
    with pytest.raises(BadInput, match="old.json: it cannot be read .*; give a file of --json"):
        read_old(tmp_path / "old.json")
