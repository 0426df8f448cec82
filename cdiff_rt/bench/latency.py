"""How long a task takes, case against case, in turns, so that drift of the machine hits all alike."""

import json
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from cdiff_rt.bench.allocators import environment
from cdiff_rt.bench.cases import BASELINES, GPU_BATCHES, TUNED, Case, check, select
from cdiff_rt.bench.machine import machine
from cdiff_rt.bench.roofline import Roofline, limit_s, measure, operations_of
from cdiff_rt.bench.task import Task, What, open_bundle
from cdiff_rt.engines.base import Precision
from cdiff_rt.errors import BadEnvironment, BadRequest
from cdiff_rt.manifest import Manifest
from cdiff_rt.notes import log
from cdiff_rt.sampling.tiers import TIERS, Sampling
from cdiff_rt.settings import Settings

WARM_UP = 2
SECONDS = 3.0  # of counted runs, at the least, of each case
# Cases whose outputs differ by more do different work, and their times don't compare. Wide on purpose: rounding in half
# precision grows over the steps.
DRIFT: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 3e-1}
PIXELS: dict[Precision, float] = {"fp32": 1.0, "fp16": 8.0, "bf16": 24.0}  # mean difference, of 255


@dataclass(frozen=True)
class Timing:
    case: str
    load_s: float  # from the start of its process to its first result
    memory_mib: float | None  # peak resident
    ms: list[float]  # counted runs, in order
    beside: list[float] = field(default_factory=list)  # the baseline's in the same rounds
    launches: int | None = None  # of kernels and graphs by the host, in a run; on a GPU
    db: float | None = None  # signal to error of the latents, against the first case of its sampling; infinite if equal
    db_after: float | None = None  # the same after a run of some steps, where that was asked for
    roofline: float | None = None  # the share of what this machine can do at best

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.ms, q))

    @property
    def spread(self) -> float:
        """Half of the runs lie within so much of the median, relative to it."""
        return (self.percentile(75) - self.percentile(25)) / self.percentile(50)


@dataclass(frozen=True)
class Comparison:
    machine: dict[str, str]
    settings: dict[str, int | str]
    timings: list[Timing]
    roofline: Roofline | None = None

    def ratio(self, timing: Timing) -> float | None:
        """How many times faster than the baseline: the median of the ratios run by run."""
        return float(np.median(np.array(timing.beside) / np.array(timing.ms))) if timing.beside else None

    def to_tuned(self, timing: Timing) -> float | None:
        """How many times faster than the baseline with a tuned allocator: the ratio of the medians.

        With `pairwise` they ran in different rounds; but its runs are alike, where those of the baseline are not.
        """
        tuned = next((other for other in self.timings if other.case in TUNED), None)
        return tuned.percentile(50) / timing.percentile(50) if tuned else None

    def per_second(self, timing: Timing) -> float:
        return int(self.settings["batch"]) * 1000 / timing.percentile(50)


def compare(
    task: Task,
    cases: tuple[Case, ...],
    *,
    repeats: int,
    seconds: float = SECONDS,
    after: int | None = None,
    pairwise: bool = False,
    roofline: Roofline | None = None,
) -> Comparison:
    """Runs every case in turn, `repeats` times and until each has taken `seconds` in all.

    With `after` the accuracy is also taken after a run of so many steps. `pairwise` holds two cases at a time, the
    first with each of the others. Raises BadEnvironment if a case fails or computes something else than the others of
    its sampling.
    """
    check(cases)
    manifest = open_bundle(task).manifest
    check_runs(manifest, cases, (task.batch,), after)
    limits = limits_ms(manifest, task, cases, roofline) if roofline else {}
    base = next((name for name in BASELINES for case in cases if case.name == name), "")
    heats = [(cases[0], case) for case in cases[1:]] if pairwise and len(cases) > 2 else [cases]
    firsts: dict[Case, dict] = {}
    timings: dict[str, Timing] = {}
    for heat in heats:
        for timing in run_heat(task, heat, firsts, repeats, seconds, after, base):
            part = limits[timing.case] / timing.percentile(50) if timing.case in limits else None
            timings.setdefault(timing.case, replace(timing, roofline=part))
    db, later = (accuracies({case: first[what] for case, first in firsts.items()}) for what in ("latents", "later"))
    found = [replace(t, db=db.get(t.case), db_after=later.get(t.case) if after else None) for t in timings.values()]
    samplings = "; ".join(dict.fromkeys(str(case.sampling) for case in cases))
    settings: dict[str, int | str] = {"model": task.model, "what": task.what, "sampling": samplings}
    settings |= {"batch": task.batch, "warm-up": WARM_UP, "repeats": min(len(timing.ms) for timing in found)}
    settings |= ({"after": after} if after else {}) | ({"at a time": 2} if len(heats) > 1 else {})
    return Comparison(machine(), settings, found, roofline)


def check_runs(manifest: Manifest, cases: tuple[Case, ...], batches: tuple[int, ...], after: int | None) -> None:
    """Raises BadRequest for what no run may have, so that no worker has to fail over it."""
    for batch in batches:
        Settings(batch=batch)
    for case in cases:
        case.sampling.table(manifest.schedule)
        replace(case.sampling, steps=after or case.sampling.steps).table(manifest.schedule)


