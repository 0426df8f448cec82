from importlib import metadata
from types import SimpleNamespace

import pytest

from cdiff_rt import doctor
from cdiff_rt.engines.backends import BACKENDS, Backend
from cdiff_rt.version import __version__
from tests.standin_driver import machine, run


def test_it_tells_the_versions_and_that_the_embedded_model_works():
    rows, healthy = doctor.examine()
    assert healthy and rows[0].startswith(f"cdiff-rt {__version__}, Python ")
    assert [row.split() for row in rows if "numpy" in row] == [["library", "numpy", metadata.version("numpy")]]
    assert ["model", "faces-128", "intact"] in [row.split() for row in rows]
    assert ["backend", "onnxruntime", "works"] in [row.split() for row in rows]


def test_a_missing_library_is_named_and_nothing_works_without_any(monkeypatch):
    for name in BACKENDS:
        monkeypatch.setitem(BACKENDS, name, Backend("no_such_module:load", ("no_such_library",), "cpu"))
    rows, healthy = doctor.examine()
    assert not healthy
    assert [row.split(None, 2)[2] for row in rows if row.startswith("backend")] == [
        "no_such_library not installed: `pip install '.[cpu]'` in the checkout"
    ] * len(BACKENDS)


@pytest.mark.parametrize(
    ("file", "words"), [("vocab.txt", "vocab.txt was altered"), ("manifest.json", "not valid JSON")]
)
def test_an_altered_model_is_told_and_not_tried(file, words, bundle_copy, monkeypatch):
    bundle_copy.rename(bundle_copy.with_name("faces-128"))
    monkeypatch.setattr(doctor, "MODELS", bundle_copy.parent)
    (bundle_copy.with_name("faces-128") / file).write_text("x")
    rows, healthy = doctor.examine()
    assert not healthy
    assert [row for row in rows if row.startswith("model") and words in row]
    assert [row for row in rows if row.startswith("backend") and "no intact model" in row]


@pytest.mark.parametrize(
    "error", [RuntimeError("two\nlines"), OSError(5, "x"), SystemExit(3), AssertionError()], ids=repr
)
@pytest.mark.parametrize("part", ["load_runner", "lacking"])
def test_a_backend_that_raises_anything_is_a_line_among_others(error, part, monkeypatch):
    def probe(*given):
        if "openvino" in given:
            raise error
        return [] if part == "lacking" else SimpleNamespace(call=lambda *given, **inputs: None)

    monkeypatch.setattr(doctor, "load_runner", lambda *given: SimpleNamespace(call=lambda *given, **inputs: None))
    monkeypatch.setattr(doctor, "_in_a_process", lambda name: "works")
    monkeypatch.setattr(doctor, part, probe)
    rows, healthy = doctor.examine()
    states = {row.split()[1]: row.split(None, 2)[2] for row in rows if row.startswith("backend")}
    assert healthy and set(states) == set(BACKENDS) and states["onnxruntime"] == "works"
    assert states["openvino"].startswith(f"does not work ({type(error).__name__}: ") and "\n" not in states["openvino"]


@pytest.mark.parametrize(
    ("child", "state"),
    [
        ("raise SystemExit(0)", "works"),
        (
            "import sys; print('note: x\\nerror: no engine; build it\\n', file=sys.stderr); sys.exit(4)",
            "no engine; build it",
        ),
        ("import os; os.kill(os.getpid(), 11)", "its process ended with SIGSEGV (it said nothing)"),
        ("raise OSError('odd')", "OSError: odd"),
        ("import time; time.sleep(9)", "no picture after 0.5 s"),
    ],
    ids=["works", "refused", "crashes", "raises", "hangs"],
)
def test_a_backend_on_a_gpu_makes_a_picture_in_a_process_of_its_own(child, state, monkeypatch, bundle):
    real, seen = doctor.subprocess.run, []

    def run(command, **how):
        seen.append(command)
        return real([command[0], "-c", child], **how)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    monkeypatch.setattr(doctor, "lacking", lambda name: [])
    if "sleep" in child:
        monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    assert doctor._state("torch-cuda", bundle) == state
    ((_, *words),) = seen
    assert words[:2] == ["-m", "cdiff_rt"] and words[words.index("--backend") + 1] == "torch-cuda"


def test_a_gpu_that_this_torch_cannot_use_ends_neither_doctor_nor_auto(tmp_path):
    """The whole way, through the commands."""
    environment = machine(tmp_path, torch="None")
    told = run(environment, "-m", "cdiff_rt", "doctor")
    assert told.returncode == 0 and told.stderr == "" and "Stand-in GPU, compute capability 9.0" in told.stdout
    rows = [row for row in told.stdout.splitlines() if row.startswith("backend") and "this torch is a build" in row]
    assert {row.split()[1] for row in rows} == {name for name in BACKENDS if BACKENDS[name].device == "cuda"}
    words = ("generate", "--text", "man", "--steps", 1, "--backend")
    auto = run(environment, "-m", "cdiff_rt", *words, "auto", "--out", tmp_path / "a.png")
    assert auto.returncode == 0 and "torch-cuda: this torch is a build for the CPU" in auto.stderr
    named = run(environment, "-m", "cdiff_rt", *words, "torch-cuda", "--out", tmp_path / "b.png")
    assert named.returncode == 5 and len(named.stderr.splitlines()) == 1 and not (tmp_path / "b.png").exists()
