"""What only a GPU can show: `pytest -m gpu`. Elsewhere each is skipped with the reason; docs/gpu.md says what to expect."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity

from cdiff_rt.bench.cases import Case, able
from cdiff_rt.bench.latency import compare
from cdiff_rt.bench.task import Task
from cdiff_rt.bench.worker import launches_among
from cdiff_rt.controls import Region
from cdiff_rt.engines.backends import BACKENDS, why_not
from cdiff_rt.engines.cuda import why_no_device
from cdiff_rt.export.gpu_engines import build_engines
from cdiff_rt.gpu.buffers import upload
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.run import OnDevice
from cdiff_rt.sampling.tiers import Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_no_device() is not None, reason=f"no CUDA device: {why_no_device()}"),
]
TEXT = "This man has a long beard. He is in his fifties."
BATCH, STEPS = 2, 5
LIMITS = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 2e-1, "tf32": 3e-2}  # of the latents' spread, after STEPS steps
ON_A_GPU = [name for name, backend in BACKENDS.items() if backend.device == "cuda"]
CAPTURED = [name for name in ON_A_GPU if name != "onnxruntime-cuda"]


@pytest.fixture(scope="session")
def pipeline(bundle):
    """What all are compared with: PyTorch on the CPU, which every extra for a GPU brings."""
    return Pipeline(bundle, "torch")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The engine cache of these tests is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def pipelines(home, bundle):
    """(backend, settings) -> a pipeline; what has engines gets them built first."""
    built, made = set(), {}

    def get(backend, **settings):
        reason = why_not(backend)
        if reason:
            pytest.skip(f"{backend}: {reason}")
        if "whole-step" in BACKENDS[backend].experts and (backend, settings.get("precision")) not in built:
            precision = settings.get("precision") or "fp16"
            build_engines(bundle, backend, precision=precision, batches=(1, BATCH), experts=("stacked", "whole-step"))
            built.add((backend, settings.get("precision")))
        key = backend, tuple(sorted(settings.items()))
        if key not in made:
            made[key] = Pipeline(bundle, backend, OnDevice(**settings))
        return made[key]

    return get


def run(pipeline, mask, **settings):
    return pipeline.generate(**{"mask": mask, "text": TEXT, "steps": STEPS, "batch": BATCH} | settings)


def difference(ours, reference):
    return np.abs(ours.latents - reference.latents).max() / reference.latents.std()


@pytest.mark.parametrize(("backend", "precision"), [(name, p) for name in ON_A_GPU for p in BACKENDS[name].precisions])
def test_every_backend_and_precision_gives_what_the_cpu_gives(backend, precision, pipelines, pipeline, mask):
    ours, reference = run(pipelines(backend, precision=precision), mask), run(pipeline, mask)
    assert difference(ours, reference) < LIMITS[precision]
    assert np.abs(ours.images.astype(int) - reference.images).mean() < 255 * LIMITS[precision]


@pytest.mark.parametrize(
    ("backend", "experts"), [(name, way) for name in ON_A_GPU for way in BACKENDS[name].experts if way != "separate"]
)
def test_engines_of_several_experts_give_what_separate_engines_give(backend, experts, pipelines, mask):
    ours, separate = run(pipelines(backend, experts=experts), mask), run(pipelines(backend), mask)
    assert difference(ours, separate) < LIMITS["fp16"]


@pytest.mark.parametrize("backend", CAPTURED)
def test_a_replayed_graph_gives_what_launching_each_time_gives(backend, pipelines, mask):
    captured, launched = pipelines(backend), pipelines(backend, graphs=False)
    for settings in ({}, {"seed": 1}, {"seed": 2, "mask": mask[::-1].copy()}, {"text": "A woman in her twenties."}):
        np.testing.assert_array_equal(run(captured, mask, **settings).latents, run(launched, mask, **settings).latents)
    (loop,) = captured._runner._loops
    assert all(step.graph is not None for step in loop._steps)


@pytest.mark.parametrize("backend", ON_A_GPU)
def test_a_callback_gets_the_same_results(backend, pipelines, mask):
    seen, pipeline = [], pipelines(backend)
    watched = run(pipeline, mask, callback_on_step_end=seen.append)
    assert len(seen) == STEPS and difference(run(pipeline, mask), watched) < 1e-5


@pytest.mark.parametrize("backend", CAPTURED)
def test_a_step_is_one_launch_of_the_host_and_no_wait(backend, pipelines, mask):
    """Or all steps are, where they are few nodes; with the noise of each on its way meanwhile."""
    pipeline = pipelines(backend)
    for _ in range(3):
        run(pipeline, mask)
    (loop,) = pipeline._runner._loops
    noise = np.zeros(loop.buffers.x.shape, np.float32)
    loop.buffers.per_step.restart()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with (
            torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler,
            torch.inference_mode(),
        ):
            loop.run(STEPS, lambda i: upload(noise, loop.buffers.per_step.rows["noise"][i]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert launches_among(event.name for event in profiler.events()) == (1 if [*loop._whole] else STEPS)


@pytest.mark.parametrize("backend", CAPTURED)
def test_another_number_of_steps_records_nothing_anew(backend, pipelines, mask):
    pipeline = pipelines(backend)
    run(pipeline, mask)
    (loop,) = pipeline._runner._loops
    recorded = [step.graph for step in loop._steps]
    launched = run(pipelines(backend, graphs=False), mask, steps=10)
    np.testing.assert_array_equal(run(pipeline, mask, steps=10).latents, launched.latents)
    assert [*pipeline._runner._loops] == [loop] and [step.graph for step in loop._steps] == recorded


@pytest.mark.parametrize("backend", ON_A_GPU)
def test_weights_and_regions_give_what_the_cpu_gives(backend, pipelines, pipeline, mask):
    """For the same experts at every step, and for others at some."""
    soft = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    region = [Region("text", soft, "at-least", 0.8), Region("mask", soft.T, "weight", 3.0)]
    for influence in ({"text": "0.5@0,2@1", "mask": -0.3}, {"mask": "1.5@0-0.6"}):
        how = {"influence": influence, "region": region}
        ours, reference = run(pipelines(backend), mask, **how), run(pipeline, mask, **how)
        assert difference(ours, reference) < LIMITS["fp16"]


@pytest.mark.parametrize("backend", CAPTURED)
def test_other_weights_and_regions_record_nothing_anew(backend, pipelines, mask):
    """But for other experts that a step calls, and that once."""
    captured, launched, recorded = pipelines(backend), pipelines(backend, graphs=False), []
    for influence in (
        {"text": 2},
        {"mask": "0.1@0,3@0.5,-1@1"},
        {"text": 0.5},
        {"mask": "1@0-0.6"},
        {"mask": "1@0-0.5"},
    ):
        ours, expected = (run(each, mask, influence=influence, steps=10) for each in (captured, launched))
        np.testing.assert_array_equal(ours.latents, expected.latents)
        (loop,) = (loop for loop in captured._runner._loops if loop.shape.controlled)
        recorded.append({id(step.graph) for step in loop._steps})
    assert recorded[0] == recorded[1] == recorded[2] <= recorded[3] == recorded[4]


@pytest.mark.parametrize("backend", CAPTURED)
def test_memory_does_not_grow_over_a_hundred_replays(backend, pipelines, mask):
    pipeline = pipelines(backend)
    for _ in range(3):
        run(pipeline, mask)
    before = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(100):
        run(pipeline, mask)
    assert torch.cuda.memory_allocated() == before[0]
    assert torch.cuda.mem_get_info()[0] >= before[1] - 2**20


def test_the_latency_table_is_made(home, bundle):
    cases = able(tuple(Case(name, name, sampling=Sampling(steps=STEPS)) for name in ON_A_GPU))
    for case in cases:
        if "whole-step" in BACKENDS[case.backend].experts:
            build_engines(bundle, case.backend)
    comparison = compare(Task("faces-128"), cases, repeats=3)
    assert comparison.left_out == {} and all(timing.launches for timing in comparison.timings)
