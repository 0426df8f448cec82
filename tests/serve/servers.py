"""Servers for tests: one in this process whose requests need no socket, and one that listens."""

import threading
import time
from contextlib import contextmanager
from functools import partial

import httpx
import uvicorn
from starlette.testclient import TestClient

from cdiff_rt.serve.app import Service
from cdiff_rt.serve.guard import Guard, Rules
from cdiff_rt.serve.limits import Limits
from cdiff_rt.serve.metrics import Metrics
from cdiff_rt.serve.server import Impatient
from cdiff_rt.serve.worker import Worker
from tests.serve import standin

LIMITS = Limits(queue=4, keep=60.0, body=2**20)


@contextmanager
def service(seconds=0.0, limits=LIMITS, open_pipeline=None):
    metrics = Metrics()
    worker = Worker(open_pipeline or partial(standin.opened, seconds), limits.queue, metrics)
    try:
        yield Service(worker, worker.start(), limits, metrics, log_prompts=False)
    finally:
        worker.close()


@contextmanager
def client(of, rules=Rules(), **headers):  # noqa: B008 - it is frozen
    app = Guard(of.app(), rules, of.limits)
    with TestClient(app, base_url="http://127.0.0.1", headers=headers, raise_server_exceptions=False) as asking:
        yield asking


@contextmanager
def listening(of, rules=Rules(), body_seconds=30.0):  # noqa: B008
    """The server's address, in a thread."""
    app = Guard(of.app(), rules, of.limits, body_seconds)
    config = uvicorn.Config(app, port=0, http=Impatient, ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def metric(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def ask(address: str, **body):
    return httpx.post(f"{address}/v1/images/generations", json=body, timeout=60)
