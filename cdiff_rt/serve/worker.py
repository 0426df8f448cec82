"""Who makes what is asked for: one thread, which takes the first of a bounded queue, and the process that it drives."""

import asyncio
import math
import multiprocessing
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Literal

from cdiff_rt.errors import BadArtefact, BadEnvironment, CdiffError, as_told
from cdiff_rt.notes import log
from cdiff_rt.serve import engine
from cdiff_rt.serve.asked import Asked
from cdiff_rt.serve.engine import Made, Ready, Stepped, Stopped, Task
from cdiff_rt.serve.metrics import Metrics
from cdiff_rt.serve.refusals import Refused, status_of
from cdiff_rt.settings import Settings

State = Literal["queued", "running", "completed", "failed", "cancelled"]
ATTEMPTS = 2  # a request whose process died is made again, but one that kills each is none to try for ever
CANCELLED = ("cancelled", "request", "nobody waits for it any more", "ask again")


class Work:
    """One request on its way: its state, and what came of it. The event loop's thread makes it and listens."""

    def __init__(self, asked: Asked) -> None:
        self.id, self.asked, self.created = uuid.uuid4().hex, asked, time.time()
        self.state: State = "queued"
        self.done = 0  # steps
        self.made: Made | None = None
        self.error: CdiffError | None = None
        self.fetched, self.ended, self.wanted = False, 0.0, True
        self.since = time.monotonic()
        self.listener: asyncio.Task[None] | None = None  # who sees that the client goes
        self.timer: asyncio.TimerHandle | None = None  # of its deadline
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    @property
    def over(self) -> bool:
        return self.state not in ("queued", "running")

    def tell(self, event: bytes | None) -> None:
        """Of a step its preview, empty if it has none; None when it is over."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hear, event)

    def _hear(self, event: bytes | None) -> None:
        self._events.put_nowait(event)
        if event is None and self.timer:
            self.timer.cancel()  # which would keep it all for as long

    async def events(self) -> AsyncIterator[bytes]:
        """Until it is over; for one listener."""
        while (event := await self._events.get()) is not None:
            yield event

    def end(self, state: State, made: Made | None = None, error: CdiffError | None = None) -> None:
        self.made, self.error, self.ended, self.state = made, error, time.monotonic(), state
        self.asked = replace(self.asked, settings=Settings(), conditions={}, more={})  # pictures, which may be large
        self.tell(None)


class Worker:
    """Owns the queue and the process. Works end in the order in which they came."""

    def __init__(self, open_pipeline: engine.Open, most: int, metrics: Metrics) -> None:
        self._open, self._most, self._metrics = open_pipeline, most, metrics
        self._changed, self._waiting = threading.Condition(), deque[Work]()
        self._running: Work | None = None
        self._service, self._ended = 1.0, False  # seconds of the last one
        self._process: BaseProcess | None = None
        self.alive = False
        self._thread = threading.Thread(target=self._make_all, name="worker", daemon=True)

    def start(self) -> Ready:
        """Raises what opening the pipeline raised."""
        self._ready = ready = self._start_process()
        self.alive = True
        self._metrics.tell_build(ready)
        self._metrics.waiting.set_function(lambda: len(self._waiting))
        self._metrics.running.set_function(lambda: int(self._running is not None))
        self._thread.start()
        return ready

    @property
    def idle(self) -> bool:
        with self._changed:
            return not self._waiting and not self._running

    def check_room(self) -> None:
        """Raises Refused when the queue is full."""
        if len(self._waiting) >= self._most:
            seen, seconds = f"{self._most} requests wait already", math.ceil(self._service * (len(self._waiting) + 1))
            self._metrics.rejected.labels("queue_full").inc()
            remedy = f"try again in {seconds} s"
            raise Refused(503, "queue_full", "queue", seen, remedy, Retry_After=str(seconds))

    def submit(self, work: Work) -> None:
        with self._changed:
            self.check_room()
            self._waiting.append(work)
            self._changed.notify()

    def cancel(self, work: Work, error: CdiffError | None = None) -> None:
        """At once if it waits; if it runs, after its step. `error` is for one that must not begin any more."""
        with self._changed:
            if work in self._waiting:
                self._waiting.remove(work)
                self._finish(work, "failed" if error else "cancelled", error=error or Refused(499, *CANCELLED))
            elif not error:
                work.wanted = False

    def close(self) -> None:
        """Ends the process, whatever it does."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._stop_process()

    def _stop_process(self) -> None:
        if self._process:
            self._process.kill()
            self._process.join()

    def _start_process(self) -> Ready:
        context = multiprocessing.get_context("spawn")  # a fork would share this one's threads and sockets
        self._connection, theirs = context.Pipe()
        self._process = process = context.Process(target=engine.run, args=(theirs, self._open), daemon=True)
        process.start()
        theirs.close()
        try:
            told = self._connection.recv()
        except (EOFError, OSError):
            raise BadEnvironment("worker", "its process died while it started", "see what it wrote above") from None
        if isinstance(told, CdiffError):
            raise told
        return told

    def _make_all(self) -> None:
        while work := self._next():
            began = time.monotonic()
            self._metrics.queue_seconds.observe(began - work.since)
            self._make(work)
            self._service = time.monotonic() - began
            self._metrics.request_seconds.observe(self._service)

    def _next(self) -> Work | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if self._ended:
                return None
            self._running = work = self._waiting.popleft()
            work.state = "running"
            return work

    def _make(self, work: Work) -> None:
        for _ in range(ATTEMPTS):
            try:
                return self._drive(work)
            except (EOFError, OSError):
                if self._ended:
                    return None
                self._restart()
            except Exception as error:  # noqa: BLE001 - nobody foresaw it, and where the process is, nobody knows
                self._restart()
                return self._finish(work, "failed", error=as_told(error))
        seen, remedy = f"{ATTEMPTS} processes died of this request", "try another one, and report it"
        return self._finish(work, "failed", error=Refused(500, "worker_died", "worker", seen, remedy))

    def _restart(self) -> None:
        self.alive = False
        self._metrics.restarts.inc()
        log.warning("the process that makes images died, and is started anew")
        self._connection.close()
        self._stop_process()
        try:
            if self._start_process() != self._ready:
                self._stop_process()
                raise BadArtefact("bundle", "it is another than the server was started with", "start the server anew")
            self.alive = True
        except CdiffError as error:  # the next request tries again
            log.error("%s", error)

    def _drive(self, work: Work) -> None:
        """From the task to its end. Raises EOFError or OSError if the process dies."""
        asked, work.done = work.asked, 0
        if not work.wanted:
            return self._finish(work, "cancelled", error=Refused(499, *CANCELLED))
        self._connection.send(Task(asked.op, asked.settings, asked.conditions, asked.more, asked.previews))
        seconds, last = self._metrics.step_seconds.labels(self._ready.identity["backend"]), time.monotonic()
        while isinstance(told := self._connection.recv(), Stepped):
            self._connection.send(work.wanted)
            work.done += 1
            work.tell(told.preview or b"")
            seconds.observe((now := time.monotonic()) - last)
            last = now
        if isinstance(told, Made):
            self._metrics.batch_size.observe(len(told.files))
            return self._finish(work, "completed", told)
        stopped = isinstance(told, Stopped)
        error = Refused(499, *CANCELLED) if stopped else told
        return self._finish(work, "cancelled" if stopped else "failed", error=error)

    def _finish(self, work: Work, state: State, made: Made | None = None, error: CdiffError | None = None) -> None:
        refused = state == "failed" and error is not None and status_of(error)[0] < 500
        self._metrics.requests.labels(work.asked.op, "refused" if refused else state).inc()
        work.end(state, made, error)
