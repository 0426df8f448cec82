"""Latency of one image from conditions to pixels, backend against backend, in turns, so that drift hits all alike."""

import json
import logging
import platform
import subprocess
import sys
from dataclasses import dataclass

import numpy as np

from cdiff_rt import __version__
from cdiff_rt.doctor import LIBRARIES, version_of
from cdiff_rt.engines import BACKENDS, check_backend, cores, why_not
from cdiff_rt.errors import BadEnvironment
from cdiff_rt.manifest import Bundle
from cdiff_rt.pipeline import check_numbers, find_model

BASELINE = "torch"
WARM_UP = 2
log = logging.getLogger("cdiff_rt")
DRIFT = 1e-3  # backends whose outputs differ by more do different work, and their times don't compare


@dataclass(frozen=True)
class Timing:
    backend: str
    load_s: float  # import, load and the first image
    memory_mib: float  # peak resident
    ms: list[float]  # counted runs, in order

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.ms, q))


@dataclass(frozen=True)
class Comparison:
    machine: dict[str, str]
    settings: dict[str, int | str]
    timings: list[Timing]

    def ratio(self, timing: Timing) -> float | None:
        """How many times faster than the baseline: the median of the ratios run by run."""
        base = next((t for t in self.timings if t.backend == BASELINE), None)
        return float(np.median(np.array(base.ms) / np.array(timing.ms))) if base else None


def compare(model: str, backends: tuple[str, ...], *, steps: int, batch: int, repeats: int) -> Comparison:
    """Runs every backend `repeats` times in turn. Raises BadEnvironment if one fails or computes something else."""
    chosen = backends or _installed()
    for name in chosen:
        check_backend(name)
    check_numbers(0, 0, batch)
    Bundle.open(find_model(model)).manifest.schedule.timesteps(steps)  # here, so that no worker has to fail over it
    workers: dict[str, Worker] = {}
    greetings: dict[str, dict] = {}
    try:
        for name in chosen:  # one after the other, so that each first image has the machine for itself
            workers[name] = Worker(model, name, steps, batch)
            greetings[name] = workers[name].receive()
            log.info("%s made its first image after %.1f s", name, greetings[name]["load_s"])
        _check_same_work({name: greeting["sample"] for name, greeting in greetings.items()})
        rounds = [{name: worker.run() for name, worker in workers.items()} for _ in range(WARM_UP + repeats)]
        timings = [
            Timing(name, greetings[name]["load_s"], worker.finish(), [row[name] for row in rounds[WARM_UP:]])
            for name, worker in workers.items()
        ]
    finally:
        for worker in workers.values():
            worker.process.kill()
    return Comparison(
        machine(), {"model": model, "steps": steps, "batch": batch, "warm-up": WARM_UP, "repeats": repeats}, timings
    )


class Worker:
    """A child process that times one backend."""

    def __init__(self, model: str, backend: str, steps: int, batch: int) -> None:
        self.backend = backend
        command = [sys.executable, "-m", "cdiff_rt.bench.worker", model, backend, str(steps), str(batch)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def receive(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        message = json.loads(line)
        if "error" in message:
            raise BadEnvironment(f"backend {self.backend}", message["error"], "see `cdiff-rt doctor`")
        return message

    def run(self) -> float:
        """One timed run, in ms."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self.receive()["ms"]

    def finish(self) -> float:
        """Ends the process; its peak memory in MiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.receive()["memory_mib"]

    def _ended(self) -> BadEnvironment:
        return BadEnvironment(
            f"backend {self.backend}", "its process ended", "see the message above and `cdiff-rt doctor`"
        )


def _check_same_work(samples: dict[str, list[float]]) -> None:
    """`samples`: some values of each backend's first latent."""
    reference = np.array(next(iter(samples.values())))
    for name, sample in samples.items():
        error = np.abs(np.array(sample) - reference).max() / reference.std()
        if not error <= DRIFT:
            what = f"{name}'s first image differs by {error:.1e} from {next(iter(samples))}'s"
            raise BadEnvironment("benchmark", what, "their times don't compare; run `cdiff-rt doctor`")


def _installed() -> tuple[str, ...]:
    reasons = {name: why_not(name) for name in BACKENDS}
    for name, reason in reasons.items():
        if reason:
            log.info("%s is left out: %s", name, reason)
    found = tuple(name for name, reason in reasons.items() if reason is None)
    if not found:
        raise BadEnvironment("benchmark", "no backend is installed", "run `pip install '.[cpu]'` in the checkout")
    return found


def machine() -> dict[str, str]:
    versions = {name: version_of(name) for name in LIBRARIES}
    return {
        "cdiff-rt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": str(cores()),
        **{name: version for name, version in versions.items() if version != "not installed"},
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
