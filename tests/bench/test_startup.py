import pytest

from cdiff_rt.bench import startup as module
from cdiff_rt.bench.startup import measure, seconds
from cdiff_rt.errors import BadArtefact, BadEnvironment


def test_both_commands_are_timed_in_new_processes(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "seconds", lambda arguments: calls.append(arguments[0]) or len(calls))
    result = measure("faces-128", 3)
    assert calls == ["--help", "generate"] * (1 + 2 + 3)
    assert [timing.load_s for timing in result.timings] == [1, 2]
    assert [timing.ms for timing in result.timings] == [[7000, 9000, 11000], [8000, 10000, 12000]]


def test_a_command_that_fails_is_no_measurement(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 0.01 < seconds(["--help"]) < 60
    with pytest.raises(BadArtefact, match="^model: there is no bundle 'no-such'; give a bundle's folder or one of"):
        seconds(["generate", "--model", "no-such", "--text", "x"])
    with pytest.raises(BadEnvironment, match="^cdiff-rt nothing: it ended with 2: error: No such command"):
        seconds(["nothing"])
