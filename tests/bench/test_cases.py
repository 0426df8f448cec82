import logging

import pytest

from cdiff_rt.bench.cases import BASELINES, GPU_SUITE, Case, able, check, on_a_gpu, on_the_cpu
from cdiff_rt.engines import BACKENDS, Backend
from cdiff_rt.errors import BadEnvironment, BadRequest


@pytest.mark.parametrize("case", GPU_SUITE, ids=lambda case: case.name)
def test_a_case_survives_its_way_to_the_worker(case):
    assert Case.from_json(case.to_json()) == case


def test_the_gpu_suite_compares_what_its_docs_say():
    assert GPU_SUITE[0].name in BASELINES and GPU_SUITE[0].naive and GPU_SUITE[0].computes_in == "fp32"
    assert len({case.name for case in GPU_SUITE}) == len(GPU_SUITE)
    assert {case.backend for case in GPU_SUITE} == {n for n, backend in BACKENDS.items() if backend.device == "cuda"}
    for flavour in ("tensorrt", "tensorrt-rtx"):
        ways = {(case.fused_step, case.graphs) for case in GPU_SUITE if case.backend == flavour}
        assert ways == {(False, False), (False, True), (True, False), (True, True)}


def test_a_case_of_the_cpu_is_a_backend_by_name():
    assert on_the_cpu(("torch",)) == (Case("torch", "torch"),)
    assert [case.backend for case in on_the_cpu(())] == ["onnxruntime", "openvino", "torch"]


def test_what_does_not_work_here_is_left_out_and_told(monkeypatch, caplog):
    monkeypatch.setitem(BACKENDS, "torch", Backend("x:load", ("no_such_library",), "torch"))
    with caplog.at_level(logging.INFO, "cdiff_rt"):
        assert able((Case("a", "torch"), Case("b", "onnxruntime"))) == (Case("b", "onnxruntime"),)
    assert "torch is left out: no_such_library not installed" in caplog.text


def test_a_backend_that_the_gpu_suite_does_not_have_is_refused():
    with pytest.raises(BadRequest, match="'onnxruntime'; the GPU suite has onnxruntime-cuda, tensorrt"):
        on_a_gpu(("onnxruntime",))


def test_settings_that_cannot_run_are_found_before_anything_starts(monkeypatch):
    monkeypatch.setitem(BACKENDS, "torch", Backend("x:load", ("no_such_library",), "torch"))
    with pytest.raises(BadEnvironment, match="no_such_library"):
        check((Case("a", "torch"),))
    with pytest.raises(BadRequest, match="'fp16'; onnxruntime computes in fp32"):
        check((Case("a", "onnxruntime", "fp16"),))
