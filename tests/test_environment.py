"""Odd environments: an image, the same one, or a line that says what is odd."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GENERATE = ("generate", "--text", "man", "--steps", "1", "--out")
slow = pytest.mark.slow


def run(words, changes, *options, cwd=ROOT):
    environment = {name: value for name, value in os.environ.items() if name not in changes} | {
        name: value for name, value in changes.items() if value is not None
    }
    command = [sys.executable, *options, "-m", "cdiff_rt", *map(str, words)]
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The hash of what an ordinary environment makes."""
    path = tmp_path_factory.mktemp("usual") / "a.png"
    assert run((*GENERATE, path), {}).returncode == 0
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"HOME": None, "XDG_CACHE_HOME": None, "LANG": "C", "LC_ALL": "C"}, []),
        ({"CUDA_VISIBLE_DEVICES": "99", "OMP_NUM_THREADS": "0", "PYTHONHASHSEED": "1"}, ["-O"]),
        pytest.param({"HOME": "", "XDG_CACHE_HOME": "", "CDIFF_CACHE": ""}, [], marks=slow),
        pytest.param({"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "PATH": ""}, [], marks=slow),
        pytest.param({"LANG": "nonsense", "LC_ALL": "xx_XX.KOI8", "TERM": "", "COLUMNS": "x"}, [], marks=slow),
        pytest.param({"PYTHONHASHSEED": "12345"}, ["-OO"], marks=slow),
        pytest.param({"PYTHONWARNINGS": "error"}, ["-X", "dev"], marks=slow),
        pytest.param(
            {"ORT_DISABLE_TELEMETRY": "", "KMP_AFFINITY": "nonsense", "OPENBLAS_NUM_THREADS": "x"}, [], marks=slow
        ),
    ],
    ids=str,
)
def test_the_image_is_the_same_in(changes, options, usual, tmp_path):
    done = run((*GENERATE, tmp_path / "ä ö.png"), changes, *options)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((tmp_path / "ä ö.png").read_bytes()).hexdigest() == usual


@slow
@pytest.mark.parametrize("options", [["-O"], ["-OO"]], ids=str)
def test_bad_input_is_refused_without_assertions_too(options, tmp_path):
    (tmp_path / "old.json").write_text('[{"machine": {"cpu": ""}, "settings": {"batch": 1}, "timings": []}]')
    done = run(("bench", "start", "--compare", tmp_path / "old.json"), {}, *options)
    assert done.returncode == 3 and "old.json: it cannot be read" in done.stderr and "Traceback" not in done.stderr


@slow
@pytest.mark.parametrize("changes", [{"HOME": None}, {"HOME": ""}, {"XDG_CACHE_HOME": "relative"}], ids=str)
def test_doctor_answers_in(changes):
    done = run(("doctor",), changes)
    assert done.returncode == 0 and "ready   yes" in done.stdout and done.stderr == ""
