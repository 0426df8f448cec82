import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest

from cdiff_rt.bench import latency as module
from cdiff_rt.bench.cases import TUNED, Case
from cdiff_rt.bench.latency import (
    CaseProcess,
    Comparison,
    Timing,
    accuracies,
    check_same_work,
    compare,
    compare_suite,
    decibels,
    in_turns,
    limits_ms,
)
from cdiff_rt.bench.roofline import Roofline
from cdiff_rt.bench.task import Task
from cdiff_rt.engines import backends
from cdiff_rt.engines.backends import BACKENDS, Backend
from cdiff_rt.errors import BadEnvironment, BadRequest
from cdiff_rt.manifest import Bundle
from cdiff_rt.sampling.tiers import TIERS, Sampling

TWO = Sampling(steps=2)
ORT, TORCH = Case("onnxruntime", "onnxruntime", sampling=TWO), Case("torch", "torch", sampling=TWO)
ROOF = Roofline({"fp32": 1e9}, {"fp32": 1e9}, 1e9)


def comparison(base, **ms):
    beside = ms.get(base, [])
    return Comparison({}, {"batch": 4}, [Timing(name, 1.0, 100.0, values, beside) for name, values in ms.items()])


def test_ratio_is_the_median_of_ratios_run_by_run():
    """The machine slows down threefold in the last run; the ratio of medians would be 2.4, of means 2.2."""
    result = comparison("torch", torch=[100.0, 120.0, 300.0], onnxruntime=[50.0, 40.0, 150.0])
    assert [result.ratio(timing) for timing in result.timings] == [1.0, 2.0]


def test_the_references_arithmetic_is_the_baseline_where_it_was_timed():
    reference = "torch, as the reference"
    result = comparison(reference, **{"torch": [1.0] * 3, reference: [8.0] * 3, TUNED[0]: [4.0] * 3})
    assert [result.ratio(timing) for timing in result.timings] == [8.0, 1.0, 2.0]
    assert [result.to_tuned(timing) for timing in result.timings] == [4.0, 0.5, 1.0]


def test_what_is_told_of_the_tuned_one_does_not_waver_with_the_baseline():
    """Held two at a time, each case has runs of the baseline of its own: here twice as slow beside the second."""
    tuned, fast = (
        Timing(name, 1.0, 1.0, [ms] * 3, [base] * 3) for name, ms, base in ((TUNED[0], 4, 8), ("fast", 1, 16))
    )
    result = Comparison({}, {"batch": 1}, [tuned, fast])
    assert (result.ratio(fast), result.to_tuned(fast), result.to_tuned(tuned)) == (16.0, 4.0, 1.0)


def test_without_the_baseline_there_is_no_ratio():
    result = comparison("torch", onnxruntime=[50.0, 40.0, 150.0])
    assert result.ratio(result.timings[0]) is None
    assert result.per_second(result.timings[0]) == 80


@pytest.mark.parametrize(("q", "expected"), [(0, 10), (50, 30), (90, 46), (100, 50)])
def test_percentiles(q, expected):
    timing = Timing("torch", 1.0, 1.0, [50.0, 10.0, 30.0, 20.0, 40.0])
    assert timing.percentile(q) == expected
    assert timing.spread == pytest.approx(20 / 30)


@pytest.mark.slow
def test_a_real_comparison_times_every_case(tiny_bundle):
    task = Task(str(tiny_bundle))
    result = compare(task, (TORCH, ORT), repeats=3, seconds=0, roofline=ROOF)
    assert [timing.case for timing in result.timings] == ["torch", "onnxruntime"]
    for timing in result.timings:
        assert len(timing.ms) == 3
        assert all(0.1 < ms < 60_000 for ms in timing.ms)
        assert timing.load_s > 0.001 * min(timing.ms)
        assert 20 < timing.memory_mib < 16_000
        assert timing.db_after is None and timing.roofline > 0
    assert result.ratio(result.timings[1]) > 0
    assert result.timings[0].db is None and result.timings[1].db > 80
    settings = {
        "model": str(tiny_bundle),
        "what": "image",
        "sampling": str(TWO),
        "batch": 1,
        "warm-up": 2,
        "repeats": 3,
    }
    assert result.settings == settings


