import logging
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from cdiff_rt.commands import terminal
from cdiff_rt.jobs.results import Outcome
from cdiff_rt.jobs.rows import Job
from cdiff_rt.notes import log
from cdiff_rt.settings import Settings
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


def test_jobs_tell_a_line_a_minute_and_nothing_of_their_rows(clock, caplog, capfd):
    def outcomes():
        for number in range(1, 4):
            log.warning("of row %d", number)
            clock[0] += 61
            yield Outcome(f"i{number}", 0, 61.0)

    work = SimpleNamespace(jobs=[Job(f"i{n}", {}, Settings()) for n in range(1, 4)], kept=[], results="results.jsonl")
    written = logging.StreamHandler()
    log.addHandler(written)
    with caplog.at_level(logging.INFO, "cdiff_rt"):
        terminal.follow(work, outcomes())
    log.removeHandler(written)
    told, notes = capfd.readouterr()
    assert notes.splitlines() == ["images: 1 of 3", "images: 2 of 3", "images: 3 of 3"]
    assert told == "results.jsonl: 3 made, 0 there already, 0 failed\n"


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
    logged = STRANGE.replace("\udcff", "")  # half a character in a log ends pytest's workers
    path, out = tmp_path / f"{logged}.png", tmp_path / f"out{STRANGE}.png"
    Image.fromarray(mask).save(path)
    made = run("generate", "--mask", path, "--steps", 1, "--out", out)
    assert made.exit_code == 0 and out.exists()
    assert is_harmless(made.stderr) and is_harmless(made.stdout)
    assert "\\x1b]0;owned\\x07" in made.stderr and "\\u202egnp.exe" in made.stdout and "\\udcff" in made.stdout
    sys.argv.append("--debug")
    try:
        failed = run("--debug", "generate", "--mask", tmp_path / logged)
    finally:
        sys.argv.remove("--debug")
    assert "Traceback" in failed.stderr and is_harmless(failed.stderr)


@pytest.mark.parametrize("name", ["a b.png", "Frau Müller (2).png", "彼女.png", "אישה.png", "😀.png", "%s {0} \\x1b"])
def test_usual_names_stand_as_they_are(name):
    assert terminal.shown(name) == name


GENERATE = f"{shlex.quote(sys.executable)} -m cdiff_rt generate --steps 1 --text"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
@pytest.mark.parametrize(
    ("where", "told"),
    [
        (">/dev/full 2>/dev/full", ""),
        (">/dev/full", "warning: stdout: some of it is lost: No space left on device\n"),
        ("<&- >&- 2>&-", ""),
    ],
)
def test_who_cannot_be_told_gets_the_image_and_the_exit_code(where, told, root, tmp_path):
    for text, code in (("man", 0), ("''", 3)):
        command = f"{GENERATE} {text} --out {tmp_path}/{code}.png {where}"
        done = subprocess.run(command, shell=True, cwd=root, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == (told if code == 0 else done.stderr) and "Traceback" not in done.stderr
    with Image.open(tmp_path / "0.png") as image:
        image.load()
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]


def test_a_reader_who_goes_is_no_error(root, tmp_path):
    command = f"({GENERATE} man --out {tmp_path}/a.png; echo $? >&2) | true"
    done = subprocess.run(command, shell=True, cwd=root, capture_output=True, text=True, check=False)
    assert done.stderr == "0\n" and (tmp_path / "a.png").exists()


def test_without_streams_there_is_one_to_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with terminal.forgiving("stderr"):
        print("lost", file=sys.stderr)
        with terminal.Progress(2, "denoising") as progress:
            progress()
    assert sys.stderr is None


@pytest.mark.parametrize(("name", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")])
def test_a_signal_ends_a_run_in_order_and_keeps_what_is_whole(name, code, word, root, tmp_path):
    rows = [f'{{"id": "{n}", "text": "a man", "seed": {n}, "steps": {20 if n else 1}}}\n' for n in range(9)]
    (tmp_path / "jobs.jsonl").write_text("".join(rows))
    command = [
        sys.executable,
        "-m",
        "cdiff_rt",
        "generate",
        "--jobs",
        tmp_path / "jobs.jsonl",
        "--out",
        tmp_path / "out",
    ]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        results = tmp_path / "out" / "results-1-of-1.jsonl"
        while not results.exists() or not results.read_text():  # before its line, an image may still be taken back
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        sent = time.monotonic()
        told, notes = process.communicate()
    again = shlex.join(["cdiff-rt", *map(str, command[3:]), "--resume"])
    assert (process.returncode, told, notes.strip()) == (code, "", f"error: {word}; go on with `{again}`")
    assert time.monotonic() - sent < 5
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left[0] == "0.png" and len(left) < 9 and not left[-1].startswith(".")


def test_a_signal_that_was_to_be_ignored_is(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminal.ending_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(SystemExit) as ended:
                signal.raise_signal(signal.SIGTERM)
        assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
