import json
from dataclasses import replace
from pathlib import Path

import pytest

from cdiff_rt import exam as exam_module
from cdiff_rt.bench import drift, latency
from cdiff_rt.bench.comparison import Comparison, Timing
from cdiff_rt.errors import BadEnvironment, BadRequest
from cdiff_rt.manifest import digest
from cdiff_rt.pipeline import Pipeline
from tests.coded_exam import write_coded_exam
from tests.command_line import check_refused, run


@pytest.fixture
def exam(tmp_path, monkeypatch) -> Path:
    """The folder of faces-128's only exam."""
    monkeypatch.setattr(exam_module, "EXAMS", tmp_path / "exams")
    return write_coded_exam(tmp_path / "exams" / "faces-128")


def test_quality_is_a_table_and_on_request_images_and_json(exam, tmp_path):
    images, figures = tmp_path / "judged", tmp_path / "quality.json"
    result = run("bench", "quality", "--pairs", 2, "--steps", 1, "--images", images, "--json", figures)
    assert result.exit_code == 0
    first, _, header, _, *rows = result.stdout.splitlines()
    assert "sampling ddim, 1 steps, eta 1, seed 0, pairs 2;" in first and header.startswith("| images | mIoU |")
    ways = ["mask only", "text only", "plain mean", "collaborative, softmax as trained", "collaborative"]
    assert [row.split("|")[1].strip() for row in rows] == [
        "painted portraits, all", *ways, "collaborative, shuffled pairs"
    ]  # fmt: skip
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ways
    assert sorted(str(path.relative_to(images)) for path in images.rglob("*.png")) == sorted(
        f"{way}/{name}.png" for way in ways for name in ("000", "001")
    )
    data = json.loads(figures.read_text())
    assert list(data["images"]) == [*ways, "collaborative, shuffled pairs"]
    assert len(data["images"]["collaborative"]["mIoU"]) == 2


def test_quality_of_a_model_without_an_exam_is_exit_code_2(exam, bundle_copy):
    manifest = bundle_copy / "manifest.json"
    data = json.loads(manifest.read_text()) | {"name": "my-faces"}
    manifest.write_text(json.dumps(data | {"digest": digest(data)}))
    result = run("bench", "quality", "--model", bundle_copy)
    check_refused(result, 2, "no exam for the model 'my-faces'", "there is one for faces-128")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "cuda"], "'cuda'"),
        (["--pairs", 1], "'--pairs': 1"),
        (["--pairs", 2, "--steps", 0], "steps: 0"),
        (["--images", "."], "images: . exists"),
    ],
    ids=str,
)
def test_bad_parameters_of_quality_are_one_line_and_exit_code_2(arguments, words, exam):
    check_refused(run("bench", "quality", *arguments), 2, words)


@pytest.mark.slow
def test_drift_is_a_table_and_on_request_json(exam, tmp_path):
    figures = tmp_path / "drift.json"
    result = run("bench", "drift", "--solver", "dpmpp-2m-sde", "--steps", 2, "--pairs", 2, "--json", figures)
    assert result.exit_code == 0
    first, _, header, _, ours, scale = result.stdout.splitlines()
    assert "seed 0, pairs 2;" in first and header.startswith("| sampling | against |")
    assert ours.startswith("| dpmpp-2m-sde, 2 steps, eta 1 | exact: ddim, 50 steps, eta 1 |")
    assert "with other noise, for scale" in scale
    assert [len(row["error"]) for row in json.loads(figures.read_text())["rows"]] == [2, 2]


def test_an_earlier_benchmark_that_cannot_be_read_is_exit_code_3(tmp_path):
    (tmp_path / "old.json").write_text("[]]")
    check_refused(
        run("bench", "time", "--model", "no-such", "--compare", tmp_path / "old.json"), 3, "it cannot be read"
    )


@pytest.mark.slow
def test_a_benchmark_is_a_table_and_on_request_files(tmp_path, monkeypatch):
    monkeypatch.setattr("cdiff_rt.bench.latency.SECONDS", 0.0)
    monkeypatch.setattr("cdiff_rt.bench.latency.measure", lambda: None)
    files = [tmp_path / name for name in ("bench.json", "bench.csv", "bench.svg")]
    saving = [
        part for option, file in zip(("--json", "--csv", "--plot"), files, strict=True) for part in (option, file)
    ]
    how = ["step", "--backend", "onnxruntime", "--tier", "exact", "--tier", "fast", "--repeats", 3]
    result = run("bench", *how, *saving)
    assert result.exit_code == 0, result.output
    first, _, legend, _, header, _, *rows = result.stdout.strip().splitlines()
    assert "what step" in first and "spread: " in legend and header.startswith("| case | median ms |")
    assert [row.split("|")[1].strip() for row in rows] == ["onnxruntime", "onnxruntime, fast"]
    assert all(file.stat().st_size > 100 for file in files)
    again = run("bench", *how[:3], "--repeats", 3, "--compare", files[0])
    assert again.exit_code == 0 and "| case | old median ms |" in again.stdout