@pytest.mark.slow
def test_a_step_is_timed_and_its_accuracy_taken_after_more(tiny_bundle):
    slow, naive = Case("slow", "torch", naive=True, sampling=TWO), Case("naive", "torch", sampling=TWO)
    result = compare(Task(str(tiny_bundle), "step", 2), (slow, naive), repeats=3, seconds=0, after=4)
    assert result.settings["after"] == 4 and result.settings["batch"] == 2
    assert [timing.db is None for timing in result.timings] == [True, False]
    assert all(db > 80 for db in (result.timings[1].db, result.timings[1].db_after))


def test_two_at_a_time_are_each_compared_with_the_first(monkeypatch, tiny_bundle):
    class Fake:
        alive, most, speeds = 0, 0, {"torch": iter([8.0, 16.0]), "a": iter([4.0]), "b": iter([4.0])}

        def __init__(self, task, case):
            self.case, self.ms = case, next(Fake.speeds[case.name])
            self.process = self
            Fake.alive += 1
            Fake.most = max(Fake.alive, Fake.most)

        def kill(self):
            Fake.alive -= 1

        def first(self):
            return {"load_s": self.ms, "latents": [1.0, 2.0], "pixels": []}

        def run(self):
            return self.ms

        def after(self, steps):
            return [float(steps), 1.0]

        def finish(self):
            return {"memory_mib": 1.0, "launches": None}

    monkeypatch.setattr(module, "CaseProcess", Fake)
    cases = (TORCH, *(Case(name, "onnxruntime", sampling=TWO) for name in "ab"))
    result = compare(Task(str(tiny_bundle), "step"), cases, repeats=3, seconds=0, after=8, pairwise=True)
    assert (Fake.most, Fake.alive) == (2, 0)
    assert [timing.case for timing in result.timings] == ["torch", "a", "b"]
    assert [result.ratio(timing) for timing in result.timings] == [1.0, 2.0, 4.0]  # the machine slowed down between
    assert result.timings[0].load_s == 8.0 and result.timings[2].db_after == math.inf
    assert result.settings["at a time"] == 2


class Worker:
    """A case in no process: it fails where its name says so, and "other" computes something else."""

    def __init__(self, task, case):
        self.name, self.process, self.batch, self.runs = case.name, SimpleNamespace(kill=lambda: None), task.batch, 0

    def fails(self, when):
        if self.name.endswith((f"{when} fails", f"{when} fails at {self.batch}")):
            raise BadEnvironment(self.name, f"no {when} of batch {self.batch}; build it", "see `cdiff-rt doctor`")

    def first(self):
        self.fails("start")
        return {"load_s": 1.0, "latents": [9.0, 2.0] if "other" in self.name else [1.0, 2.0], "pixels": []}

    def run(self):
        self.runs += 1
        if self.runs > 3:
            self.fails("run")
        return 8.0 if "reference" in self.name else 2.0

    def finish(self):
        self.fails("end")
        return {"memory_mib": 1.0, "launches": 3}


@pytest.fixture
def suite(monkeypatch):
    """(names of cases) -> the suite of a GPU has these, all of one backend of the CPU's unless their name has another."""
    monkeypatch.setattr(module, "CaseProcess", Worker)
    monkeypatch.setattr(module.compare, "__kwdefaults__", module.compare.__kwdefaults__ | {"seconds": 0})

    def install(*names):
        backends = ["torch" if "torch" in name else "onnxruntime" for name in names]
        cases = tuple(Case(name, backend, sampling=TWO) for name, backend in zip(names, backends, strict=True))
        monkeypatch.setattr(module, "select", lambda *arguments: cases)

    return install


def timed(*backends, batches=(1,), kept=None):
    """What the suite comes to: cases by batch, what was left out, and the error at the end."""
    found, error = [], None
    keep = (lambda comparison: None) if kept is None else kept.append
    try:
        how = {"backends": backends, "batches": batches, "repeats": 3, "keep": keep}
        found.extend(compare_suite("faces-128", "gpu", "image", **how))
    except BadEnvironment as failure:
        error = failure
    return found, error


