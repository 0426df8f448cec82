import platform
from pathlib import Path

import pytest

from cdiff_rt.bench import machine as module
from cdiff_rt.bench.machine import machine, multiplies_bf16
from cdiff_rt.version import __version__


def test_machine_says_what_was_measured_on():
    facts = machine()
    assert facts["cdiff-rt"] == __version__
    assert facts["python"] == platform.python_version()
    assert int(facts["cores"]) >= 1
    assert facts["cpu"] and facts["memory"]
    assert {"numpy", "onnxruntime", "torch"} <= set(facts)
    assert "not installed" not in facts.values()


def test_it_says_what_of_the_environment_changes_times(monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "7")
    monkeypatch.setenv("UNRELATED", "7")
    assert machine()["MALLOC_TOP_PAD_"] == "7" and "UNRELATED" not in machine()


@pytest.mark.parametrize(
    ("line", "able"),
    [
        ("flags : fpu avx512f avx512_bf16", True),
        ("flags : fpu amx_bf16", True),
        ("Features : fp asimd bf16", True),
        ("flags : fpu avx512f", False),
        ("flags : not_amx_bf16", False),
        ("bugs : bf16", False),
        ("", False),
    ],
)
def test_a_processor_says_whether_it_multiplies_bf16(line, able, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n")
    monkeypatch.setattr(module, "PROC", tmp_path)
    assert multiplies_bf16() is able


def test_where_nothing_can_be_asked_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(module, "PROC", Path("/no/such/folder"))
    assert not multiplies_bf16()
    assert machine()["memory"] == "unknown"
