import numpy as np
import pytest

from cdiff_rt.bench.cases import Case
from cdiff_rt.bench.task import Task, example, one_step, open_bundle, run_of, whole_image
from cdiff_rt.manifest import Bundle
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling import noise
from cdiff_rt.sampling.tiers import TIERS, Sampling

STEPS = 4
CASE = Case("a", "onnxruntime", sampling=Sampling(steps=STEPS))


@pytest.fixture(scope="module")
def tiny(tiny_bundle):
    return Bundle.open(tiny_bundle)


def trajectory(bundle, steps, batch=1):
    """What a pipeline makes of the examples: x after each step, and the result."""
    seen = []
    conditions = {m.name: example(m.kind, m.classes, m.input_shape) for m in bundle.manifest.modalities}
    made = Pipeline(bundle, "onnxruntime").generate(
        steps=steps, batch=batch, callback_on_step_end=seen.append, **conditions
    )
    return [state.x for state in seen], made


def test_a_task_survives_its_way_to_the_worker():
    task = Task("a model", "step", 3, {"sketch": "a folder"})
    assert Task.from_json(task.to_json()) == task


def test_a_task_may_have_experts_of_other_bundles(parts):
    task = Task(str(parts.hosts["text"]), "step", 1, {"face": str(parts.guests["mask"])})
    assert [modality.name for modality in open_bundle(task).manifest.modalities] == ["text", "face"]
    assert task.subject == f"{parts.hosts['text']} with face={parts.guests['mask']}"


@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_is_the_first_of_a_run(tiny, batch):
    with one_step(tiny, CASE, Task("tiny", "step", batch)) as timed:
        first, again = timed.once(), timed.once()
    expected = trajectory(tiny, STEPS, batch)[0][0][0]
    np.testing.assert_array_equal(first.latents, expected)
    np.testing.assert_array_equal(again.latents, expected)
    assert not first.pixels.size


def test_only_the_experts_run_in_a_step(tiny, monkeypatch):
    """Conditions and time rows are computed before; each expert is called once."""
    with one_step(tiny, CASE, Task("tiny", "step")) as timed:
        called = []
        monkeypatch.setattr(
            "cdiff_rt.engines.ort.OrtEngine.__call__",
            lambda engine, **inputs: (
                called.append(engine.spec.file)
                or {
                    t.name: np.ones([1 if isinstance(d, str) else d for d in t.shape], np.float32)
                    for t in engine.spec.outputs
                }
            ),
        )
        timed.once()
    assert sorted(called) == sorted(tiny.manifest.networks[f"expert.{m.name}"].file for m in tiny.manifest.modalities)


@pytest.mark.parametrize("way", [one_step, whole_image])
def test_after_some_steps_is_the_end_of_a_run_on_the_same_engines(way, tiny, monkeypatch):
    with way(tiny, CASE, Task("tiny")) as timed:
        timed.once()
        monkeypatch.setattr("cdiff_rt.runners.load_engine", lambda *arguments, **more: pytest.fail("a second set"))
        result = timed.after(5)
        monkeypatch.undo()
    np.testing.assert_array_equal(result.latents, trajectory(tiny, 5)[0][-1][0])


def test_a_whole_image_is_the_pipelines(tiny):
    with whole_image(tiny, CASE, Task("tiny")) as timed:
        result = timed.once()
    _, made = trajectory(tiny, STEPS)
    np.testing.assert_array_equal(result.latents, made.latents[0])
    np.testing.assert_array_equal(result.pixels, made.images[0].ravel())


def test_a_run_has_every_expert_and_its_own_noise(tiny):
    run = run_of(tiny, TIERS["fast"], batch=2)
    assert [m.name for m in run.modalities] == [m.name for m in tiny.manifest.modalities]
    assert len(run.table.timesteps) == TIERS["fast"].steps
    shape = tiny.manifest.latent_shape
    np.testing.assert_array_equal(run.start, noise.normal(0, range(2), 0, shape))
    added = noise.of_steps(tiny.manifest.schedule, run.table, 0, range(2), shape)
    np.testing.assert_array_equal(run.noise(3), added(3))
    assert run.noise(3).std() == pytest.approx(1, abs=0.1)
