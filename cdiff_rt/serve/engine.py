"""The process that owns the pipeline: it makes one task after the other, and asks after each step whether to go on.

A library that crashes, or a system that ends what takes too much memory, ends this process and not the server.
"""

import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from cdiff_rt.editing import inversion
from cdiff_rt.editing.reading import reading_for
from cdiff_rt.errors import as_told
from cdiff_rt.inputs.modalities import Condition
from cdiff_rt.manifest import Manifest
from cdiff_rt.notes import log
from cdiff_rt.outputs.formats import png_bytes
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.loop import StepState
from cdiff_rt.settings import Settings

Open = Callable[[], Pipeline]  # in the process; it can be pickled


@dataclass(frozen=True)
class Task:
    op: str
    settings: Settings
    conditions: dict[str, Condition]
    more: dict[str, Any]
    previews: int = 0


@dataclass(frozen=True)
class Ready:
    """What this process makes images of."""

    manifest: Manifest
    identity: dict[str, Any]


@dataclass(frozen=True)
class Stepped:
    """After each step; the answer is whether to go on."""

    preview: bytes | None = None  # a PNG of what the image is going to be


@dataclass(frozen=True)
class Made:
    files: list[bytes]  # the content of each image's file
    seed: int
    warnings: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(map(len, self.files))


class Stopped(Exception):
    """Nobody wants the rest of a run."""


def run(connection: Connection, open_pipeline: Open) -> None:
    """Until the other end is closed. Signals are for the server, which closes it when they are obeyed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    log.handlers[:] = [logging.NullHandler()]  # what is warned of goes to who asked: it may quote a sentence
    with contextlib.suppress(EOFError, OSError):
        try:
            pipeline = open_pipeline()
        except Exception as error:  # noqa: BLE001 - whoever started this tells it
            return connection.send(as_told(error))
        connection.send(Ready(pipeline.manifest, pipeline.identity()))
        while True:
            connection.send(_answer(pipeline, connection.recv(), connection))


def _answer(pipeline: Pipeline, task: Task, connection: Connection) -> object:
    try:
        return make(pipeline, task, lambda preview: _go_on(connection, preview))
    except Stopped as ended:
        return ended
    except Exception as error:  # noqa: BLE001 - it is the outcome of this task alone
        return as_told(error)


def _go_on(connection: Connection, preview: bytes | None) -> None:
    connection.send(Stepped(preview))
    if not connection.recv():
        raise Stopped


def make(pipeline: Pipeline, task: Task, stepped: Callable[[bytes | None], object]) -> Made:
    """The images of a task. `stepped` is called after each step, with a preview after some; it may raise."""
    shown: list[bytes] = []

    def show(state: StepState) -> None:
        if state.step in places:
            shown.append(png_bytes(pipeline.decode(state.x0[:1], task.settings.rounding)[0], {}))

    def progress() -> None:  # it is called before what shows the step, so a preview comes with the next one
        stepped(shown.pop(0) if shown else None)

    how: dict[str, Any] = {"settings": task.settings, "conditions": task.conditions, "progress": progress, **task.more}
    steps = task.settings.sampling().steps
    if task.op == "edit":
        steps = inversion.walked(steps, task.more["strength"])
        how["read"] = reading_for(pipeline.manifest.name)
    places = {round((i + 1) * steps / (task.previews + 1)) - 1 for i in range(task.previews)}
    result = getattr(pipeline, task.op)(callback_on_step_end=show if task.previews else None, **how)
    files = [result.content(i) for i in range(len(result.latents))]
    return Made(files, task.settings.seed, list(result.warnings))
