import getpass
import os
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from cdiff_rt.engines.backends import load_engine
from cdiff_rt.engines.base import Placement
from cdiff_rt.export.typed import write_typed
from cdiff_rt.export.whole_step import whole_step_graph
from cdiff_rt.sampling import fusion, solvers
from cdiff_rt.sampling.controls import NEUTRAL
from cdiff_rt.sampling.fusion import PER_MODALITY, Adjustment
from cdiff_rt.sampling.numbers import WIDTH, pack
from tests.export.test_typed import BUDGETS, assert_strongly_typed, inputs_for, relative, written
from tests.gpu.test_fused_step import of_all

RNG = np.random.default_rng(0)
BATCH = 2
ADJUSTMENTS = {
    "identity": Adjustment(np.ones((1, 2)), np.zeros((1, 2)), np.ones((1, 2)), np.ones((1, 2))),
    "anchored": Adjustment(
        np.array([[0.3, 1.0]]), np.array([[0.0, 1.0]]), np.array([[2.0, 1.0]]), np.ones((1, 2)), 1.5
    ),
    "boosted": Adjustment(
        np.array([[0.3, 1.0]]), np.array([[0.0, 1.0]]), np.array([[2.0, 1.0]]), np.ones((1, 2)), 0.5, 3.0
    ),
}
ADJUSTMENTS["controlled"] = replace(ADJUSTMENTS["anchored"], controls=of_all(2, [0, 1], (16, 16))[:1])
ADJUSTMENTS["boosted, one absent"] = replace(
    ADJUSTMENTS["boosted"], present=np.array([[0.0, 1.0]]), controls=of_all(2, [1], (16, 16))[:1]
)
NOTHING_ASKED = np.array(NEUTRAL, np.float32).reshape(3, 1, 1, 1)
TABLE = solvers.SolverTable(np.array([7]), np.array([0.5]), RNG.standard_normal((1, 8)))


def of_some(adjust, count):
    """That of the first modalities; the engine takes controls in any case."""
    controls = np.broadcast_to(NOTHING_ASKED, (1, 3, 2, 16, 16)) if adjust.controls is None else adjust.controls
    parts = {name: getattr(adjust, name)[:, :count] for name in PER_MODALITY}
    return replace(adjust, **parts, controls=np.ascontiguousarray(controls[:, :, :count]))


def expected(bundle, modalities, inputs, adjust):
    """By the experts' own graphs and the definition."""
    engines = [load_engine("onnxruntime", bundle, f"expert.{name}") for name in modalities]
    results = [
        engine(x=inputs["x"], projections=inputs[f"projections.{name}"], context=inputs[f"context.{name}"])
        for engine, name in zip(engines, modalities, strict=True)
    ]
    outs, logits = (np.stack([result[kind] for result in results]) for kind in ("out", "logit"))
    taken = fusion.of_step(replace(of_some(adjust, len(modalities)), controls=adjust.controls), 0, outs.ndim - 1)
    weights = fusion.influence(logits, taken)
    x, hist = fusion.update(
        inputs["x"],
        fusion.fuse(outs, weights),
        inputs["hist"],
        inputs["noise"],
        TABLE.coefficients[0].astype(np.float32),
    )
    return {"next_x": x, "next_hist": hist, "weights": weights}


def given(spec, adjust, modalities):
    inputs = inputs_for(spec)
    taken = of_some(adjust, len(modalities))
    return inputs | {"numbers": pack(TABLE, taken)[0], "controls": taken.controls[0]}


def computed(typed, bundle, folder, inputs):
    session = ort.InferenceSession(str(write_typed(typed.model, bundle, folder, "step")))
    outputs = [tensor.name for tensor in typed.spec.outputs]
    typed_inputs = {tensor.name: inputs[tensor.name].astype(tensor.dtype) for tensor in typed.spec.inputs}
    return dict(zip(outputs, session.run(outputs, typed_inputs), strict=True))


@pytest.mark.parametrize("adjust", ADJUSTMENTS)
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_it_does_what_the_experts_and_the_definition_do(adjust, precision, bundle, tmp_path):
    adjust, modalities = ADJUSTMENTS[adjust], ("mask", "text")
    step = whole_step_graph(bundle, modalities, Placement("cpu", precision, BATCH), boosted=adjust.boost is not None)
    inputs = given(step.spec, adjust, modalities)
    ours, reference = computed(step, bundle, tmp_path, inputs), expected(bundle, modalities, inputs, adjust)
    for name, value in reference.items():
        assert ours[name].shape == value.shape and ours[name].dtype == np.float32
        assert relative(ours[name], value) < BUDGETS.get(precision, 1e-5), name


@pytest.mark.parametrize("modalities", [("text", "mask"), ("text",)])
def test_any_experts_in_any_order(modalities, bundle, tmp_path):
    adjust = ADJUSTMENTS["identity"]
    step = whole_step_graph(bundle, modalities, Placement("cpu", "fp32", 1))
    inputs = given(step.spec, adjust, modalities)
    ours, reference = computed(step, bundle, tmp_path, inputs), expected(bundle, modalities, inputs, adjust)
    assert all(relative(ours[name], value) < 1e-5 for name, value in reference.items() if value.std())
    assert np.allclose(ours["weights"], reference["weights"])


@pytest.fixture(scope="module")
def step(bundle):
    return whole_step_graph(bundle, ("mask", "text"), Placement("cpu", "fp16", BATCH))


def test_latents_stay_fp32_and_what_the_experts_take_is_theirs(step, bundle):
    latent, kinds = (BATCH, 16, 16, 16), {t.name: t.dtype for t in (*step.spec.inputs, *step.spec.outputs)}
    shapes = {tensor.name: tensor.shape for tensor in (*step.spec.inputs, *step.spec.outputs)}
    for name in ("x", "hist", "noise", "next_x", "next_hist"):
        assert (shapes.pop(name), kinds.pop(name)) == (latent, "float32")
    assert (shapes.pop("weights"), kinds.pop("weights")) == ((2, BATCH, 1, 16, 16), "float32")
    assert (shapes.pop("numbers"), kinds.pop("numbers")) == ((WIDTH,), "float32")
    assert (shapes.pop("controls"), kinds.pop("controls")) == ((3, 2, 16, 16), "float32")
    assert set(kinds.values()) == {"float16"}
    assert shapes == {
        "projections.mask": (1, 1088),
        "context.mask": (BATCH, 19, 1664),
        "projections.text": (1, 1088),
        "context.text": (BATCH, 32, 1664),
    }


def test_it_is_strongly_typed_and_holds_no_weight_and_no_path(step, bundle, tmp_path):
    assert_strongly_typed(step.model, step.spec)
    path = written(step.model, bundle, tmp_path)
    assert path.stat().st_size < 500_000
    words = path.read_bytes().decode("latin-1")
    assert not [word for word in (os.getcwd(), f"{os.sep}site-packages", getpass.getuser() + "@") if word in words]
    names = [name for node in step.model.graph.node for name in node.output]
    assert len(names) == len(set(names))
    onnx.checker.check_model(str(path))


def test_inputs_that_the_exporter_took_for_one_would_be_seen(step):
    """It does so where examples are one tensor: then `noise` and `hist` are read nowhere."""
    read = {name for node in step.model.graph.node for name in node.input}
    assert {tensor.name for tensor in step.spec.inputs} <= read
