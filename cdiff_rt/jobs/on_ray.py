"""The same jobs on Ray Data: a pool of workers, of this machine or a cluster's, each with a pipeline of its own.

A worker writes images as `jobs.make` does; whoever started the pool writes the results. What a dying worker leaves
unfinished Ray gives to another, which makes the same image in the same place.
"""

import logging
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Unpack

import numpy as np

from cdiff_rt.engines.backends import BACKENDS
from cdiff_rt.errors import BadEnvironment, CdiffError, check_range
from cdiff_rt.extras import needed
from cdiff_rt.jobs.assignment import Assignment, How, prepare
from cdiff_rt.jobs.results import Outcome
from cdiff_rt.jobs.rows import Job
from cdiff_rt.jobs.run import make, write_outcomes
from cdiff_rt.outputs.files import disk_errors
from cdiff_rt.pipeline import Pipeline

MOST_WORKERS = 4096
MOST_BLOCKS = 10_000  # a block is what a worker gets at a time: one row, or of a million a hundred
DEATHS = 3  # of workers at one row, which then is to blame
STORE = 2**27  # bytes of shared memory: rows and outcomes are small


def run_on_ray(
    pipeline: Pipeline,
    jobs: str | Path,
    out: str | Path,
    workers: int = 2,
    address: str | None = None,
    **how: Unpack[How],
) -> Iterator[Outcome]:
    """As `run_jobs`, on `workers` processes, each with such a pipeline; the images are the same.

    They are those of the Ray that this process is connected to, or of the cluster at `address`, or of one that lives on
    this machine for this run. All machines see model, masks and `out` under the same paths. Raises BadEnvironment if Ray
    is not installed or fails, and as `run_jobs`.
    """
    return run(prepare(pipeline, jobs, out, **how), pipeline, workers, address)


def run(work: Assignment, pipeline: Pipeline, workers: int, address: str | None = None) -> Iterator[Outcome]:
    check_range("workers", workers, 1, MOST_WORKERS)
    with needed("ray", "ray"):
        import ray.data  # noqa: F401
    if address:
        _check_address(address)
    return write_outcomes(work, _outcomes(replace(work, out=work.out.absolute()), pipeline, workers, address))


def _check_address(address: str) -> None:
    """Raises BadEnvironment if nothing answers there: Ray itself would wait for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        remedy = "give HOST:PORT as `ray start` prints it, or auto on a machine of the cluster"
        raise BadEnvironment("ray", f"nothing answers at {address!r} ({error})", remedy) from None


class RayWorker:
    """One process of the pool."""

    def __init__(self, pipeline: bytes, work: Assignment) -> None:
        self._pickled, self._work = pipeline, work

    @cached_property
    def pipeline(self) -> Pipeline:
        """Comes with the first row, so that an error is told as that of a row is."""
        return pickle.loads(self._pickled)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """Pickled jobs -> of each a pickled Outcome, or the error that ends the run."""
        return {"told": [self._told(pickle.loads(job)) for job in batch["job"]]}

    def _told(self, job: Job) -> bytes:
        try:
            return pickle.dumps(self._make(job))
        except CdiffError as error:
            return pickle.dumps(error)

    def _make(self, job: Job) -> Outcome:
        begun = self._work.own / f"{job.id}.begun"  # as many bytes as workers began this row, and died of it
        with disk_errors(f"writing {begun}"):
            with begun.open("ab") as file:
                file.write(b".")
            if begun.stat().st_size > DEATHS:
                return Outcome(
                    job.id, job.settings.seed, 0.0, meta=job.meta, error=f"ray: {DEATHS} workers died at this row"
                )
        outcome = make(self.pipeline, job, self._work)
        begun.unlink(missing_ok=True)  # of a run that ended, a new one has swept it
        return outcome


def _outcomes(work: Assignment, pipeline: Pipeline, workers: int, address: str | None) -> Iterator[Outcome]:
    import ray
    import ray.data

    rows = [{"job": pickle.dumps(job)} for job in work.jobs]
    if not rows:
        return
    try:
        with _cluster(workers, address):
            done = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map_batches(
                RayWorker,
                fn_constructor_args=(
                    ray.cloudpickle.dumps(pipeline),
                    replace(work, jobs=[], kept=[], elsewhere=frozenset()),
                ),
                batch_size=1,
                num_gpus=0 if BACKENDS[pipeline.backend].device == "cpu" else 1,
                compute=ray.data.ActorPoolStrategy(size=workers),
            )
            for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
                for told in map(pickle.loads, batch["told"]):
                    if isinstance(told, CdiffError):
                        raise told
                    yield told
    except (ray.exceptions.RayError, ConnectionError) as error:
        last = str(error).strip().splitlines()[-1]
        raise BadEnvironment("ray", last, "its logs say more; go on with --resume") from None


@contextmanager
def _cluster(workers: int, address: str | None) -> Iterator[None]:
    """A connection to Ray, unless there is one, for as long as the block lasts."""
    import ray
    import ray.data

    if ray.is_initialized():
        yield
        return
    own = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": STORE}
    ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
