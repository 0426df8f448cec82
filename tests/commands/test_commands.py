import logging
import sys
from pathlib import Path

import pytest

from cdiff_rt.commands.terminal import OneLine
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.version import __version__
from tests.command_line import check_refused, libraries_of, run
from tests.test_layout import HEAVY


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def test_an_unknown_command_is_exit_code_2():
    check_refused(run("paint"), 2, "No such command 'paint'", "--help")


def test_quiet_leaves_warnings_and_results_alone(mask_file, out):
    result = run("--quiet", "generate", "--mask", mask_file, "--text", "a purple man", "--steps", 1, "--out", out)
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: ") and "'purple'" in line and result.stdout.endswith("seed0-000.png\n")


def test_a_note_is_one_line_whatever_it_tells():
    record = logging.LogRecord("cdiff_rt", logging.INFO, "x.py", 1, "mask %s", ("a\nerror: b.png",), None)
    assert OneLine().format(record).splitlines() == ["note: mask a error: b.png"]


def test_debug_shows_a_traceback_with_the_error(out, monkeypatch):
    arguments = ["--debug", "generate", "--text", "", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["cdiff-rt", *arguments])
    result = run(*arguments)
    assert (
        "Traceback" in result.stderr and result.stderr.splitlines()[-1].startswith("error: ") and result.exit_code == 3
    )


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"cdiff-rt, version {__version__}\n")


@pytest.mark.parametrize("command", ["generate", "edit", "export", "bench time", "bench step", "bench quality"])
def test_help_shows_examples_line_by_line(command):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if line.strip().startswith(f"cdiff-rt {command} --")]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []], ids=str)
def test_help_lists_the_commands(arguments):
    result = run(*arguments)
    lines = (result.stdout + result.stderr).splitlines()
    commands = ["bench", "doctor", "edit", "export", "generate"]
    assert [name for name in commands if any(f"  {name} " in line for line in lines)] == commands
    assert not [line for line in lines if line.startswith("error: ") or line.startswith("  ") and line.endswith("...")]


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["bench", "--help"], ["export", "--help"]], ids=str)
def test_help_waits_for_no_library(command, root):
    assert not libraries_of(root, *command) & {"numpy", "PIL", "array_api_compat", "onnxruntime", *HEAVY}


@pytest.mark.parametrize("error", [RuntimeError("what\nnobody foresaw"), OSError(5, "Input/output error")], ids=repr)
def test_what_nobody_foresaw_is_one_line_and_with_debug_a_traceback(error, out, monkeypatch):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(Pipeline, "generate", broken)
    arguments = ["generate", "--text", "a man", "--out", out]
    check_refused(run(*arguments), 6 if isinstance(error, OSError) else 1, str(error).split()[-1])
    monkeypatch.setattr(sys, "argv", ["cdiff-rt", "--debug", *map(str, arguments)])
    assert "in broken" in run("--debug", *arguments).stderr
