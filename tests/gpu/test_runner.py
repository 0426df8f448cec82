"""The runner of devices, on the CPU: the same latents as the loop of sampling/loop.py, by other code."""

import copy
import dataclasses
import logging
from weakref import ref

import numpy as np
import pytest
import torch

from cdiff_rt.controls import Region
from cdiff_rt.errors import BadEnvironment, BadRequest, OutOfResource
from cdiff_rt.gpu import runner
from cdiff_rt.gpu.graph import Graphs
from cdiff_rt.gpu.loop import LoopShape
from cdiff_rt.gpu.runner import DeviceRunner
from cdiff_rt.inputs.inpainting import Inpainting
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.run import OnDevice
from cdiff_rt.sampling.solvers import SOLVERS
from tests.gpu.standin_cuda import Standin
from tests.gpu.test_loop import Counted
from tests.gpu.whole_step import WholeStep

TEXT = "This man has a long beard. He is in his fifties."
CLOSE = 1e-4  # of the latents' spread, as for trajectories in tests/conformance; other code sums in another order


def on_device(bundle, backend="torch-cuda", **how):
    pipeline = Pipeline(bundle)
    pipeline._runner = DeviceRunner(bundle, backend, OnDevice(**{"precision": "fp32"} | how), device="cpu")
    return pipeline


SOFT = np.clip(np.linspace(-1, 2, 256, dtype=np.float32), 0, 1).reshape(16, 16)
PAINTED, FLOOR = Region("mask", SOFT.T, "weight", 3.0), Region("text", SOFT, "at-least", 0.8)
CEILING = Region("text", SOFT, "at-most", 0.1)


def in_short(settings):
    return ", ".join(settings) or "nothing asked for"


WAYS = {
    "torch-cuda": {},
    "onnxruntime-cuda": {"backend": "onnxruntime-cuda"},
    "torch-cuda stacked": {"experts": "stacked"},
}


@pytest.fixture(scope="module", params=WAYS)
def device(request, bundle):
    return on_device(bundle, **WAYS[request.param])


def difference(ours, reference):
    return np.abs(ours.latents - reference.latents).max() / reference.latents.std()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch": 3, "first": 2, "seed": 7},
        {"eta": 0.0},
        {"decay": "linear", "factor": 3.0, "sharpness": 0.5},
        {"boost": 3.0},
        {"without": ["mask"]},
        {"influence": "mask=1.5@0-0.6"},
        {"influence": {"text": "0.5@0,2@1", "mask": -0.3}, "region": [PAINTED, FLOOR], "batch": 2, "eta": 0.0},
        {"influence": "text-first", "region": [CEILING], "boost": 3.0},
    ],
    ids=in_short,
)
def test_a_device_gives_what_the_cpu_gives(settings, device, pipeline, mask):
    ours, reference = (p.generate(mask=mask, text=TEXT, steps=4, **settings) for p in (device, pipeline))
    assert difference(ours, reference) < CLOSE
    assert np.abs(ours.images.astype(int) - reference.images).max() <= 1


def test_a_known_region_is_the_same_too(device, pipeline, mask):
    photo = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    keep = np.zeros((128, 128), np.uint8)
    keep[:, :64] = 1
    ours, reference = (
        p.generate(mask=mask, text=TEXT, steps=4, inpaint=Inpainting(photo, keep)) for p in (device, pipeline)
    )
    assert difference(ours, reference) < CLOSE


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "ddim"])
def test_a_solver_that_looks_back_is_the_same_too(solver, device, pipeline):
    ours, reference = (p.generate(text=TEXT, solver=solver, steps=5) for p in (device, pipeline))
    assert difference(ours, reference) < CLOSE
    assert difference(ours, pipeline.generate(text=TEXT, steps=5)) > CLOSE


