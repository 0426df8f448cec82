"""Runners: on the CPU the loop of sampling/loop.py over a backend's engines, on a GPU that of gpu/."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from cdiff_rt.engines.backends import BACKENDS, check_backend, check_precision, load_engine
from cdiff_rt.engines.base import Engine, Precision, cores
from cdiff_rt.errors import BadRequest
from cdiff_rt.manifest import Bundle
from cdiff_rt.run import OnDevice, Run, Runner
from cdiff_rt.sampling.experts import Experts
from cdiff_rt.sampling.loop import Callback, sample


class HostRunner:
    def __init__(self, bundle: Bundle, backend: str, precision: Precision | None = None) -> None:
        self._bundle, self._backend, self.precision = bundle, backend, check_precision(backend, precision)
        self._engines: dict[tuple[str, int], Engine] = {}

    def call(self, network: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return self._engine(network)(**inputs)

    def sample(self, run: Run, callback: Callback | None = None) -> np.ndarray:
        with self.experts(run) as experts:
            return sample(experts, run.start, run.noise, run.table, run.adjust, callback, run.known)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _engine(self, network: str, share: int = 1) -> Engine:
        """`share` engines run at a time and share the cores."""
        threads = max(1, cores() // share)
        if (network, threads) not in self._engines:
            self._engines[network, threads] = load_engine(
                self._backend, self._bundle, network, threads=threads, precision=self.precision
            )
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
        side_by_side = len(names) if BACKENDS[self._backend].parallel else 1
        engines = [self._engine(f"expert.{name}", share=side_by_side) for name in names]
        if side_by_side == 1:
            yield Experts(
                names, engines, contexts, projections
            )  # on this thread: a library may have threads bound to it
        else:
            with ThreadPoolExecutor(side_by_side) as pool:
                yield Experts(names, engines, contexts, projections, pool.map)


def load_runner(bundle: Bundle, backend: str, how: OnDevice | None = None) -> Runner:
    """Raises BadRequest for a backend or setting that isn't known, BadEnvironment if it doesn't work here."""
    how = how or OnDevice()
    check_backend(backend)
    check_precision(backend, how.precision)
    if how.whole_step and not BACKENDS[backend].whole_step:
        able = ", ".join(name for name, other in BACKENDS.items() if other.whole_step)
        raise BadRequest("whole_step", f"{backend} has no engine of the whole step", f"choose one of {able}")
    if BACKENDS[backend].device == "cpu":
        return HostRunner(bundle, backend, how.precision)
    from cdiff_rt.gpu.runner import DeviceRunner

    return DeviceRunner(bundle, backend, how)
