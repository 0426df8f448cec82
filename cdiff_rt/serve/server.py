"""The server as a process: sockets, slow clients, and how it ends."""

import asyncio
import logging
import socket
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cdiff_rt.errors import BadRequest
from cdiff_rt.notes import log
from cdiff_rt.serve.app import Service
from cdiff_rt.serve.engine import Open
from cdiff_rt.serve.guard import Guard, Rules, log_requests
from cdiff_rt.serve.limits import DRAIN_SECONDS, HEAD_SECONDS, MOST_CONNECTIONS, READ_SECONDS, Limits
from cdiff_rt.serve.metrics import Metrics
from cdiff_rt.serve.worker import Worker


class Impatient(H11Protocol):
    """A connection that ends when its client takes too long to say what it wants, or to read what it gets."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._slow: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._end_in("head", HEAD_SECONDS)

    def handle_events(self) -> None:
        asked = self.cycle
        super().handle_events()
        if self.cycle is not asked:  # a request's head is there; the guard has an eye on the rest
            self._go_on("head")
        elif self.cycle and self.cycle.response_complete and "head" not in self._slow:  # the next begins
            self._end_in("head", HEAD_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end_in("answer", READ_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on("answer")

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_on("head")
        self._go_on("answer")
        super().connection_lost(exc)

    def _end_in(self, seconds_for: str, seconds: float) -> None:
        self._go_on(seconds_for)
        self._slow[seconds_for] = self.loop.call_later(seconds, self.transport.abort)

    def _go_on(self, seconds_for: str) -> None:
        if timer := self._slow.pop(seconds_for, None):
            timer.cancel()


class Server(uvicorn.Server):
    """Ends when all that it took is made; a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service, self.killed_by = service, 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.killed_by, self.should_exit, self.force_exit = sig, True, True
        else:
            self._service.draining = True
            log.info(
                "no more requests are taken; those that were are finished first, and a second signal stops at once"
            )

    async def main_loop(self) -> None:
        loop = asyncio.get_running_loop()
        log.info("serving %s on %s", self._service.manifest.name, self.address)
        until: float | None = None
        while not await self.on_tick(0):
            await asyncio.sleep(0.1)
            if not (self._service.draining and self._service.worker.idle):
                continue
            until = until or loop.time() + DRAIN_SECONDS
            if self._service.drained or loop.time() > until:
                self.should_exit = True

    @property
    def address(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    open_pipeline: Open,
    *,
    host: str,
    port: int,
    rules: Rules,
    limits: Limits,
    log_prompts: bool = False,
) -> int:
    """Until it is ended by a signal; the exit code. Raises what opening the pipeline raises, and BadRequest."""
    listening = _listen(host, port)
    metrics = Metrics()
    worker = Worker(open_pipeline, limits.queue, metrics)
    try:
        ready = worker.start()
        service = Service(worker, ready, limits, metrics, log_prompts=log_prompts)
        if log.isEnabledFor(logging.INFO):
            log_requests()
        app: Any = Guard(service.app(), rules, limits)
        config = uvicorn.Config(app, http=Impatient, ws="none", lifespan="off", log_config=None, access_log=False)
        config.limit_concurrency, config.timeout_graceful_shutdown, config.server_header = MOST_CONNECTIONS, 10, False
        server = Server(config, service)
        server.run(sockets=[listening])
    finally:
        listening.close()
        worker.close()
    return 128 + server.killed_by if server.killed_by else 0


def _listen(host: str, port: int) -> socket.socket:
    """Before the model loads. Raises BadRequest."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(MOST_CONNECTIONS)
    except OSError as error:
        remedy = "choose another --port or --host (port 0 is any free one)"
        raise BadRequest("address", f"{host}:{port}: {error.strerror}", remedy) from None
    return found