def run_heat(
    task: Task,
    cases: tuple[Case, ...],
    firsts: dict[Case, dict],
    repeats: int,
    seconds: float,
    after: int | None,
    base: str,
) -> list[Timing]:
    """The cases that are held at a time. Adds what each told of its first result to `firsts`."""
    workers: dict[str, CaseProcess] = {}
    try:
        for case in cases:  # one after the other, so that each first image has the machine for itself
            worker = workers[case.name] = CaseProcess(task, case)
            first = worker.first()
            log.info("%s: the first %s after %.1f s", case.name, task.what, first["load_s"])
            if case not in firsts:
                firsts[case] = first | {"later": worker.after(after) if after else []}
        check_same_work(firsts)
        rounds = in_turns(workers, repeats, seconds)
        beside = [row[base] for row in rounds] if base in workers else []
        timings = []
        for case in cases:
            end, ms = workers[case.name].finish(), [row[case.name] for row in rounds]
            load_s = firsts[case]["load_s"]
            timings.append(Timing(case.name, load_s, end["memory_mib"], ms, beside, launches=end["launches"]))
        return timings
    finally:
        for worker in workers.values():
            worker.process.kill()


def in_turns(workers: "dict[str, CaseProcess]", repeats: int, seconds: float) -> list[dict[str, float]]:
    """The counted rounds, each of one run per case, in ms."""
    for _ in range(WARM_UP):
        for worker in workers.values():
            worker.run()
    rounds: list[dict[str, float]] = []
    while len(rounds) < repeats or min(sum(row[name] for row in rounds) for name in workers) < 1000 * seconds:
        rounds.append({name: worker.run() for name, worker in workers.items()})
    return rounds


def limits_ms(manifest: Manifest, task: Task, cases: tuple[Case, ...], roofline: Roofline) -> dict[str, float]:
    """The least time of the task by case, of those whose precision the roofline has."""
    works = {n: operations_of(manifest, task.what, n, task.batch) for n in {case.sampling.steps for case in cases}}
    limits = {case.name: limit_s(works[case.sampling.steps], roofline, case.computes_in) for case in cases}
    return {name: 1000 * limit for name, limit in limits.items() if limit is not None}


def compare_suite(
    model: str,
    suite: str,
    what: What,
    *,
    backends: Collection[str] = (),
    precisions: Collection[str] = (),
    samplings: tuple[Sampling, ...] = (TIERS["exact"],),
    batches: tuple[int, ...] = (),
    repeats: int = 10,
    after: int | None = None,
    pairwise: bool = False,
) -> Iterator[Comparison]:
    """The cases of a suite that work here, see `cases.select`: a comparison for each batch size."""
    if what == "step" and suite == "gpu":
        raise BadRequest("what", "a step on a GPU", "its loop is one graph there; time the image")
    cases = select(suite, backends, precisions, samplings)
    sizes = batches or (GPU_BATCHES if suite == "gpu" else (1,))
    check_runs(open_bundle(Task(model)).manifest, cases, sizes, after)  # before anything takes its time
    roofline = measure() if suite == "cpu" else None
    for size in sizes:
        task = Task(model, what, size)
        yield compare(task, cases, repeats=repeats, after=after, pairwise=pairwise, roofline=roofline)


class CaseProcess:
    """A child process that times one case."""

    def __init__(self, task: Task, case: Case) -> None:
        self.case, self._started = case, time.perf_counter()
        command = [sys.executable, "-m", "cdiff_rt.bench.worker", task.to_json(), case.to_json()]
        pipe, variables = subprocess.PIPE, environment(case.allocator)
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=variables)

    def first(self) -> dict:
        """What it tells of its first result, and the seconds since its start."""
        message = self._receive()
        return message | {"load_s": time.perf_counter() - self._started}

    def run(self) -> float:
        """One timed run, in ms."""
        return self._ask("run")["ms"]

    def after(self, steps: int) -> list[float]:
        """The latents of a run of so many steps."""
        return self._ask(f"after {steps}")["latents"]

    def finish(self) -> dict:
        """Ends the process; what it says at its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self._receive()

    def _ask(self, line: str) -> dict:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._receive()

    def _receive(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        message = json.loads(line)
        if "error" in message:
            raise BadEnvironment(self.case.name, message["error"], "see `cdiff-rt doctor`")
        return message

    def _ended(self) -> BadEnvironment:
        return BadEnvironment(self.case.name, "its process ended", "see the message above and `cdiff-rt doctor`")


def check_same_work(firsts: dict[Case, dict]) -> None:
    """`firsts`: latents and pixels of each case's first result. Those of one sampling have to agree."""
    for case, first in firsts.items():
        judge = next(other for other in firsts if other.sampling == case.sampling)
        precisions = case.computes_in, judge.computes_in
        ours, its = np.array(first["latents"]), np.array(firsts[judge]["latents"])
        error = np.abs(ours - its).max() / its.std()
        if not error <= max(DRIFT[precision] for precision in precisions):
            raise _differs(case, judge, f"latents differ by {error:.1e}")
        if its_pixels := firsts[judge]["pixels"]:
            off = np.abs(np.array(first["pixels"], float) - its_pixels).mean()
            if not off <= max(PIXELS[precision] for precision in precisions):
                raise _differs(case, judge, f"pixels differ by {off:.1f} of 255")


def _differs(case: Case, judge: Case, how: str) -> BadEnvironment:
    what = f"{case.name}'s first {how} from {judge.name}'s"
    return BadEnvironment("benchmark", what, "their times don't compare; run `cdiff-rt doctor`")


def accuracies(latents: dict[Case, list[float]]) -> dict[str, float]:
    """dB by case, against the first of the same sampling; that one has none."""
    found: dict[str, float] = {}
    for case, ours in latents.items():
        judge = next(other for other in latents if other.sampling == case.sampling)
        if case != judge and ours:
            found[case.name] = decibels(np.array(ours), np.array(latents[judge]))
    return found


def decibels(x: np.ndarray, wanted: np.ndarray) -> float:
    """How far the error lies below the signal."""
    error = float(np.linalg.norm(x - wanted))
    return 20 * float(np.log10(np.linalg.norm(wanted) / error)) if error else float("inf")