def test_a_callback_sees_what_it_sees_on_the_cpu_and_changes_nothing(device, pipeline, mask):
    """Where a branch has no weight, its prediction is 0, whatever is left in its place."""
    seen, how = {"ours": [], "theirs": []}, {"mask": mask, "text": TEXT, "steps": 4, "batch": 2}
    how["influence"] = "mask=1@0-0.6"
    ours = device.generate(**how, callback_on_step_end=seen["ours"].append)
    pipeline.generate(**how, callback_on_step_end=seen["theirs"].append)
    for own, other in zip(seen["ours"], seen["theirs"], strict=True):
        assert (own.step, own.timestep, own.modalities) == (other.step, other.timestep, other.modalities)
        for name in ("x", "x0", "influence", "predictions"):
            value, expected = getattr(own, name), getattr(other, name)
            assert value.shape == expected.shape and value.dtype == np.float32
            np.testing.assert_allclose(value, expected, atol=CLOSE * expected.std() + 1e-6)
    np.testing.assert_array_equal(device.generate(**how).latents, ours.latents)
    assert not seen["ours"][-1].predictions[0].any() and seen["ours"][0].predictions[0].any()


def test_runs_of_one_structure_share_a_loop_and_do_not_disturb_each_other(bundle, mask):
    pipeline = on_device(bundle)
    first = pipeline.generate(mask=mask, text=TEXT, steps=4)
    other = pipeline.generate(mask=mask[::-1].copy(), text="A woman.", steps=4, seed=3, influence="as-trained")
    again = pipeline.generate(mask=mask, text=TEXT, steps=4)
    assert len([*pipeline._runner._loops]) == 1 and difference(other, first) > 0.1
    np.testing.assert_array_equal(first.latents, again.latents)
    pipeline.generate(mask=mask, text=TEXT, steps=5)
    assert len([*pipeline._runner._loops]) == 1
    pipeline.generate(mask=mask, text=TEXT, steps=4, eta=0.0)
    assert len([*pipeline._runner._loops]) == 2


def test_what_recorded_graphs_make_is_what_launching_each_time_makes(bundle, monkeypatch):
    """Of steps that go from knot to knot and of others, with noise, a known region and without; recorded once for all."""
    pipeline = on_device(bundle)
    keep, photo = np.eye(128, dtype=np.uint8), np.full((128, 128, 3), 99, np.uint8)
    runs = [{"steps": 2}, {"steps": 4, "seed": 7}, {"steps": 2, "inpaint": Inpainting(photo, keep)}, {"steps": 2}]
    expected = [pipeline.generate(text=TEXT, **settings).latents for settings in runs]
    with monkeypatch.context() as patch:
        standin = Standin(patch)
        pipeline._runner = DeviceRunner(bundle, "torch-cuda", OnDevice("fp32"), device="cpu")
        pipeline._runner._graphs = Graphs()
        for latents, settings in zip(expected, runs, strict=True):
            np.testing.assert_array_equal(pipeline.generate(text=TEXT, **settings).latents, latents)
    loops = [*pipeline._runner._loops]
    assert all(step.graph for loop in loops for step in loop._steps) and len(loops) == 2
    assert len({*standin.pools}) == 1 and {*standin.modes} == {"thread_local"}


def test_other_weights_regions_and_keyframes_record_nothing_anew(bundle, mask, monkeypatch):
    """Nor does what they are lie in a graph: another request gives what it gives without graphs."""
    asked = [
        {"influence": "text=2"},
        {"influence": {"mask": "0.1@0,3@0.5,-1@1"}, "steps": 5},
        {"influence": {"text": 0.5}, "region": [PAINTED, CEILING]},
    ]
    launched, pipeline = on_device(bundle), on_device(bundle)
    expected = [launched.generate(**{"mask": mask, "text": TEXT, "steps": 4} | how).latents for how in asked]
    standin, recorded = Standin(monkeypatch), []
    monkeypatch.setattr("cdiff_rt.gpu.loop.MOST_NODES", 0)
    pipeline._runner._graphs = Graphs()
    for latents, how in zip(expected, asked, strict=True):
        made = pipeline.generate(**{"mask": mask, "text": TEXT, "steps": 4} | how)
        np.testing.assert_array_equal(made.latents, latents)
        recorded += [step.graph for loop in pipeline._runner._loops for step in loop._steps]
    assert len(recorded) == len(asked) and {*recorded} == {recorded[0]} <= {*standin.recorded}


