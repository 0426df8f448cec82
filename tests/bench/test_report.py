import json

import numpy as np
import pytest

from cdiff_rt.bench.budget import Budget, Row
from cdiff_rt.bench.drift import Drift
from cdiff_rt.bench.drift import Row as DriftRow
from cdiff_rt.bench.floor import SPECIAL, Floor, Gpu, Work
from cdiff_rt.bench.quality import COLUMNS, Examination, Scores
from cdiff_rt.bench.report import budget_table, drift_table, quality_table, write_drift, write_quality
from cdiff_rt.exam import Exam
from tests.coded_exam import TRUTH, write_coded_exam

MACHINE = {
    "cpu": "A Processor",
    "cores": "2",
    "python": "3.12.1",
    "torch": "2.13.0",
    "onnxruntime": "1.32.0",
    "numpy": "2.4.6",
}


def test_a_budget_says_what_the_host_does_for_an_image_and_how_long_a_step_takes_at_least():
    rows = [Row("eager", 1000, None, 5_000_000, 2_000_000_000), Row("engines", 30, 1, 400_000, 2_000_000_000)]
    floor, peaks = Floor(), Gpu(bandwidth=1e12, arithmetic=1e12, multiprocessors=1, clock=1e12 / SPECIAL)
    floor.add("a.unet.in", "Conv2d", Work(2_000_000, 10_000_000))
    floor.add("a.unet.out", "Conv2d", Work(5_000_000, 1_000_000))
    floor.add("a.unet.mix", "Attention", Work(0, 0, 4_000_000))
    floor.add("a.unet", "UNet", Work())
    told = budget_table(Budget("tiny", "tensorrt-rtx", 50, rows, "A GPU", peaks, floor)).splitlines()
    assert told[0] == "tiny, batch 1, 50 steps; engines: tensorrt-rtx"
    assert told[4:6] == ["| eager | 1,000 | 50,000 | 5.0 | 2.00 |", "| engines | 30 | 1 of a graph | 0.4 | 2.00 |"]
    assert told[7].startswith("At least on A GPU")
    assert told[11:] == [
        "| a.unet, Conv2d | 2 | 7.0 | 0.01 | 0.0 | 15.0 |",
        "| a.unet, Attention | 1 | 0.0 | 0.00 | 4.0 | 4.0 |",
        "| all, one after the other | 3 | 7.0 | 0.01 | 4.0 | 19.0 |",
        "| all, side by side as far as they can be | | | | | 11.0 |",
    ]


ROWS = {
    "mask only": Scores(np.full(3, 0.4), np.array([[1, 0], [1, np.nan], [0, 0]]), np.full(3, np.nan)),
    "collaborative": Scores(np.array([0.25, 0.4, 1.0]), np.array([[1, 1], [1, np.nan], [1, 1]]), np.ones(3)),
}


@pytest.fixture
def exam(tmp_path):
    return Exam.open(write_coded_exam(tmp_path / "exam"))


def examination(exam):
    return Examination(MACHINE, {"model": "faces-128", "steps": 4}, exam, ROWS)


def test_quality_stands_under_a_line_that_says_what_was_judged(exam):
    first = quality_table(examination(exam)).splitlines()[0]
    for fact in ("A Processor", "torch 2.13.0", "model faces-128", "steps 4", "95 % interval", "mIoU >= 0.5"):
        assert fact in first


def test_quality_has_a_row_for_each_way_and_the_portraits_above(exam):
    header, rule, *rows = quality_table(examination(exam)).splitlines()[2:]
    assert len({line.count("|") for line in (header, rule, *rows)}) == 1
    assert [cell.strip() for cell in header.split("|")[2:-1]] == list(COLUMNS)
    portraits, mask_only, collaborative = ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)
    assert portraits == [
        "painted portraits, all",
        *(f"{m:.3f} [{low:.3f}, {high:.3f}]" for m, low, high in TRUTH.values()),
    ]
    assert mask_only[:2] == ["mask only", "0.400 [0.400, 0.400]"]
    assert mask_only[2].startswith("0.500 [") and mask_only[3:] == ["0.000 [0.000, 0.000]", "-"]
    assert collaborative[1] == "0.550 [0.250, 1.000]"
    assert collaborative[2] == collaborative[4] == "1.000 [1.000, 1.000]" and collaborative[3].startswith("0.333 [")


def test_quality_as_json_holds_every_image(exam, tmp_path):
    write_quality(examination(exam), tmp_path / "quality.json")
    data = json.loads((tmp_path / "quality.json").read_text(), parse_constant=pytest.fail)
    assert data["settings"] == {"model": "faces-128", "steps": 4}
    assert data["attributes"] == ["gender", "beard"]
    assert data["machine"] == MACHINE
    assert data["images"] == {
        "mask only": {
            "mIoU": [0.4, 0.4, 0.4],
            "attributes": [0.5, 1.0, 0.0],
            "both": [0.0, 0.0, 0.0],
            "face": [None, None, None],
            "right": [[1.0, 0.0], [1.0, None], [0.0, 0.0]],
        },
        "collaborative": {
            "mIoU": [0.25, 0.4, 1.0],
            "attributes": [1.0, 1.0, 1.0],
            "both": [0.0, 0.0, 1.0],
            "face": [1.0, 1.0, 1.0],
            "right": [[1.0, 1.0], [1.0, None], [1.0, 1.0]],
        },
    }


DRIFT = Drift(
    MACHINE,
    {"model": "tiny", "seed": 0, "pairs": 3},
    [DriftRow("fast", "exact", np.array([0.5, 0.1, 0.2]), np.array([10.0, np.inf, 30.0]), np.array([0.5, 1.0, 0.75]))],
)


def test_drift_is_a_median_between_the_extremes():
    first, _, header, _, row = drift_table(DRIFT).splitlines()
    assert "A Processor" in first and "pairs 3" in first and header.count("|") == row.count("|")
    assert row == "| fast | exact | 0.200 (0.100 to 0.500) | 30.0 (10.0 to inf) | 0.750 (0.500 to 1.000) |"


def test_drift_as_json_holds_every_pair(tmp_path):
    write_drift(DRIFT, tmp_path / "drift.json")
    data = json.loads((tmp_path / "drift.json").read_text())
    assert data["machine"] == MACHINE and data["settings"]["pairs"] == 3
    figures = {"error": [0.5, 0.1, 0.2], "psnr": [10.0, None, 30.0], "ssim": [0.5, 1.0, 0.75]}
    assert data["rows"] == [{"name": "fast", "against": "exact"} | figures]
