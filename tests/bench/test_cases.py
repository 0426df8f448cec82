import logging

import pytest

from cdiff_rt.bench import cases as module
from cdiff_rt.bench.cases import BASELINES, GPU_SUITE, TUNED, Case, able, check, cpu_suite, select
from cdiff_rt.engines.backends import BACKENDS, Backend
from cdiff_rt.errors import BadEnvironment, BadRequest
from cdiff_rt.sampling.tiers import TIERS, Sampling

EXACT, FAST = TIERS["exact"], TIERS["fast"]


@pytest.fixture(autouse=True)
def bf16(monkeypatch):
    monkeypatch.setattr(module, "multiplies_bf16", lambda: True)


def names(*arguments, **more):
    return [case.name for case in select("cpu", *arguments, **more)]


@pytest.mark.parametrize("case", [*GPU_SUITE, *cpu_suite(), Case("x", "torch", sampling=Sampling("dpmpp-2m", 7, 0.0))])
def test_a_case_survives_its_way_to_the_worker(case):
    assert Case.from_json(case.to_json()) == case


def test_the_gpu_suite_compares_what_its_docs_say():
    assert GPU_SUITE[0].name in BASELINES and GPU_SUITE[0].naive and GPU_SUITE[0].computes_in == "fp32"
    assert len({case.name for case in GPU_SUITE}) == len(GPU_SUITE)
    assert {case.backend for case in GPU_SUITE} == {n for n, backend in BACKENDS.items() if backend.device == "cuda"}
    for flavour in ("tensorrt", "tensorrt-rtx"):
        ways = {(case.experts, case.graphs) for case in GPU_SUITE if case.backend == flavour}
        assert ways == {(e, g) for e in ("separate", "whole-step") for g in (False, True)} | {("stacked", True)}


def test_the_cpu_suite_has_every_backend_in_every_precision_after_the_references_arithmetic():
    suite = cpu_suite()
    assert suite[0].name == BASELINES[0] and suite[0].naive and suite[0].allocator is None
    assert suite[0].computes_in == "fp32"
    on_the_cpu = {(n, p) for n, backend in BACKENDS.items() if backend.device == "cpu" for p in backend.precisions}
    assert {(case.backend, case.computes_in) for case in suite} == on_the_cpu - {("torch", "bf16")}
    assert len({case.name for case in suite}) == len(suite)


def test_the_tuned_allocator_is_named_by_its_case(monkeypatch):
    monkeypatch.setattr(module.allocators, "is_here", lambda name: name == "jemalloc")
    (case,) = (case for case in cpu_suite() if case.allocator)
    assert case.naive and case.allocator == "jemalloc" and "jemalloc" in case.name and case.name in TUNED
    monkeypatch.setattr(module.allocators, "is_here", lambda name: False)
    assert not [case for case in cpu_suite() if case.allocator]


def test_cases_are_chosen_by_backend_and_by_precision():
    assert {case.backend for case in select("cpu", ("torch",))} == {"torch"}
    assert names(("onnxruntime", "openvino")) == ["onnxruntime", "openvino", "openvino, bf16"]
    assert names(("onnxruntime", "openvino"), ("fp32",)) == ["onnxruntime", "openvino"]
    with pytest.raises(BadRequest, match="precision: bf16; these cases compute in fp32"):
        names(("onnxruntime",), ("bf16",))
    for suite in ("cpu", "gpu"):
        with pytest.raises(BadRequest, match=f"'nvidia'; the {suite.upper()} suite has "):
            select(suite, ("nvidia",))


def test_a_second_tier_is_for_what_is_to_be_fast():
    chosen = select("cpu", ("torch", "onnxruntime"), ("fp32",), (EXACT, FAST))
    assert [case.name for case in chosen if case.sampling == FAST] == ["onnxruntime, fast"]
    assert {case.backend for case in chosen if case.sampling == EXACT} == {"torch", "onnxruntime"}
    assert len({case.name for case in chosen}) == len(chosen)
    alone = select("cpu", ("torch", "onnxruntime"), ("fp32",), (FAST,))
    assert {case.sampling for case in alone} == {FAST} and alone[0].name == BASELINES[0]


def test_what_does_not_work_here_is_left_out_and_told(monkeypatch, caplog):
    monkeypatch.setitem(BACKENDS, "torch", Backend("x:load", ("no_such_library",), "torch"))
    with caplog.at_level(logging.INFO, "cdiff_rt"):
        assert able((Case("a", "torch"), Case("b", "onnxruntime"))) == (Case("b", "onnxruntime"),)
    assert caplog.messages == ["torch is left out: no_such_library not installed"]


def test_what_was_asked_for_is_not_left_out(monkeypatch):
    monkeypatch.setitem(BACKENDS, "openvino", Backend("x:load", ("no_such_library",), "openvino"))
    with pytest.raises(BadEnvironment, match="no_such_library not installed"):
        select("cpu", ("onnxruntime", "openvino"))


def test_a_cpu_that_does_not_multiply_bf16_is_not_asked_to(monkeypatch, caplog):
    monkeypatch.setattr(module, "multiplies_bf16", lambda: False)
    with caplog.at_level(logging.INFO, "cdiff_rt"):
        assert names(("openvino",)) == ["openvino"]
    assert caplog.messages == ["openvino is left out: this CPU does not compute in bf16"]


def test_settings_that_cannot_run_are_found_before_anything_starts(monkeypatch):
    monkeypatch.setitem(BACKENDS, "torch", Backend("x:load", ("no_such_library",), "torch"))
    with pytest.raises(BadEnvironment, match="no_such_library"):
        check((Case("a", "torch"),))
    with pytest.raises(BadRequest, match="'fp16'; onnxruntime computes in fp32"):
        check((Case("a", "onnxruntime", "fp16"),))
