"""The first run on a GPU, without one: every command of the script exists, and its probes run in small on the CPU."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cdiff_rt.bench import probe
from tests.test_documents import parse

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "first_gpu_run.sh"
# A Python that notes what it is asked for and does {it}; the script's own small programs are run.
STAND_IN = """#!/bin/bash
if [ "$1" = - ]; then exec {python} "$@"; fi
if [ "$1" = -c ]; then case "$2" in *why_not*) echo -n {why} ;; esac; exit 0; fi
printf '%q ' "$@" >> {asked}; echo >> {asked}
case "$2" in *synthetic) mkdir -p "$4"; touch "$4/manifest.json" ;; esac
{it}
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("timeout"), reason="needs Linux's timeout")


def first_run(folder, it, why="", **environment):
    """summary.json, and the commands that were run."""
    python, asked, out = folder / "python", folder / "asked", folder / "out"
    python.write_text(STAND_IN.format(python=sys.executable, why=shlex.quote(why), asked=asked, it=it))
    python.chmod(0o755)
    asked.touch()
    given = {"PY": str(python), "OUT": str(out), **environment}
    done = subprocess.run(
        ["bash", SCRIPT], cwd=ROOT, env=os.environ | given, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "summary.json").read_text()), [
        shlex.split(line) for line in asked.read_text().splitlines()
    ]


def test_every_command_of_the_script_is_one_that_there_is(tmp_path):
    summary, asked = first_run(tmp_path, "echo all well")
    assert {step["state"] for step in summary["steps"]} == {"ok"} and len(summary["steps"]) >= 15
    assert {words[1] for words in asked} == {"cdiff_rt", "cdiff_rt.bench.probe", "cdiff_rt.bench.synthetic", "pytest"}
    for words in asked:
        if words[1] == "cdiff_rt":
            parse(shlex.join(words[1:]))
        if words[1] == "cdiff_rt.bench.probe":
            assert words[3] in probe.PARTS and len(words) == (9 if words[3] == "image" else 4)
        if words[1] == "pytest":
            assert (ROOT / next(word for word in words if word.startswith("tests/"))).exists()


@pytest.mark.slow
def test_what_fails_hangs_or_finds_nothing_leaves_the_rest_to_run(tmp_path):
    it = 'case "$*" in *ceilings*) echo half; exec sleep 30 ;; *"-m pytest "*) echo odd; exit 1 ;; esac'
    summary, _ = first_run(tmp_path, it, BUDGET="9")
    states = {step["step"]: step["state"] for step in summary["steps"]}
    assert states["test-kernels"] == states["test-torch-cuda"] == "failed"
    assert states["ceilings"] == "timed out" and states["image-512"] == "ok"
    told = {step["step"]: step["last line"] for step in summary["steps"]}
    assert sum(int(step["seconds"]) for step in summary["steps"]) <= 12
    assert told["ceilings"] == "half" and told["test-compiled"] == "no time is left of 9 s"


def test_without_a_gpu_it_says_why_and_runs_nothing(tmp_path):
    summary, asked = first_run(tmp_path, "exit 0", why="no NVIDIA driver is installed")
    assert [words[1:] for words in asked] == [["cdiff_rt", "doctor"]]
    skipped = [step for step in summary["steps"] if step["state"] == "skipped"]
    assert len(skipped) >= 8 and {step["last line"] for step in skipped} <= {
        "no NVIDIA driver is installed", "there is no model of 512 pixels"
    }  # fmt: skip


@pytest.mark.slow
def test_its_probes_run_in_small_on_the_cpu(tmp_path):
    done = subprocess.run(
        ["bash", SCRIPT],
        cwd=ROOT,
        env=os.environ | {"PY": sys.executable, "OUT": str(tmp_path), "PROBE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    states = {step["step"]: step["state"] for step in summary["steps"]}
    assert done.returncode == 0 and {name for name, state in states.items() if state == "ok"} >= {
        "here", "doctor", "image-128", "ceilings", "attention"
    }, done.stdout  # fmt: skip
    assert not [name for name, state in states.items() if state in ("failed", "timed out")], done.stdout
    found = summary["probes"]
    assert found["faces-128, torch, fp32, 1, 1"]["again the same"] and found["copy, GB/s read and written"] > 0
    assert "convolution" in found["faces-128, torch, fp32, 1, 1: kernels"]["ms per step"]
