"""Runners: on the CPU the loop of sampling/loop.py over a backend's engines, on a GPU that of gpu/."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Self

import numpy as np

from cdiff_rt.engines.backends import (
    BACKENDS,
    check_experts,
    check_known,
    check_precision,
    check_working,
    load_engine,
)
from cdiff_rt.engines.base import Engine, Precision
from cdiff_rt.engines.cuda import device_count
from cdiff_rt.errors import BadRequest, check_range, check_type
from cdiff_rt.manifest import Bundle
from cdiff_rt.process import usual_threads
from cdiff_rt.run import OnDevice, Run, Runner
from cdiff_rt.sampling.experts import Experts
from cdiff_rt.sampling.loop import Callback, Progress, sample
from cdiff_rt.sampling.superposition import Mixing

MOST_THREADS = 1024


class SideBySide:
    """Threads that help the one that calls `map`, for as long as the block lasts.

    An executor of the standard library takes no more work once the main thread has ended, and other threads may outlive
    it. Where no thread can be started, the caller does all the work.
    """

    def __init__(self, helpers: int) -> None:
        self._todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [Thread(target=self._help, daemon=True) for _ in range(helpers)]

    def __enter__(self) -> Self:
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
        return self

    def __exit__(self, *error: object) -> None:
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()

    def map(self, function: Callable[..., Any], *columns: Any) -> list[Any]:
        """As `map`; returns or raises when all calls have ended."""
        rows = list(zip(*columns, strict=True))
        ended: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

        def work(i: int) -> None:
            try:
                ended.put((i, function(*rows[i]), None))
            except BaseException as error:  # noqa: BLE001 - which the caller raises
                ended.put((i, None, error))

        for i in range(len(rows)):
            self._todo.put(partial(work, i))
        while (call := self._next()) is not None:
            call()
        outcomes = sorted((ended.get() for _ in rows), key=lambda outcome: outcome[0])
        for _, _, error in outcomes:
            if error:
                raise error
        return [result for _, result, _ in outcomes]

    def _next(self) -> Callable[[], None] | None:
        try:
            return self._todo.get_nowait()
        except Empty:
            return None

    def _help(self) -> None:
        while (call := self._todo.get()) is not None:
            call()


@dataclass(frozen=True)
class Routing:
    """Who is called, and who decides, beside the experts' own logits."""

    routers: bool = False  # whether there is a network "router.<m>" for each expert, which tells its logit beforehand
    top_k: int | None = None  # how many experts an image calls, by their routers
    mixing: Mixing | None = None  # decides in place of all logits


class HostRunner:
    """Runs what `load(network, threads)` gives; it is called once for each network, and number of its threads.

    If `parallel`, experts run side by side and share the threads.
    """

    shows_steps = True

    def __init__(
        self,
        load: Callable[[str, int], Engine],
        precision: Precision = "fp32",
        threads: int | None = None,
        *,
        parallel: bool,
        routing: Routing | None = None,
    ) -> None:
        self._load, self.precision, self._parallel, self._routing = load, precision, parallel, routing or Routing()
        self._threads = threads or usual_threads()
        self._engines: dict[tuple[str, int], Engine] = {}

    @classmethod
    def of(
        cls, bundle: Bundle, backend: str, precision: Precision | None = None, threads: int | None = None
    ) -> "HostRunner":
        """The networks of a bundle on a backend of the CPU."""
        checked = check_precision(backend, precision)
        load = lambda network, threads: load_engine(backend, bundle, network, threads=threads, precision=checked)
        return cls(load, checked, threads, parallel=BACKENDS[backend].parallel)

    def call(self, network: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return self._engine(network)(**inputs)

    def sample(self, run: Run, callback: Callback | None = None, progress: Progress | None = None) -> np.ndarray:
        mixing = self._routing.mixing
        if mixing and run.adjust.controls is not None:
            raise BadRequest(
                "influence",
                "the weights of this pipeline follow from densities",
                "leave it and region out, or compose without mixing",
            )
        if self._routing.top_k and run.adjust.sharpness == 0:
            seen = "weights that do not follow from logits, and by these each image calls some experts only"
            raise BadRequest(
                "influence", seen, "compose without top_k, or leave out sharpness 0 and calibrated weights"
            )
        with self.experts(run) as experts:
            return sample(experts, run.start, run.noise, run.table, run.adjust, callback, run.known, progress, mixing)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _engine(self, network: str, share: int = 1) -> Engine:
        """`share` engines run at a time and share the threads."""
        threads = max(1, self._threads // share)
        if (network, threads) not in self._engines:
            self._engines[network, threads] = self._load(network, threads)
        return self._engines[network, threads]

    @contextmanager
    def experts(self, run: Run) -> Iterator[Experts]:
        """Those of a run, ready for its steps: their engines loaded, all computed that does not depend on x_t."""
        names = tuple(modality.name for modality in run.modalities)
        contexts, projections = [], []
        for m, (name, value) in enumerate(zip(names, run.inputs, strict=True)):
            if run.contexts:
                contexts.append(run.contexts[m])
            else:
                context = self.call(f"condition.{name}", inputs=value)["context"]
                contexts.append(np.repeat(context, len(run.start), axis=0))
            projections.append(self.call(f"time.{name}", t=run.table.timesteps)["projections"])
        side_by_side = len(names) if self._parallel else 1
        engines = [self._engine(f"expert.{name}", share=side_by_side) for name in names]
        routers = [self._engine(f"router.{name}") for name in names] if self._routing.routers else []
        ready = Experts(names, engines, contexts, projections, routers=routers, top_k=self._routing.top_k)
        if side_by_side == 1:
            yield ready  # on this thread: a library may have threads bound to it
        else:
            with SideBySide(side_by_side - 1) as pool:
                yield replace(ready, map=pool.map)


def load_runner(bundle: Bundle, backend: str, how: OnDevice | None = None) -> Runner:
    """Raises BadRequest for a backend or setting that isn't known, BadEnvironment if it doesn't work here."""
    how = how or OnDevice()
    check_known(backend)
    check_precision(backend, how.precision)
    if how.threads is not None:
        check_type("threads", how.threads, int, "give a whole number")
        check_range("threads", how.threads, 1, MOST_THREADS)
    check_experts(backend, how.experts)
    if bundle.homes and how.experts != "separate":
        raise BadRequest("experts", f"{how.experts}, and some are another bundle's", "leave it out: these run separate")
    check_type("device", how.device, int, "give the number of a GPU")
    on_gpu = BACKENDS[backend].device == "cuda"
    if how.threads and on_gpu:
        raise BadRequest("threads", f"{how.threads} with {backend}, which runs on a GPU", "leave them out")
    if how.device and not on_gpu:
        raise BadRequest("device", f"{how.device} with {backend}, which runs on the CPU", "leave it out")
    check_working(backend)
    if not on_gpu:
        return HostRunner.of(bundle, backend, how.precision, how.threads)
    check_range("device", how.device, 0, device_count() - 1)
    from cdiff_rt.gpu.runner import DeviceRunner

    return DeviceRunner(bundle, backend, how, device=f"cuda:{how.device}")