@pytest.mark.parametrize("graphs", [False, True])
def test_a_branch_is_called_in_the_steps_in_which_it_has_weight(graphs, bundle, mask, pipeline, monkeypatch):
    real, experts = runner.load_device_engine, {}

    def load(backend, bundle, network, placement):
        engine = real(backend, bundle, network, placement)
        return experts.setdefault(network, Counted(engine)) if network.startswith("expert") else engine

    monkeypatch.setattr(runner, "load_device_engine", load)
    device, how = on_device(bundle), {"mask": mask, "text": TEXT, "steps": 5}
    if graphs:
        Standin(monkeypatch)
        device._runner._graphs = Graphs()
    spans = {"mask=1@0-0.5": (2, 5), "text=0.5@0.3-1": (5, 4)}
    expected = {influence: pipeline.generate(**how, influence=influence) for influence in spans}
    for influence, (of_mask, of_text) in [*spans.items()] * (3 if graphs else 1):
        before = {name: int(engine.calls) for name, engine in experts.items()}
        ours = device.generate(**how, influence=influence)
        called = {name: int(engine.calls) - before.get(name, 0) for name, engine in experts.items()}
        assert called == {"expert.mask": of_mask, "expert.text": of_text}
        assert difference(ours, expected[influence]) < CLOSE
    assert len([*device._runner._loops]) == 1


def test_progress_is_told_and_steps_are_replayed_all_the_same(bundle, monkeypatch):
    pipeline, told = on_device(bundle), []
    expected = pipeline.generate(text=TEXT, steps=4).latents
    with monkeypatch.context() as patch:
        standin = Standin(patch)
        pipeline._runner = DeviceRunner(bundle, "torch-cuda", OnDevice("fp32"), device="cpu")
        pipeline._runner._graphs = Graphs()
        made = pipeline.generate(text=TEXT, steps=4, progress=lambda: told.append(len(standin.replayed)))
    np.testing.assert_array_equal(made.latents, expected)
    assert told == [0, 0, 1, 2]  # the first is launched; the second, which is recorded, and the others are replays


def test_a_backend_that_no_graph_can_hold_says_so(bundle, caplog):
    pipeline = on_device(bundle, "onnxruntime-cuda")
    pipeline._runner._graphs = Graphs()
    with caplog.at_level(logging.INFO, "cdiff_rt"):
        pipeline.generate(text=TEXT, steps=2)
    told = "onnxruntime-cuda: its steps cannot be recorded as a CUDA graph; they are launched each time"
    assert caplog.text.count(told) == 1


def test_loops_calls_and_engines_are_the_last_few(bundle, monkeypatch):
    """What goes does so at once: a GPU's memory does not wait for the garbage collector."""
    monkeypatch.setattr(runner, "MOST_LOOPS", 2)
    monkeypatch.setattr(runner, "MOST_CALLS", 4)
    pipeline = on_device(bundle)
    own, first, made = pipeline._runner, pipeline.generate(text="a man", steps=1), []
    for batch in range(2, 6):
        pipeline.generate(text="a man", steps=1, batch=batch)
        assert [loop.shape.batch for loop in own._loops] == [batch - 1, batch] and len([*own._calls]) <= 4
        assert {size for _, size in own._engines} <= {1, *range(batch - 3, batch + 1)}
        made.append(ref([*own._loops][-1]))
        assert [loop() is None for loop in made] == [i < batch - 3 for i in range(batch - 1)]
    np.testing.assert_allclose(pipeline.generate(text="a man", steps=1).latents, first.latents, atol=1e-5)


def test_a_callback_may_begin_a_run_of_the_same_shape(device):
    alone = [device.generate(text=TEXT, steps=2, seed=seed).latents for seed in (1, 2)]
    inner = []

    def within(state):
        inner.append(device.generate(text=TEXT, steps=2, seed=2).latents)

    outer = device.generate(text=TEXT, steps=2, seed=1, callback_on_step_end=within).latents
    np.testing.assert_array_equal(outer, alone[0])
    for latents in inner:
        np.testing.assert_array_equal(latents, alone[1])
    assert len(inner) == 2


