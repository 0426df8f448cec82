import math
import platform

import pytest

from cdiff_rt import __version__, engines
from cdiff_rt.bench import latency as module
from cdiff_rt.bench.cases import Case, on_the_cpu
from cdiff_rt.bench.latency import Comparison, Timing, Worker, _check_same_work, compare, compare_suite, machine
from cdiff_rt.engines import BACKENDS, Backend
from cdiff_rt.errors import BadEnvironment, BadRequest

ORT = on_the_cpu(("onnxruntime",))


def comparison(**ms):
    return Comparison({}, {}, [Timing(name, 1.0, 100.0, values) for name, values in ms.items()])


def test_ratio_is_the_median_of_ratios_run_by_run():
    """The machine slows down threefold in the last run; the ratio of medians would be 2.4, of means 2.2."""
    result = comparison(torch=[100.0, 120.0, 300.0], onnxruntime=[50.0, 40.0, 150.0])
    assert [result.ratio(timing) for timing in result.timings] == [1.0, 2.0]


def test_without_the_baseline_there_is_no_ratio():
    result = comparison(onnxruntime=[50.0, 40.0, 150.0])
    assert result.ratio(result.timings[0]) is None


@pytest.mark.parametrize(("q", "expected"), [(0, 10), (50, 30), (90, 46), (100, 50)])
def test_percentiles(q, expected):
    assert Timing("torch", 1.0, 1.0, [50.0, 10.0, 30.0, 20.0, 40.0]).percentile(q) == expected


def test_machine_says_what_was_measured_on():
    facts = machine()
    assert facts["cdiff-rt"] == __version__
    assert facts["python"] == platform.python_version()
    assert int(facts["cores"]) >= 1
    assert facts["cpu"]
    assert {"numpy", "onnxruntime", "torch"} <= set(facts)
    assert "not installed" not in facts.values()


def test_a_real_comparison_times_every_backend(tiny_bundle):
    result = compare(str(tiny_bundle), on_the_cpu(("onnxruntime", "torch")), steps=2, batch=1, repeats=3)
    assert [timing.case for timing in result.timings] == ["onnxruntime", "torch"]
    for timing in result.timings:
        assert len(timing.ms) == 3
        assert all(0.1 < ms < 60_000 for ms in timing.ms)
        assert timing.load_s > 0.001 * min(timing.ms)
        assert 20 < timing.memory_mib < 16_000
    assert result.ratio(result.timings[0]) > 0
    assert result.settings == {"model": str(tiny_bundle), "steps": 2, "batch": 1, "warm-up": 2, "repeats": 3}


@pytest.mark.parametrize(("steps", "batch"), [(0, 1), (2, 0), (-1, 1)])
def test_settings_out_of_range_are_refused(tiny_bundle, steps, batch):
    with pytest.raises(BadRequest, match="^(steps|batch): -?[0-9] is outside 1-"):
        compare(str(tiny_bundle), ORT, steps=steps, batch=batch, repeats=3)


def test_a_worker_that_cannot_start_is_an_error(tmp_path):
    with pytest.raises(BadEnvironment, match="backend onnxruntime: .*has no manifest.json"):
        Worker(str(tmp_path), ORT[0], steps=1, batch=1).receive()


def test_a_missing_backend_is_refused_before_any_worker_starts(tiny_bundle, monkeypatch):
    monkeypatch.setitem(BACKENDS, "torch", Backend("x:load", ("no_such_library",), "torch"))
    with pytest.raises(BadEnvironment, match="no_such_library not installed"):
        compare(str(tiny_bundle), on_the_cpu(("torch",)), steps=2, batch=1, repeats=3)


def test_without_any_backend_the_remedy_is_named(tiny_bundle, monkeypatch):
    for name in BACKENDS:
        monkeypatch.setitem(BACKENDS, name, Backend("x:load", ("no_such_library",), "cpu"))
    with pytest.raises(BadEnvironment, match="no_such_library not installed"):
        next(compare_suite(str(tiny_bundle), "cpu", (), 2, None, 3))


def test_a_worker_that_dies_between_two_runs_is_an_error(tiny_bundle):
    worker = Worker(str(tiny_bundle), ORT[0], steps=1, batch=1)
    worker.receive()
    worker.process.kill()
    worker.process.wait()
    with pytest.raises(BadEnvironment, match="backend onnxruntime.*its process ended"):
        worker.run()


TORCH, HALF = Case("torch", "torch"), Case("half", "torch-cuda", "fp16")


def test_equal_work_passes():
    _check_same_work({ORT[0]: [0.70001, -1.0], TORCH: [0.7, -1.0]})


@pytest.mark.parametrize("value", [0.71, 0.0, math.nan, math.inf])
def test_different_work_is_an_error(value):
    with pytest.raises(BadEnvironment, match="torch's first image differs by .* from onnxruntime's"):
        _check_same_work({ORT[0]: [0.7, -1.0], TORCH: [value, -1.0]})


def test_half_precision_may_differ_by_its_rounding_and_not_by_more():
    _check_same_work({ORT[0]: [0.7, -1.0], HALF: [0.71, -1.0]})
    with pytest.raises(BadEnvironment, match="half's first image differs"):
        _check_same_work({ORT[0]: [0.7, -1.0], HALF: [0.9, -1.0]})
    with pytest.raises(BadEnvironment, match="torch's first image differs"):
        _check_same_work({ORT[0]: [0.7, -1.0], HALF: [0.71, -1.0], TORCH: [0.71, -1.0]})


def test_the_gpu_suite_without_a_gpu_says_what_is_missing(tiny_bundle, monkeypatch):
    monkeypatch.setattr(engines, "why_no_device", lambda: "no NVIDIA driver is installed")
    with pytest.raises(BadEnvironment, match="no backend of it works here .*NVIDIA.*see `cdiff-rt doctor`"):
        next(compare_suite(str(tiny_bundle), "gpu", (), 2, None, 3))


def test_every_batch_of_the_gpu_suite_is_one_comparison(tiny_bundle, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "on_a_gpu", lambda backends: ORT)
    monkeypatch.setattr(module, "compare", lambda model, cases, *, steps, batch, repeats: seen.append((cases, batch)))
    list(compare_suite("faces-128", "gpu", (), 50, None, 10))
    assert seen == [(ORT, 1), (ORT, 2), (ORT, 4), (ORT, 8)]
    assert len(list(compare_suite("faces-128", "gpu", (), 50, 3, 10))) == 1 and seen[-1] == (ORT, 3)
