"""`cdiff-rt generate --jobs`, up to a process that is killed on the way."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cdiff_rt.jobs.results import DATASET
from cdiff_rt.outputs.files import PLACE
from cdiff_rt.pipeline import Pipeline
from tests.command_line import check_refused, run

TEXT = "This man has a long beard."


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def write(folder: Path, *rows: dict) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def ids(results: Path) -> list[str]:
    return [json.loads(line)["id"] for line in results.read_text().splitlines()]


def test_each_row_becomes_the_image_of_a_single_call(mask_file, out, tmp_path):
    jobs = write(
        tmp_path,
        {"id": "a", "mask": "face.png", "text": TEXT, "seed": 7, "first": 2, "tier": "fast", "factor": 3, "boost": 2},
        {"text": TEXT, "steps": 2, "eta": 0, "temperature": 1, "decay": "none", "rounding": "nearest"},
        {"mask": "face.png", "text": TEXT, "steps": 2, "sharpness": 0.5, "without": ["text"]},
    )
    result = run("generate", "--jobs", jobs, "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}/results-1-of-1.jsonl: 3 made, 0 there already, 0 failed\n")
    single = {
        "a": f"--mask {mask_file} --seed 7 --first 2 --tier fast --factor 3 --boost 2 --text",
        "000002": "--seed 1 --steps 2 --eta 0 --temperature 1 --decay none --rounding nearest --text",
        "000003": f"--mask {mask_file} --seed 2 --steps 2 --sharpness 0.5 --without text --text",
    }
    for name, options in single.items():
        assert run("generate", "--out", tmp_path / "single.png", "--force", *options.split(), TEXT).exit_code == 0
        assert (out / f"{name}.png").read_bytes() == (tmp_path / "single.png").read_bytes()


def test_notes_of_rows_are_not_between_the_lines(mask_file, out, tmp_path):
    jobs = write(tmp_path, {"mask": "face.png", "text": "purple", "steps": 1, "seed": 7})
    command = [sys.executable, "-m", "cdiff_rt", "generate", "--jobs", jobs, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # pytest's own handlers hide Python's
    assert (done.returncode, done.stderr) == (0, "")
    assert "'purple'" in (out / "results-1-of-1.jsonl").read_text()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a", "colour": 1}', "key: 'colour'"),
        ('{"text": "a", "seed": "1"}', "seed: '1'"),
        ('{"text": "a", "id": "one"}', "id: 'one' is that of line 1 too"),
        ('{"mask": "no.png"}', "no.png: there is no such file"),
        ("not JSON", "not JSON"),
        ('{"text": "\\u001b[31m"}', "U+001B"),
    ],
)
def test_a_bad_row_is_one_line_with_its_number_and_exit_code_3(line, words, out, tmp_path):
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(f'{{"id": "one", "text": "a"}}\n{line}\n')
    check_refused(run("generate", "--jobs", jobs, "--out", out), 3, f"{jobs}, line 2: ", words)
    assert not out.exists()


@pytest.mark.parametrize(("content", "words"), [(None, "there is no such file"), (b"", "0 bytes")])
def test_a_file_of_jobs_that_is_none_is_exit_code_3(content, words, out, tmp_path):
    if content is not None:
        (tmp_path / "jobs.jsonl").write_bytes(content)
    check_refused(run("generate", "--jobs", tmp_path / "jobs.jsonl", "--out", out), 3, words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", 2], "--batch does not go"),
        (["--inpaint", "a.png", "--keep", "b.png"], "--inpaint does not go"),
        (["--steps", 7], "steps: 7"),
        (["--tier", "fast", "--steps", 4], "tier: fast and steps of your own"),
        (["--condition", "a=b"], "condition: 'a'; faces-128 knows mask, text"),
        (["--save-overlay"], "line 1: overlay: no condition of this run can be drawn"),
        (["--resume", "--force"], "resume: it is set, and so is force"),
        (["--shard", "3/2"], "shard: '3/2'; write i/n"),
        (["--out", "a.png"], "one file, a.png, for many images"),
        (["--backend", "no"], "backend: 'no'"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_exit_code_2(options, words, out, tmp_path):
    jobs = write(tmp_path, {"text": TEXT})
    check_refused(run("generate", "--jobs", jobs, "--out", out, *options), 2, words)
    assert not out.exists()


@pytest.mark.parametrize("options", [["--resume"], ["--shard", "1/2"]], ids=str)
def test_options_of_jobs_alone_are_exit_code_2(options, out):
    check_refused(run("generate", "--text", TEXT, "--out", out, *options), 2, f"{options[0]} goes with --jobs")
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_exit_code_3(tmp_path):
    jobs = write(tmp_path, {"text": TEXT})
    for more in ([], ["--resume"]):
        result = run("generate", "--jobs", jobs, "--out", "/proc/nonexistent", *more)
        check_refused(result, 3, "output folder /proc/nonexistent")


def test_rows_that_fail_are_told_and_exit_code_3(bad_mask, out, tmp_path):
    jobs = write(tmp_path, {"mask": bad_mask.path.name, "seed": 1}, {"text": TEXT, "steps": 1, "seed": 2})
    result = run("generate", "--jobs", jobs, "--out", out)
    if not bad_mask.path.is_file() or not bad_mask.path.stat().st_size:  # it is found before anything runs
        check_refused(result, 3, f"{jobs}, line 1: ", *bad_mask.words)
        return
    assert result.exit_code == 3
    assert result.stdout == f"{out}/results-1-of-1.jsonl: 1 made, 0 there already, 1 failed\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: jobs: 1 of 2 failed, the first by: line 1, 000001: ") and "--resume" in line
    assert [word for word in bad_mask.words if word not in line] == []
    assert list(images(out)) == ["000002.png"]


def test_without_resume_what_is_there_is_refused_and_by_force_made_anew(out, tmp_path):
    jobs = write(tmp_path, {"text": TEXT, "steps": 1}, {"text": "a woman", "steps": 1})
    assert run("generate", "--jobs", jobs, "--out", out).exit_code == 0
    before = images(out)
    check_refused(
        run("generate", "--jobs", jobs, "--out", out), 2, "results-1-of-1.jsonl exists", "--resume", "--force"
    )
    result = run("generate", "--jobs", jobs, "--out", out, "--resume")
    assert result.stdout.endswith(": 0 made, 2 there already, 0 failed\n")
    result = run("generate", "--jobs", jobs, "--out", out, "--force")
    assert result.stdout.endswith(": 2 made, 0 there already, 0 failed\n") and images(out) == before


def test_an_interrupt_is_exit_code_130_and_keeps_what_is_made(out, tmp_path, monkeypatch):
    jobs, real = write(tmp_path, *({"text": TEXT, "seed": seed, "steps": 1} for seed in (0, 1))), Pipeline.generate

    def interrupted(self, settings, **more):
        if settings.seed == 1:
            raise KeyboardInterrupt
        return real(self, settings, **more)

    monkeypatch.setattr(Pipeline, "generate", interrupted)
    words = ["generate", "--jobs", str(jobs), "--out", str(out), "--seed", "random", "--force"]
    monkeypatch.setattr(sys, "argv", ["cdiff-rt", *words])
    result = run(*words)
    drawn, last = result.stderr.split("\n")[0].removeprefix("note: seed "), result.stderr.splitlines()[-1]
    again = shlex.join(["cdiff-rt", *words[:-1], "--seed", drawn, "--resume"])
    assert (result.exit_code, last) == (130, f"error: interrupted; go on with `{again}`")
    assert sorted(path.name for path in out.iterdir()) == ["000001.png", "results-1-of-1.jsonl"]


def test_a_run_that_was_killed_goes_on_and_loses_and_doubles_nothing(root, out, tmp_path, mask_file):
    rows = [{"id": f"i{i}", "mask": "face.png", "text": TEXT, "seed": i, "steps": 8} for i in range(8)]
    jobs, results = write(tmp_path, *rows), out / "results-1-of-1.jsonl"
    command = [sys.executable, "-m", "cdiff_rt", "generate", "--jobs", str(jobs), "--out", str(out)]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (results.exists() and results.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = ids(results)
    assert 2 <= len(done) < 8 and (out / PLACE / "results-1-of-1").is_dir()
    with results.open("ab") as file:
        file.write(results.read_bytes()[:40])  # and it was writing
    result = run("generate", "--jobs", jobs, "--out", out, "--resume")
    assert result.stdout == f"{results}: {8 - len(done)} made, {len(done)} there already, 0 failed\n"
    assert sorted(ids(results)) == [row["id"] for row in rows]
    assert sorted(path.name for path in out.iterdir()) == [DATASET, *(f"i{i}.png" for i in range(8)), results.name]
    assert run("generate", "--jobs", jobs, "--out", tmp_path / "whole").exit_code == 0
    assert images(out) == images(tmp_path / "whole")


def test_a_damaged_image_of_a_row_is_made_again(out, tmp_path):
    jobs = write(tmp_path, {"text": TEXT, "steps": 1})
    assert run("generate", "--jobs", jobs, "--out", out).exit_code == 0
    (out / "000001.png").write_bytes(b"torn")
    assert run("generate", "--jobs", jobs, "--out", out, "--resume").stdout.endswith(
        "1 made, 0 there already, 0 failed\n"
    )
    with Image.open(out / "000001.png") as image:
        assert image.size == (128, 128)


def test_a_table_under_defaults_becomes_the_images_of_single_calls(mask_file, out, tmp_path):
    (tmp_path / "jobs.csv").write_text("id;text;tier\na;a man;\nb;a woman;fast\n")
    defaults = ["--mask", mask_file, "--steps", 2, "--seed", 40]
    result = run("generate", "--jobs", tmp_path / "jobs.csv", "--out", out, *defaults, "--save-latent")
    assert result.exit_code == 0
    assert result.stderr == "note: jobs: no seed in 2 of 2 rows; they take their numbers, from 40 on\n"
    for name, options in {"a": ["a man", "--steps", 2], "b": ["a woman", "--tier", "fast"]}.items():
        seed = 40 + (name == "b")
        more = ["--mask", mask_file, "--seed", seed, "--save-latent", "--out", tmp_path / f"{name}.png"]
        assert run("generate", "--text", *options, *more).exit_code == 0
        for suffix in (".png", ".npz"):
            assert (out / f"{name}{suffix}").read_bytes() == (tmp_path / f"{name}{suffix}").read_bytes()


def test_rows_that_are_wrong_are_a_line_each_and_nothing_is_made(out, tmp_path):
    jobs = write(tmp_path, {"text": "a", "seed": "1"}, {"text": "a"}, {"id": "train/1", "text": "a"})
    result = run("generate", "--jobs", jobs, "--out", out)
    first, second, last = result.stderr.splitlines()
    assert first == f"error: {jobs}, line 1: seed: '1'; give a whole number"
    assert second.startswith(f"error: {jobs}, line 3: id: 'train/1'; an id has no folders: write train-1,")
    assert last == f"error: jobs {jobs}: 2 of 3 rows are wrong; correct them, they are named above"
    assert (result.exit_code, result.stdout, out.exists()) == (3, "", False)


def test_rows_that_fail_are_listed_with_line_and_id(out, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    rows = [{"id": f"i{n}", "mask": "bad.png", "seed": n} for n in range(22)]
    jobs = write(tmp_path, {"text": TEXT, "steps": 1, "seed": 1}, *rows)
    result = run("generate", "--jobs", jobs, "--out", out)
    *listed, last = result.stderr.splitlines()
    assert [line.split(":")[1] for line in listed] == [f" line {n + 2}, i{n}" for n in range(20)]
    assert all("mask bad.png: it cannot be read" in line for line in listed)
    assert last.startswith("error: jobs: 22 of 23 failed, the first by: line 2, i0: ") and "--resume" in last
    assert result.exit_code == 3
