"""Latency of one image from conditions to pixels, case against case, in turns, so that drift hits all alike."""

import json
import logging
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cdiff_rt import __version__
from cdiff_rt.bench.cases import BASELINES, GPU_BATCHES, Case, check, on_a_gpu, on_the_cpu
from cdiff_rt.doctor import LIBRARIES, version_of
from cdiff_rt.engines import Precision, cores
from cdiff_rt.engines.cuda import compute_capability, device_name, why_no_device
from cdiff_rt.errors import BadEnvironment
from cdiff_rt.manifest import Bundle
from cdiff_rt.pipeline import check_numbers, find_model

WARM_UP = 2
log = logging.getLogger("cdiff_rt")
# Cases whose outputs differ by more do different work, and their times don't compare. Wide on purpose: rounding in half
# precision grows over the steps.
DRIFT: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 3e-1}


@dataclass(frozen=True)
class Timing:
    case: str
    load_s: float  # import, load and the first image
    memory_mib: float  # peak resident
    ms: list[float]  # counted runs, in order
    launches: int | None = None  # of kernels and graphs by the host, in a run; on a GPU

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.ms, q))


@dataclass(frozen=True)
class Comparison:
    machine: dict[str, str]
    settings: dict[str, int | str]
    timings: list[Timing]

    def ratio(self, timing: Timing) -> float | None:
        """How many times faster than the baseline: the median of the ratios run by run."""
        base = next((t for name in BASELINES for t in self.timings if t.case == name), None)
        return float(np.median(np.array(base.ms) / np.array(timing.ms))) if base else None


def compare(model: str, cases: tuple[Case, ...], *, steps: int, batch: int, repeats: int) -> Comparison:
    """Runs every case `repeats` times in turn. Raises BadEnvironment if one fails or computes something else."""
    check(cases)
    check_numbers(0, 0, batch)
    Bundle.open(find_model(model)).manifest.schedule.timesteps(steps)  # here, so that no worker has to fail over it
    workers: dict[str, Worker] = {}
    greetings: dict[str, dict] = {}
    try:
        for case in cases:  # one after the other, so that each first image has the machine for itself
            workers[case.name] = Worker(model, case, steps, batch)
            greetings[case.name] = workers[case.name].receive()
            log.info("%s made its first image after %.1f s", case.name, greetings[case.name]["load_s"])
        _check_same_work({case: greetings[case.name]["sample"] for case in cases})
        rounds = [{name: worker.run() for name, worker in workers.items()} for _ in range(WARM_UP + repeats)]
        timings = []
        for name, worker in workers.items():
            end = worker.finish()
            runs = [row[name] for row in rounds[WARM_UP:]]
            timings.append(Timing(name, greetings[name]["load_s"], end["memory_mib"], runs, end["launches"]))
    finally:
        for worker in workers.values():
            worker.process.kill()
    settings: dict[str, int | str] = {"model": model, "steps": steps, "batch": batch}
    return Comparison(machine(), settings | {"warm-up": WARM_UP, "repeats": repeats}, timings)


def compare_suite(
    model: str, suite: str, backends: tuple[str, ...], steps: int, batch: int | None, repeats: int
) -> Iterator[Comparison]:
    """The "cpu" suite, of `backends` or all that work, or the "gpu" suite: a comparison for each batch size."""
    if suite == "gpu":
        cases, batches = on_a_gpu(backends), GPU_BATCHES
    else:
        cases, batches = on_the_cpu(backends), (1,)
    for size in (batch,) if batch is not None else batches:
        yield compare(model, cases, steps=steps, batch=size, repeats=repeats)


class Worker:
    """A child process that times one case."""

    def __init__(self, model: str, case: Case, steps: int, batch: int) -> None:
        self.case = case
        command = [sys.executable, "-m", "cdiff_rt.bench.worker", model, case.to_json(), str(steps), str(batch)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def receive(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        message = json.loads(line)
        if "error" in message:
            raise BadEnvironment(f"backend {self.case.backend}", message["error"], "see `cdiff-rt doctor`")
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

    def finish(self) -> dict:
        """Ends the process; what it says at its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.receive()

    def _ended(self) -> BadEnvironment:
        return BadEnvironment(
            f"backend {self.case.backend}", "its process ended", "see the message above and `cdiff-rt doctor`"
        )


def _check_same_work(samples: dict[Case, list[float]]) -> None:
    """`samples`: some values of each case's first latent."""
    first = next(iter(samples))
    reference = np.array(samples[first])
    for case, sample in samples.items():
        error = np.abs(np.array(sample) - reference).max() / reference.std()
        if not error <= max(DRIFT[case.computes_in], DRIFT[first.computes_in]):
            what = f"{case.name}'s first image differs by {error:.1e} from {first.name}'s"
            raise BadEnvironment("benchmark", what, "their times don't compare; run `cdiff-rt doctor`")


def machine() -> dict[str, str]:
    versions = {name: version_of(name) for name in LIBRARIES}
    return {
        "cdiff-rt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": str(cores()),
        **({} if why_no_device() else {"gpu": device_name(), "compute capability": compute_capability()}),
        **{name: version for name, version in versions.items() if version != "not installed"},
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