def test_a_pytorch_that_does_not_reach_the_gpu_is_told(bundle):
    if torch.version.cuda:
        pytest.skip("this PyTorch has CUDA")
    with pytest.raises(BadEnvironment, match="^torch: .*CUDA.*; install a PyTorch with a CUDA that the driver knows"):
        DeviceRunner(bundle, "torch-cuda", OnDevice())


@pytest.mark.slow
def test_half_precision_keeps_latents_in_fp32_and_stays_near(bundle, mask, pipeline):
    reference = pipeline.generate(mask=mask, text=TEXT, steps=4)
    for precision, limit in (("fp16", 0.02), ("bf16", 0.15)):
        half = on_device(bundle, precision=precision).generate(mask=mask, text=TEXT, steps=4)
        assert half.parameters["precision"] == precision and half.latents.dtype == np.float32
        error = (half.latents - reference.latents).std() / reference.latents.std()
        assert CLOSE < error < limit


def test_memory_that_runs_out_is_told_with_the_remedy(bundle, monkeypatch):
    pipeline = on_device(bundle)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr("cdiff_rt.gpu.runner.loop_of_experts", full)
    with pytest.raises(OutOfResource, match="Tried to allocate 2 GiB; choose a smaller batch"):
        pipeline.generate(text=TEXT, steps=1)


@pytest.fixture
def whole_steps(monkeypatch):
    """Backends on a device get engines of the whole step."""
    real = runner.load_device_engine

    def load(backend, bundle, network, placement):
        if not network.startswith("step"):
            return real(backend, bundle, network, placement)
        names = tuple(network.partition(".")[2].split("+"))
        engines = [real(backend, bundle, f"expert.{name}", placement) for name in names]
        boosted = network.startswith("step-boosted")
        shape = LoopShape(names, bundle.manifest.latent_shape, placement.batch, 1, True, True, boosted, False, True)
        return WholeStep(engines, shape)

    monkeypatch.setattr(runner, "load_device_engine", load)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eta": 0.0},
        {"batch": 2},
        {"boost": 3.0},
        {"without": ["text"]},
        {"influence": {"mask": "1@0-0.6", "text": 2}, "region": [FLOOR]},
    ],
    ids=in_short,
)
def test_an_engine_of_the_whole_step_gives_the_same(settings, whole_steps, bundle, pipeline, mask):
    ours, reference = (
        p.generate(mask=mask, text=TEXT, steps=4, **settings)
        for p in (on_device(bundle, experts="whole-step"), pipeline)
    )
    assert difference(ours, reference) < CLOSE


def test_who_watches_the_whole_steps_engine_is_told_that_it_shows_too_little(whole_steps, bundle):
    with pytest.raises(BadRequest, match="no branch's own prediction; choose experts separate or stacked"):
        on_device(bundle, experts="whole-step").generate(text=TEXT, steps=1, callback_on_step_end=print)


def test_a_stack_is_one_engine_and_of_one_modality_its_expert(bundle, mask):
    pipeline = on_device(bundle, experts="stacked")
    pipeline.generate(mask=mask, text=TEXT, steps=1)
    pipeline.generate(text=TEXT, steps=1)
    engines = {network for network, _ in pipeline._runner._engines if network.startswith(("expert", "stack"))}
    assert engines == {"stack.mask+text", "expert.text"}


def test_experts_of_several_shapes_cannot_be_stacked_but_run_alone(bundle, mask):
    source = copy.deepcopy(bundle.manifest.source)
    source["experts"]["mask"]["unet"]["num_heads"] = 4
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, source=source))
    pipeline = on_device(other, experts="stacked")
    with pytest.raises(BadRequest, match=r"^experts stacked: unet.num_heads is 4 in mask and 2 in text; experts of"):
        pipeline.generate(mask=mask, text=TEXT, steps=1)
    pipeline.generate(text=TEXT, steps=1)
