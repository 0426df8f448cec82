"""How long a task takes, case against case, in turns, so that drift of the machine hits all alike."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from cdiff_rt.bench.case_process import CaseProcess
from cdiff_rt.bench.cases import BASELINES, GPU_BATCHES, Case, check, select
from cdiff_rt.bench.comparison import AT_A_TIME, Comparison, Timing
from cdiff_rt.bench.machine import machine
from cdiff_rt.bench.roofline import Roofline, limit_s, measure, operations_of
from cdiff_rt.bench.task import Task, What, open_bundle
from cdiff_rt.engines.base import Precision, is_composed
from cdiff_rt.errors import BadEnvironment, BadRequest
from cdiff_rt.manifest import Manifest
from cdiff_rt.notes import log
from cdiff_rt.sampling.tiers import TIERS, Sampling
from cdiff_rt.settings import Settings

WARM_UP = 2
SECONDS = 3.0  # of counted runs, at the least, of each case
# Cases whose outputs differ by more do different work, and their times don't compare. Wide on purpose: rounding in half
# precision grows over the steps.
DRIFT: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 3e-1, "tf32": 5e-2}
PIXELS: dict[Precision, float] = {"fp32": 1.0, "fp16": 8.0, "bf16": 24.0, "tf32": 8.0}  # mean difference, of 255

LeftOut = dict[str, BadEnvironment]  # by case


class OtherWork(BadEnvironment):
    """What a case computes is not what the others of its sampling do."""


def compare(
    task: Task,
    cases: tuple[Case, ...],
    *,
    repeats: int,
    seconds: float = SECONDS,
    after: int | None = None,
    pairwise: bool = False,
    alone: bool = False,
    roofline: Roofline | None = None,
    keep: Callable[[Comparison], None] = lambda comparison: None,
) -> Comparison:
    """Runs every case in turn, `repeats` times and until each has taken `seconds` in all.

    With `after` the accuracy is also taken after a run of so many steps. `pairwise` holds two cases at a time, the
    first with each of the others, and `alone` one; after each of these heats `keep` gets what is known by then. A case
    that fails, or does other work than the others of its sampling, is left out. Raises BadEnvironment if none is left.
    """
    check(cases)
    manifest = open_bundle(task).manifest
    if is_composed(manifest):
        cases, roofline = without_torch(cases), None  # which counts operations of PyTorch's modules
    check_runs(manifest, cases, (task.batch,), after)
    limits = limits_ms(manifest, task, cases, roofline) if roofline else {}
    base = next((name for name in BASELINES for case in cases if case.name == name), "")
    heats = _heats(cases, pairwise, alone)
    settings = _settings(task, cases, after) | ({AT_A_TIME: max(map(len, heats))} if len(heats) > 1 else {})
    comparison = Comparison(machine(), settings, [], roofline)
    firsts, left_out, timings = dict[Case, dict](), LeftOut(), dict[str, Timing]()
    for heat in heats:
        for timing in run_heat(task, heat, firsts, left_out, repeats, seconds, after, base):
            part = limits[timing.case] / timing.percentile(50) if timing.case in limits else None
            timings.setdefault(timing.case, replace(timing, roofline=part))
        comparison = _with(comparison, [*timings.values()], firsts, left_out)
        if timings:
            keep(comparison)
    if not timings:
        causes = "; ".join(dict.fromkeys(error.seen for error in left_out.values()))
        raise BadEnvironment("benchmark", f"no case of it runs here ({causes})", "see `cdiff-rt doctor`")
    return comparison


def without_torch(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Those that run graphs. Raises BadEnvironment if there is none."""
    found = tuple(case for case in cases if not case.is_baseline)
    log.info("PyTorch is left out: this bundle was composed of others' networks, which are graphs alone")
    if not found:
        raise BadEnvironment(
            "benchmark", "only PyTorch is asked for, which runs no composed bundle", "name another backend"
        )
    return found


def _heats(cases: tuple[Case, ...], pairwise: bool, alone: bool) -> list[tuple[Case, ...]]:
    """Which cases are held together."""
    if alone:
        return [(case,) for case in cases]
    return [(cases[0], case) for case in cases[1:]] if pairwise and len(cases) > 2 else [cases]


def _settings(task: Task, cases: tuple[Case, ...], after: int | None) -> dict[str, int | str]:
    samplings = "; ".join(dict.fromkeys(str(case.sampling) for case in cases))
    settings: dict[str, int | str] = {"model": task.subject, "what": task.what, "sampling": samplings}
    settings |= {"batch": task.batch, "warm-up": WARM_UP, "repeats": 0}
    return settings | ({"after": after} if after else {})