def test_what_cannot_start_is_left_out_with_the_reason_at_that_batch_alone(suite, caplog):
    suite("reference", "engine, start fails at 2", "late, run fails", "end fails")
    with caplog.at_level(logging.WARNING, "cdiff_rt"):
        found, error = timed(batches=(1, 2))
    assert error is None
    assert [[timing.case for timing in one.timings] for one in found] == [
        ["reference", "engine, start fails at 2", "end fails"], ["reference", "end fails"]
    ]  # fmt: skip
    assert found[1].left_out["engine, start fails at 2"] == "no start of batch 2; build it"
    assert [one.timings[-1].launches for one in found] == [None, None] and len(found[0].timings[0].ms) == 3
    assert "late, run fails is left out: no run of batch 1; build it" in caplog.messages


def test_each_case_is_kept_as_soon_as_it_is_timed(suite):
    suite("torch", "a", "start fails", "b")
    kept = []
    timed(kept=kept)
    assert [[timing.case for timing in one.timings] for one in kept] == [
        ["torch"], ["torch", "a"], ["torch", "a"], ["torch", "a", "b"]
    ]  # fmt: skip
    assert kept[-1].settings["at a time"] == 1 and kept[-1].ratio(kept[-1].timings[1]) == 1.0


def test_nothing_to_time_is_an_error(suite):
    suite("start fails", "b, start fails")
    found, error = timed(batches=(1, 2))
    assert found == [] and "no case of it runs here (no start of batch 1; build it)" in str(error)


def test_what_was_asked_for_and_never_timed_is_an_error_when_all_else_is_told(suite):
    suite("torch", "onnxruntime, start fails at 1")
    found, error = timed("torch", "onnxruntime")
    assert [timing.case for timing in found[0].timings] == ["torch"] and "no start of batch 1" in str(error)
    found, error = timed("torch", "onnxruntime", batches=(1, 2))
    assert len(found) == 2 and error is None


def test_other_work_is_an_error_when_all_else_is_told(suite):
    suite("torch", "other", "onnxruntime")
    found, error = timed(batches=(1, 2))
    assert [[timing.case for timing in one.timings] for one in found] == [["torch", "onnxruntime"]] * 2
    assert "benchmark: other: other's first latents differ by" in str(error)


@pytest.mark.parametrize(("steps", "batch"), [(0, 1), (2, 0), (-1, 1)])
def test_settings_out_of_range_are_refused(tiny_bundle, steps, batch):
    case = Case("a", "onnxruntime", sampling=Sampling(steps=steps))
    with pytest.raises(BadRequest, match="^(steps|batch): -?[0-9] is outside 1-"):
        compare(Task(str(tiny_bundle), "image", batch), (case,), repeats=3)


class Clock:
    """A worker that takes as long as it says."""

    def __init__(self, ms):
        self.ms, self.runs = ms, 0

    def run(self):
        self.runs += 1
        return self.ms


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 10), (0.2, 10), (0.9, 45)])
def test_every_case_has_its_repeats_and_its_seconds(seconds, rounds):
    workers = {"quick": Clock(20.0), "slow": Clock(500.0)}
    counted = in_turns(workers, 10, seconds)
    assert counted == [{"quick": 20.0, "slow": 500.0}] * rounds
    assert [worker.runs for worker in workers.values()] == [module.WARM_UP + rounds] * 2


def test_a_worker_that_cannot_start_is_an_error(tmp_path):
    with pytest.raises(BadEnvironment, match="onnxruntime: .*has no manifest.json"):
        CaseProcess(Task(str(tmp_path)), ORT).first()


def test_a_worker_that_dies_between_two_runs_is_an_error(tiny_bundle):
    worker = CaseProcess(Task(str(tiny_bundle)), ORT)
    worker.first()
    worker.process.kill()
    worker.process.wait()
    with pytest.raises(BadEnvironment, match="onnxruntime.*its process ended"):
        worker.run()


def test_without_any_backend_the_remedy_is_named(tiny_bundle, monkeypatch):
    for name in BACKENDS:
        monkeypatch.setitem(BACKENDS, name, Backend("x:load", ("no_such_library",), "cpu"))
    with pytest.raises(BadEnvironment, match="no_such_library not installed"):
        next(compare_suite(str(tiny_bundle), "cpu", "image"))


def first(*latents, pixels=()):
    return {"latents": list(latents), "pixels": list(pixels)}


HALF = Case("half", "torch-cuda", "fp16", sampling=TWO)


