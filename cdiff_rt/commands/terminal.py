"""How the commands speak: every error as one line with its exit code, notes on stderr, a bar while it takes long."""

import contextlib
import io
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import click

from cdiff_rt.errors import BadInput, CdiffError, as_told
from cdiff_rt.notes import log

if TYPE_CHECKING:
    from cdiff_rt.jobs.assignment import Assignment
    from cdiff_rt.jobs.results import Outcome

MINUTE = 60.0  # seconds


class Commands(click.Group):
    """Prints every error as one line and ends with its exit code; `--debug` shows the traceback instead."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        while (free := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed one, which the next file would become
            continue
        os.close(free)
        with ending_by_signals(), forgiving("stderr"), forgiving("stdout"):
            self._main(*args, **kwargs)

    def _main(self, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            result = super().main(*args, **kwargs | {"standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "cdiff-rt"
            fail(f"{error.format_message().rstrip('.')}; see `{path} --help`", 2)
        except (KeyboardInterrupt, click.Abort) as ended:
            fail(told_with("interrupted", ended.__cause__ or ended), 130)
        except Terminated as ended:
            fail(told_with("terminated", ended), ended.code)
        except Exception as error:  # noqa: BLE001 - what nobody foresaw is one line too
            told = as_told(error)
            fail(str(told), told.exit_code)
        sys.exit(result if isinstance(result, int) else 0)


class Terminated(SystemExit):
    """Raised by a signal that ends the process: everything is left as an error would leave it."""

    code: int


@contextlib.contextmanager
def ending_by_signals() -> Iterator[None]:
    """Within the block, `kill` and a terminal that closes end what is done in order, unless they were to be ignored."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # others cannot be told of signals
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Forgiving(io.FileIO):
    """A stream to somebody who may have gone, or to a disk that is full: what cannot be told is lost, not the work."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:  # it takes nothing now
                time.sleep(0.01)
            return written
        except OSError as error:
            self.lost = error
            return memoryview(data).nbytes


@contextlib.contextmanager
def forgiving(name: str) -> Iterator[None]:
    """Makes sys.stdout or sys.stderr such a stream within the block, or one to nowhere if there is none."""
    stream, raw = getattr(sys, name), None
    buffer = getattr(stream, "buffer", None)
    if stream is None:  # a process without a terminal, or one that closed it
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - whoever logs may keep it
    elif type(getattr(buffer, "raw", buffer)) is io.FileIO:
        raw = Forgiving(stream.fileno(), "w", closefd=False)
        lines = stream.line_buffering or stream.write_through or name == "stderr"
        text = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=lines)
        setattr(sys, name, text)
    try:
        yield
    finally:
        getattr(sys, name).flush()
        setattr(sys, name, stream)
        if raw and raw.lost and not isinstance(raw.lost, BrokenPipeError):
            log.warning("%s: some of it is lost: %s", name, raw.lost.strerror)


def told_with(message: str, ended: BaseException) -> str:
    """And what was noted on the way, such as how to go on."""
    return "; ".join((message, *getattr(ended, "__notes__", ())))


def fail(message: str, code: int) -> NoReturn:
    if "--debug" in sys.argv:
        log.exception("the error came from")
    click.echo(f"error: {shown(' '.join(message.split()))}", err=True)
    sys.exit(code)


def shown(text: object) -> str:
    """A name of a file or tensor may hold what a terminal obeys, or what hides a part of it: such is spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def say(text: object) -> None:
    """Prints a result, one or several lines."""
    click.echo("\n".join(map(shown, str(text).split("\n"))))


class OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        kind = "note" if record.levelno < logging.WARNING else record.levelname.lower()
        return f"{kind}: {shown(' '.join(super().formatMessage(record).split()))}"

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(shown, super().formatException(ei).split("\n")))


class Progress:
    """A bar on a terminal from the first step on; elsewhere a line a minute, of what takes that long."""

    def __init__(self, length: int, label: str) -> None:
        told = log.isEnabledFor(logging.INFO)
        self._length, self._label, self._done, self._told_at = max(length, 1), label, 0, time.monotonic()
        self._lines = told and not sys.stderr.isatty()
        hidden = self._lines or not told
        self._bar = click.progressbar(length=self._length, label=label, file=sys.stderr, hidden=hidden)
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __call__(self) -> None:
        """One more is done."""
        if not self._begun:
            self._begun = bool(self._bar.__enter__())
        self._bar.update(1)
        self._done += 1
        if self._lines and time.monotonic() - self._told_at >= MINUTE:
            self._told_at = time.monotonic()
            log.info("%s: %d of %d", self._label, self._done, self._length)

    def end(self) -> None:
        """Ends the bar's line; what comes after is printed below."""
        if self._begun:
            self._bar.render_finish()
            self._begun = False

    def __exit__(self, *error: object) -> None:
        self.end()


def raise_first(failed: Sequence[CdiffError], of: int) -> None:
    """Of errors of several files, the first; where there was more than one file, the others are told."""
    if not failed:
        return
    for error in failed[1:]:
        log.warning("%s", error)
    first = failed[0]
    what = first.what if of == 1 else f"{len(failed)} of {of} pictures, the first: {first.what}"
    raise type(first)(what, first.seen, first.remedy)


def save(result: Any, out: Path, recorders: list, **how: Any) -> None:
    """Writes a result and what was recorded, and prints the paths."""
    for path in result.save(out, recorders=recorders, **how):
        say(path)
        for recorder in recorders:
            say(recorder.folder_of(path))


@contextlib.contextmanager
def resumable(seed: int | None) -> Iterator[None]:
    """Whoever ends what is done within the block is told how to go on, with the seed that may have been drawn."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as ended:
        words = [word for word in sys.argv[1:] if word not in ("--resume", "--force")]
        drawn = ["--seed", str(seed)] if seed is not None and {"random", "--seed=random"} & {*words} else []
        ended.add_note(f"go on with `{shlex.join(['cdiff-rt', *words, *drawn, '--resume'])}`")
        raise


def follow(work: "Assignment", outcomes: Iterable["Outcome"]) -> None:
    """A bar while jobs run, then how many came to what, and which failed. Raises BadInput if any did."""
    from cdiff_rt.jobs.file import MOST_NAMED  # where it is needed, for the libraries of jobs are slow to load

    failed: list[str] = []
    lines = {job.id: job.line for job in work.jobs}
    out = contextlib.redirect_stdout(sys.stderr)  # where Ray tells of its workers
    with Progress(len(work.jobs), "images") as progress, out:
        for outcome in _quietly(outcomes):
            progress()
            if outcome.error:
                failed.append(f"line {lines[outcome.id]}, {outcome.id}: {outcome.error}")
    made = len(work.jobs) - len(failed)
    say(f"{work.results}: {made} made, {len(work.kept)} there already, {len(failed)} failed")
    for error in failed[:MOST_NAMED] if len(failed) > 1 else ():
        log.error("%s", error)
    if failed:
        remedy = f"correct these rows, whose errors are in {work.results}, and go on with --resume"
        raise BadInput("jobs", f"{len(failed)} of {len(work.jobs)} failed, the first by: {failed[0]}", remedy)


def _quietly(outcomes: Iterable["Outcome"]) -> Iterator["Outcome"]:
    """What the library says of a row stands in its outcome, and would stand between the bar's lines here."""
    handlers, waiting = log.handlers[:], iter(outcomes)
    while True:
        log.handlers[:] = [logging.NullHandler()]  # with none, Python would print warnings itself
        try:
            outcome = next(waiting, None)
        finally:
            log.handlers[:] = handlers
        if outcome is None:
            return
        yield outcome
