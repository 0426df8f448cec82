"""Who may use engines when: one thread at a time, in one process, until they are closed."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cdiff_rt.errors import BadEnvironment, BadRequest


class Turns:
    """Blocks of several threads take turns; those of one thread nest, as a callback's in the run that calls it."""

    def __init__(self, what: str) -> None:
        self._what, self._process = what, os.getpid()
        self._lock, self._depth, self._closed = threading.RLock(), 0, False

    @contextmanager
    def take(self) -> Iterator[None]:
        """Raises BadEnvironment in a forked process, BadRequest when it is closed."""
        if os.getpid() != self._process:
            remedy = "open one there, or start processes by spawn"
            raise BadEnvironment(self._what, "it was opened before this process was forked", remedy)
        with self._lock:
            if self._closed:
                raise BadRequest(self._what, "it is closed", "open another")
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def close(self, let_go: Callable[[], None]) -> None:
        """After the blocks of other threads; and not in a forked process, whose engines are another's."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._depth:
                raise BadRequest(self._what, "a run's own callback closed it", "to cancel a run, raise an exception")
            let_go()
            self._closed = True
