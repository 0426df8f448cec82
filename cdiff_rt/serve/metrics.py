"""What a server counts, by the names that Prometheus wants; no sentence, path, seed or client is in a label."""

from typing import TypedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cdiff_rt.serve.engine import Ready

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _In(TypedDict):
    registry: CollectorRegistry


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        by, of = ["op", "outcome"], _In(registry=self._registry)
        self.requests = Counter("cdiff_requests", "Requests that were taken, by what became of them.", by, **of)
        self.rejected = Counter("cdiff_rejected", "Requests that were not taken, by their code.", ["reason"], **of)
        self.running = Gauge("cdiff_requests_running", "Requests that are made now.", **of)
        self.waiting = Gauge("cdiff_requests_waiting", "Requests in the queue.", **of)
        self.queue_seconds = Histogram("cdiff_queue_seconds", "From being taken to the start.", buckets=SECONDS, **of)
        self.request_seconds = Histogram("cdiff_request_seconds", "From start to end.", buckets=SECONDS, **of)
        self.step_seconds = Histogram("cdiff_step_seconds", "Of one step.", ["backend"], buckets=SECONDS, **of)
        self.batch_size = Histogram("cdiff_batch_size", "Images of a request.", buckets=BATCHES, **of)
        self.restarts = Counter("cdiff_worker_restarts", "Processes that died and were started anew.", **of)
        self.build = Gauge("cdiff_build_info", "1.", ["version", "backend", "model"], **of)

    def tell_build(self, ready: Ready) -> None:
        told = ready.identity
        self.build.labels(told["version"], told["backend"], ready.manifest.name).set(1)

    def text(self) -> bytes:
        return generate_latest(self._registry)