def test_the_start_is_timed(monkeypatch):
    monkeypatch.setattr("cdiff_rt.bench.startup.seconds", lambda arguments: 0.25)
    result = run("bench", "start", "--repeats", 3)
    assert result.exit_code == 0
    assert [row.split("|")[1:3] for row in result.stdout.splitlines() if row.startswith("| cdiff-rt")] == [
        [" cdiff-rt --help ", " 250 "], [" cdiff-rt generate, one image ", " 250 "]
    ]  # fmt: skip


def test_an_altered_exam_is_exit_code_4(exam):
    with (exam / exam_module.MASKS).open("ab") as file:
        file.write(b"x")
    check_refused(run("bench", "quality"), 4, "exam faces-128: masks.png was altered", "recipes.faces.judge")


@pytest.mark.parametrize("option", ["--json", "--images"])
def test_figures_that_cannot_be_written_are_found_before_the_model_loads(option):
    result = run("bench", "quality", "--model", "no-such", option, "/proc/nonexistent/x")
    check_refused(result, 3, "output folder /proc/nonexistent")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quality", "--batch", 2], "No such option '--batch'"),
        (["quality", "--tier", "fast", "--steps", 3], "tier: fast and steps of your own"),
        (["budget", "--tier", "fast"], "No such option '--tier'"),
        (["drift", "--images", "x"], "No such option '--images'"),
        (["time", "--pairs", 2], "No such option '--pairs'"),
        (["step", "--suite", "gpu"], "No such option '--suite'"),
        (["time", "--tier", "fast", "--steps", 3], "tier: fast and steps of your own"),
        (["time", "--plot", "x.png"], "plot: x.png; it is drawn as .svg"),
        (["time", "--backend", "cuda"], "backend: 'cuda'; the CPU suite has torch, "),
        (["time", "--backend", "onnxruntime", "--precision", "bf16"], "precision: bf16; these cases compute in fp32"),
        (["paint"], "No such command 'paint'"),
    ],
    ids=str,
)
def test_bad_parameters_of_a_benchmark_are_exit_code_2(arguments, words):
    check_refused(run("--quiet", "bench", *arguments), 2, words)


@pytest.mark.parametrize("command", ["time", "step", "quality", "drift", "budget", "start"])
def test_each_measurement_has_help_of_its_own(command):
    assert f"Usage: cdiff-rt bench {command} [OPTIONS]" in run("bench", command, "--help").stdout.replace(
        "main", "cdiff-rt"
    )


def test_what_was_timed_is_in_the_file_though_the_benchmark_does_not_end(monkeypatch, tmp_path):
    known = Comparison({"cpu": "x", "cores": "2", "python": "3"}, {"batch": 1}, [Timing("torch", 1.0, 1.0, [2.0] * 3)])

    def suite(*given, keep, **more):
        yield known
        keep(replace(known, settings={"batch": 2}, left_out={"tensorrt": "none was built"}))
        raise BadEnvironment("benchmark", "the GPU fell off the bus", "restart")

    monkeypatch.setattr("cdiff_rt.bench.latency.compare_suite", suite)
    files = [tmp_path / name for name in ("gpu.json", "gpu.csv")]
    result = run("bench", "time", "--suite", "gpu", "--json", files[0], "--csv", files[1])
    assert result.exit_code == 5 and "| torch | 2 |" in result.stdout and "fell off the bus" in result.stderr
    _, second = json.loads(files[0].read_text())
    assert second["settings"] == {"batch": 2} and second["left out"] == {"tensorrt": "none was built"}
    assert len(files[1].read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("time --batch 1 --batch 0", "batch: 0 is outside 1-256"),
        ("time --steps 5000", "steps: 5000 is outside 1-1000"),
        ("step --after 5000", "steps: 5000 is outside 1-1000"),
        ("time --json .", "out: . is a folder; give the name of a file"),
        ("drift --steps 5000", "steps: 5000 is outside 1-1000"),
        ("drift --solver dpmpp-2m --steps 1000", "steps: 1000 is outside 2-999"),
        ("drift --json .", "out: . is a folder"),
    ],
)
def test_what_no_run_may_have_is_refused_before_anything_is_measured(command, words, monkeypatch):
    monkeypatch.setattr(latency, "measure", lambda: pytest.fail("it began to measure"))
    monkeypatch.setattr(Pipeline, "generate", lambda *given, **more: pytest.fail("it began to run"))
    check_refused(run("bench", *command.split(), "--backend", "onnxruntime"), 2, words)


@pytest.mark.parametrize(
    ("given", "expected"), [("", "fast"), ("--tier exact", "exact"), ("--tier turbo", "turbo"), ("--steps 25", None)]
)
def test_drift_measures_another_tier_than_exact_unless_it_is_asked_to(given, expected, monkeypatch):
    seen = []

    def measure(how, **more):
        seen.append(how.tier)
        raise BadRequest("enough", "is", "known")

    monkeypatch.setattr(drift, "measure", measure)
    check_refused(run("bench", "drift", *given.split()), 2, "enough")
    assert seen == [expected]
