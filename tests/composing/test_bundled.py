"""Experts of bundles in a composition: the embedded model's, composed, are the embedded model."""

import numpy as np
import pytest

from cdiff_rt import Expert, Parameterisation, compose, export_composition
from cdiff_rt.engines.ort import OrtEngine
from cdiff_rt.errors import BadArtefact, BadInput, BadRequest
from cdiff_rt.sampling.schedule import Schedule

TEXT = "This man has a long beard."


def composed(**how):
    return compose({name: Expert.from_bundle("faces-128", name, **how) for name in ("mask", "text")})


@pytest.mark.parametrize("with_logit", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_models_experts_composed_give_its_latents(with_logit, pipeline, mask):
    """To the bit: what it predicts passes through tables of 0 and 1. Without logits it is the plain mean."""
    ours = composed(with_logit=with_logit).generate(mask=mask, text=TEXT, steps=2, batch=2)
    usual = {"influence": "as-trained"} | ({} if with_logit else {"sharpness": 0})
    theirs = pipeline.generate(mask=mask, text=TEXT, steps=2, batch=2, **usual)
    np.testing.assert_array_equal(ours.latents, theirs.latents)
    assert ours.parameters["prompt"] == TEXT and set(ours.parameters["inputs"]) == {"mask", "text"}


def test_prediction_and_logit_of_one_x_cost_one_call(mask, monkeypatch):
    made = composed(with_logit=True)
    made.generate(mask=mask, text=TEXT, steps=2)
    called, call = [], OrtEngine.__call__
    monkeypatch.setattr(OrtEngine, "__call__", lambda engine, **x: called.append(engine.spec.file) or call(engine, **x))
    made.generate(mask=mask, text=TEXT, steps=2)
    assert called.count("expert.mask.onnx") == called.count("expert.text.onnx") == 2


def test_what_was_asked_last_is_not_taken_for_another_condition(pipeline):
    made = compose({"text": Expert.from_bundle("faces-128", "text")})
    first, second = (made.generate(text=text, steps=1).latents for text in (TEXT, "A woman."))
    assert np.abs(first - second).max() > 0.01


def test_conditions_are_read_as_in_the_bundle(pipeline):
    made = composed()
    with pytest.raises(BadInput, match="mask "):
        made.generate(mask=np.full((64, 64), 99, np.uint8), steps=2)
    with pytest.raises(BadInput, match="text: it is empty"):
        made.generate(text=" ", steps=2)


def test_beside_an_expert_of_another_kind_and_schedule(mask):
    """It is asked at the nearest of its own timesteps."""
    cosine = Schedule(betas="squaredcos_cap_v2", prediction="v")
    pull = Expert(lambda x, time: np.ones_like(x), Parameterisation("x0", schedule=cosine), latent_shape=(16, 16, 16))
    made = compose({"face": Expert.from_bundle("faces-128", "mask"), "pull": pull})
    alone = made.generate(face=mask, steps=4, eta=0.0, without=["pull"]).latents
    mixed = made.generate(face=mask, steps=4, eta=0.0, influence={"pull": 3}).latents
    assert np.abs(mixed - 1).mean() < np.abs(alone - 1).mean()


def test_what_cannot_be_brought_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="expert: bundle faces-128 has the conditions mask, text; say which"):
        Expert.from_bundle("faces-128", "sketch")
    with pytest.raises(BadArtefact, match="there is no bundle 'no-such'"):
        Expert.from_bundle("no-such", "mask")
    with pytest.raises(BadRequest, match="name: a int"):
        Expert.from_bundle("faces-128", 3)


def test_it_is_not_put_into_another_bundle(tmp_path):
    with pytest.raises(
        BadRequest, match="expert mask: it is of bundle faces-128, and is not put into another; .*--with"
    ):
        export_composition(composed(), tmp_path / "out")
    assert not [*tmp_path.iterdir()]