def test_equal_work_passes():
    check_same_work({ORT: first(0.70001, -1.0, pixels=[10, 20]), TORCH: first(0.7, -1.0, pixels=[10, 21])})


@pytest.mark.parametrize("value", [0.71, 0.0, math.nan, math.inf])
def test_different_work_is_an_error(value):
    with pytest.raises(BadEnvironment, match="torch's first latents differ by .* from onnxruntime's"):
        check_same_work({ORT: first(0.7, -1.0), TORCH: first(value, -1.0)})


def test_another_image_of_the_same_latents_is_an_error():
    """As of an autoencoder that was compiled to something else."""
    with pytest.raises(BadEnvironment, match="torch's first pixels differ by 35.0 of 255 from onnxruntime's"):
        check_same_work({ORT: first(0.7, -1.0, pixels=[10, 20]), TORCH: first(0.7, -1.0, pixels=[50, 50])})


def test_half_precision_may_differ_by_its_rounding_and_not_by_more():
    check_same_work({ORT: first(0.7, -1.0), HALF: first(0.71, -1.0)})
    with pytest.raises(BadEnvironment, match="half's first latents differ"):
        check_same_work({ORT: first(0.7, -1.0), HALF: first(0.9, -1.0)})
    with pytest.raises(BadEnvironment, match="torch's first latents differ"):
        check_same_work({ORT: first(0.7, -1.0), HALF: first(0.71, -1.0), TORCH: first(0.71, -1.0)})


def test_each_sampling_is_compared_with_itself():
    quick = {backend: Case(f"{backend}, fast", backend, sampling=TIERS["fast"]) for backend in ("onnxruntime", "torch")}
    told = {ORT: first(0.7, -1.0), quick["onnxruntime"]: first(5.0, 1.0), quick["torch"]: first(5.0, 1.0)}
    check_same_work(told)
    assert accuracies({case: message["latents"] for case, message in told.items()}) == {"torch, fast": math.inf}
    with pytest.raises(BadEnvironment, match="torch, fast's first latents differ by .* from onnxruntime, fast's"):
        check_same_work(told | {quick["torch"]: first(5.1, 1.0)})


@pytest.mark.parametrize(("error", "expected"), [(0.1, 20.0), (1e-5, 100.0), (0.0, math.inf)])
def test_decibels_are_of_the_error_below_the_signal(error, expected):
    x = np.random.default_rng(0).standard_normal(100)
    assert decibels(x * (1 + error), x) == pytest.approx(expected)


def test_limits_are_of_each_cases_steps(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    cases = (Case("a", "onnxruntime", sampling=TWO), Case("b", "onnxruntime", sampling=Sampling(steps=4)))
    half = Case("c", "openvino", "bf16", sampling=TWO)
    limits = limits_ms(manifest, Task("tiny"), (*cases, half), ROOF)
    assert set(limits) == {"a", "b"} and limits["a"] < limits["b"] < 2 * limits["a"]


def test_the_gpu_suite_without_a_gpu_says_what_is_missing(tiny_bundle, monkeypatch):
    monkeypatch.setattr(backends, "why_no_device", lambda: "no NVIDIA driver is installed")
    with pytest.raises(BadEnvironment, match="no backend of it works here .*NVIDIA.*see `cdiff-rt doctor`"):
        next(compare_suite(str(tiny_bundle), "gpu", "image"))


def test_a_step_on_a_gpu_is_refused():
    with pytest.raises(BadRequest, match="a step on a GPU"):
        next(compare_suite("faces-128", "gpu", "step"))


def test_every_batch_is_one_comparison(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "select", lambda *arguments: (ORT,))
    monkeypatch.setattr(module, "measure", lambda: ROOF)

    def compare(task, cases, **more):
        seen.append((task, cases, more["roofline"]))
        return comparison("torch")

    monkeypatch.setattr(module, "compare", compare)
    list(compare_suite("faces-128", "gpu", "image"))
    assert seen == [(Task("faces-128", "image", size), (ORT,), None) for size in (1, 2, 4, 8)]
    list(compare_suite("faces-128", "cpu", "step"))
    assert seen[4:] == [(Task("faces-128", "step", 1), (ORT,), ROOF)]
    list(compare_suite("faces-128", "cpu", "image", batches=(3, 5)))
    assert [task.batch for task, *_ in seen[5:]] == [3, 5]
