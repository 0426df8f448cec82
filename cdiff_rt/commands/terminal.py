"""How the commands speak: every error as one line with its exit code, notes on stderr, a bar while it takes long."""

import logging
import sys
import time
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import click

from cdiff_rt.errors import BadInput, CdiffError
from cdiff_rt.notes import log

if TYPE_CHECKING:
    from cdiff_rt.jobs.run import Assignment, Outcome

MINUTE = 60.0  # seconds


class Commands(click.Group):
    """Prints every error as one line and ends with its exit code; `--debug` shows the traceback instead."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = super().main(*args, **kwargs | {"standalone_mode": False})
        except CdiffError as error:
            fail(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            remedy = "`cdiff-rt doctor` lists what is there, and pyproject.toml the extra that brings it"
            fail(f"{error.name} is not installed; {remedy}", 5)
        except MemoryError:
            fail("memory: it ran out; choose a smaller batch", 6)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "cdiff-rt"
            fail(f"{error.format_message().rstrip('.')}; see `{path} --help`", 2)
        except (KeyboardInterrupt, click.Abort):
            fail("interrupted", 130)
        sys.exit(result if isinstance(result, int) else 0)


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
        kind = "warning" if record.levelno >= logging.WARNING else "note"
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


def save(result: Any, out: Path, recorders: list, **how: Any) -> None:
    """Writes a result and what was recorded, and prints the paths."""
    for path in result.save(out, recorders=recorders, **how):
        say(path)
        for recorder in recorders:
            say(recorder.folder_of(path))


def follow(work: "Assignment", outcomes: Iterable["Outcome"]) -> None:
    """A bar while jobs run, then how many came to what. Raises BadInput if any failed.

    What the library says of a row stands in its outcome, and would stand between the bar's lines here.
    """
    log.handlers.clear()
    failed: list[str] = []
    with Progress(len(work.jobs), "images") as progress, redirect_stdout(sys.stderr):  # where Ray tells of its workers
        for outcome in outcomes:
            progress()
            failed += [outcome.error] if outcome.error else []
    made = len(work.jobs) - len(failed)
    say(f"{work.results}: {made} made, {len(work.kept)} there already, {len(failed)} failed")
    if failed:
        remedy = f"mend these rows, whose errors are in {work.results}, and go on with --resume"
        raise BadInput("jobs", f"{len(failed)} of {len(work.jobs)} failed, the first by: {failed[0]}", remedy)
