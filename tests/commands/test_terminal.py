import logging
import sys

import pytest
from PIL import Image

from cdiff_rt.commands import terminal
from tests.command_line import run


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the terminal reads, set by the test."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_a_minute_says_how_far_it_is(clock, caplog):
    with caplog.at_level(logging.INFO, "cdiff_rt"), terminal.Progress(10, "weights") as progress:
        for second in (10, 59, 61, 100, 125):
            clock[0] = second
            progress()
    assert caplog.messages == ["weights: 3 of 10", "weights: 5 of 10"]


def test_what_is_quick_or_quiet_says_nothing(clock, caplog, capfd):
    with caplog.at_level(logging.INFO, "cdiff_rt"), terminal.Progress(3, "denoising") as progress:
        progress()
    with caplog.at_level(logging.WARNING, "cdiff_rt"), terminal.Progress(3, "weights") as progress:
        clock[0] = 1000.0
        progress()
    assert caplog.messages == [] and capfd.readouterr() == ("", "")


STRANGE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\udcff\u200b\r"


def is_harmless(text):
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("option", ["--mask", "--image", "--jobs", "--condition", "--model", "--out", "--st\x1b[2Jeps"])
def test_no_name_in_an_error_reaches_the_terminal_as_it_is(option, tmp_path):
    command = ["edit", "--text", "A man."] if option == "--image" else ["generate"]
    value = f"sketch={STRANGE}" if option == "--condition" else tmp_path / STRANGE
    result = run(*command, option, value, *(["--mask", "none"] if option == "--out" else []))
    assert result.exit_code in (2, 3, 4)
    assert result.stderr.startswith("error: ") and is_harmless(result.stderr)


def test_no_name_in_a_note_a_result_or_a_traceback_does(mask, tmp_path):
    path, out = tmp_path / f"{STRANGE}.png", tmp_path / f"out{STRANGE}.png"
    Image.fromarray(mask).save(path)
    made = run("generate", "--mask", path, "--steps", 1, "--out", out)
    assert made.exit_code == 0 and out.exists()
    assert is_harmless(made.stderr) and is_harmless(made.stdout)
    assert "\\x1b]0;owned\\x07" in made.stderr and "\\u202egnp.exe" in made.stdout and "\\udcff" in made.stdout
    sys.argv.append("--debug")
    try:
        failed = run("--debug", "generate", "--mask", tmp_path / STRANGE)
    finally:
        sys.argv.remove("--debug")
    assert "Traceback" in failed.stderr and is_harmless(failed.stderr)


@pytest.mark.parametrize("name", ["a b.png", "Frau Müller (2).png", "彼女.png", "אישה.png", "😀.png", "%s {0} \\x1b"])
def test_usual_names_stand_as_they_are(name):
    assert terminal.shown(name) == name
