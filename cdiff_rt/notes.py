"""What the library says while it works: notes and warnings, through the logger "cdiff_rt"."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("cdiff_rt")


class _Warnings(logging.Handler):
    """Those of one thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.lines.append(record.getMessage())


@contextmanager
def collected() -> Iterator[list[str]]:
    """What is warned of on this thread within the block."""
    handler = _Warnings()
    log.addHandler(handler)
    try:
        yield handler.lines
    finally:
        log.removeHandler(handler)


@contextmanager
def hushed() -> Iterator[None]:
    """Nothing is told within the block but errors: what is asked there is nobody's own."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