def _with(known: Comparison, timings: list[Timing], firsts: dict[Case, dict], left_out: LeftOut) -> Comparison:
    """The comparison of what is known by now."""
    db, later = (accuracies({case: first[what] for case, first in firsts.items()}) for what in ("latents", "later"))
    after = "after" in known.settings
    return replace(
        known,
        settings=known.settings | {"repeats": min((len(timing.ms) for timing in timings), default=0)},
        timings=[replace(t, db=db.get(t.case), db_after=later.get(t.case) if after else None) for t in timings],
        left_out={name: error.seen for name, error in left_out.items()},
        wrong=tuple(name for name, error in left_out.items() if isinstance(error, OtherWork)),
    )


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
    left_out: LeftOut,
    repeats: int,
    seconds: float,
    after: int | None,
    base: str,
) -> list[Timing]:
    """The cases that are held at a time. Adds what each told of its first result to `firsts`, or why it is left out."""
    workers: dict[str, CaseProcess] = {}
    try:
        for case in cases:  # one after the other, so that each first image has the machine for itself
            with _leaving_out(case.name, workers, left_out):
                worker = workers[case.name] = CaseProcess(task, case)
                first = worker.first()
                log.info("%s: the first %s after %.1f s", case.name, task.what, first["load_s"])
                check_same_work({**firsts, case: first})
                if case not in firsts:
                    firsts[case] = first | {"later": worker.after(after) if after else []}
        rounds = in_turns(workers, repeats, seconds, left_out)
        beside = [row[base] for row in rounds] if base in workers and len(cases) > 1 else []
        return [_timing(case, workers[case.name], rounds, beside, firsts) for case in cases if case.name in workers]
    finally:
        for worker in workers.values():
            worker.process.kill()


def _timing(
    case: Case, worker: CaseProcess, rounds: list[dict[str, float]], beside: list[float], firsts: dict[Case, dict]
) -> Timing:
    try:
        end = worker.finish()
    except BadEnvironment as error:  # its times are known
        log.warning("%s: its memory and launches are not known: %s", case.name, error.seen)
        end = {"memory_mib": None, "launches": None}
    ms, load_s = [row[case.name] for row in rounds], firsts[case]["load_s"]
    return Timing(case.name, load_s, end["memory_mib"], ms, beside, launches=end["launches"])


@contextmanager
def _leaving_out(name: str, workers: dict[str, CaseProcess], left_out: LeftOut) -> Iterator[None]:
    """A case that fails within the block is none of the workers any more, and why is told."""
    try:
        yield
    except BadEnvironment as error:
        left_out[name] = error
        log.warning("%s is left out: %s", name, error.seen)
        workers.pop(name).process.kill()


def in_turns(
    workers: dict[str, CaseProcess], repeats: int, seconds: float, left_out: LeftOut | None = None
) -> list[dict[str, float]]:
    """The counted rounds, each of one run per case, in ms."""

    def one_round() -> dict[str, float]:
        row = {}
        for name in [*workers]:
            with _leaving_out(name, workers, {} if left_out is None else left_out):
                row[name] = workers[name].run()
        return row

    for _ in range(WARM_UP):
        one_round()
    rounds: list[dict[str, float]] = []
    while workers and (
        len(rounds) < repeats or min(sum(row[name] for row in rounds) for name in workers) < 1000 * seconds
    ):
        rounds.append(one_round())
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
    with_experts: Mapping[str, str] | None = None,
    backends: Collection[str] = (),
    precisions: Collection[str] = (),
    samplings: tuple[Sampling, ...] = (TIERS["exact"],),
    batches: tuple[int, ...] = (),
    repeats: int = 10,
    after: int | None = None,
    pairwise: bool = False,
    keep: Callable[[Comparison], None] = lambda comparison: None,
) -> Iterator[Comparison]:
    """The cases of a suite that work here, see `cases.select`: a comparison for each batch size at which one runs.

    Those of a GPU are held one at a time, for its memory is small. Raises BadEnvironment at the end, when all else is
    told: if nothing was timed, if no case of a backend that was asked for was, or if one does other work.
    """
    if what == "step" and suite == "gpu":
        raise BadRequest("what", "a step on a GPU", "its loop is one graph there; time the image")
    cases = select(suite, backends, precisions, samplings)
    on_gpu = suite == "gpu"
    sizes = batches or (GPU_BATCHES if on_gpu else (1,))
    added = dict(with_experts or {})
    manifest = open_bundle(Task(model, with_experts=added)).manifest
    check_runs(manifest, cases, sizes, after)  # before anything takes its time
    how: dict[str, Any] = {"repeats": repeats, "after": after, "roofline": None if on_gpu else measure(), "keep": keep}
    how |= {"pairwise": pairwise, "alone": on_gpu and not pairwise}
    timed, lost, wrong, failed = set[str](), dict[str, str](), list[str](), None
    for size in sizes:
        task = Task(model, what, size, added)
        try:
            found = compare(task, cases, **how)
        except BadEnvironment as error:
            failed = failed or error
            continue
        yield found
        timed |= {case.backend for case in cases if case.name not in found.left_out}
        lost, wrong = found.left_out | lost, [*wrong, *found.wrong]
    if failed and not timed:
        raise failed
    missed = [case.name for case in cases if case.backend in set(backends) - timed]
    for name in (*wrong, *missed):
        raise BadEnvironment("benchmark", f"{name}: {lost[name]}", "all others were timed; run `cdiff-rt doctor`")


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


def _differs(case: Case, judge: Case, how: str) -> OtherWork:
    what = f"{case.name}'s first {how} from {judge.name}'s"
    return OtherWork("benchmark", what, "their times don't compare; run `cdiff-rt doctor`")


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
