"""Weights and regions from a request to the loop: who runs, when, and what is said of what changes nothing."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cdiff_rt import runners
from cdiff_rt.controls import Region
from cdiff_rt.errors import BadRequest
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.run import usual_of
from cdiff_rt.settings import Settings

TEXT = "This man has a long beard."
STEPS = 4  # at the places 0.249, 0.499, 0.749 and 0.999
LEFT = np.zeros((16, 16), np.float32)
LEFT[:, :8] = 1


@pytest.fixture
def calls(monkeypatch):
    """How often each network is called."""
    counted, load = Counter(), runners.load_engine

    def counting(backend, bundle, network, **how):
        engine = load(backend, bundle, network, **how)

        def call(**inputs):
            counted[network] += 1
            return engine(**inputs)

        call.close = engine.close
        return call

    monkeypatch.setattr(runners, "load_engine", counting)
    return counted


def seen_of(pipeline, **request):
    """The influence functions [M, *latent] of every step."""
    seen = []
    pipeline.generate(steps=STEPS, callback_on_step_end=lambda state: seen.append(state.influence[:, 0, 0]), **request)
    return seen


@pytest.mark.parametrize(
    ("given", "decay", "factor"),
    [
        ({}, "cosine", 2.0),
        ({"influence": "mask-first"}, "none", 1.0),
        ({"influence": ["mask-first", "text=2"]}, "none", 1.0),
        ({"influence": "text-first"}, "cosine", 2.0),
        ({"influence": "mask=4"}, "cosine", 2.0),
        ({"influence": "mask-first", "decay": "linear"}, "linear", 1.0),
    ],
    ids=str,
)
def test_a_condition_that_comes_first_does_not_fade(given, decay, factor, bundle):
    settings = Settings(**given)
    found = settings.over(usual_of(bundle.manifest, settings))
    assert (found.decay, found.factor) == (decay, factor)


def test_the_mask_that_comes_first_leads_to_the_end(pipeline, mask):
    leads = seen_of(pipeline, mask=mask, text=TEXT, influence="mask-first")
    trained = seen_of(pipeline, mask=mask, text=TEXT, influence=["as-trained", "mask=4"])
    np.testing.assert_array_equal(leads, trained)
    assert leads[-1][0].mean() > 0.5
    told = pipeline.generate(mask=mask, text=TEXT, steps=1, influence="mask-first").parameters["adjustment"]
    assert (told["decay"], told["factor"]) == ("none", 1.0)


@pytest.mark.parametrize(
    ("influence", "mask_calls", "text_calls"),
    [
        ("text=2", 4, 4),
        ("text=1@0.5-1", 4, 2),
        (["mask=1@0-0.6", "text=1@0.4-1"], 2, 3),
        ("mask=0@0.5,1@0.9", 2, 4),
        ("mask=-1@0-0.3", 1, 4),
    ],
    ids=str,
)
def test_a_branch_without_weight_costs_nothing(influence, mask_calls, text_calls, bundle, mask, calls):
    Pipeline(bundle).generate(mask=mask, text=TEXT, steps=STEPS, influence=influence)
    assert (calls["expert.mask"], calls["expert.text"]) == (mask_calls, text_calls)


def test_a_condition_that_weighs_nothing_at_any_step_is_not_even_encoded(bundle, mask, calls):
    one = Pipeline(bundle).generate(mask=mask, text=TEXT, steps=STEPS, influence="text=1@0.3-0.4")
    assert calls == {"condition.mask": 1, "time.mask": 1, "expert.mask": 4, "vae.decode": 1}
    np.testing.assert_array_equal(one.latents, Pipeline(bundle).generate(mask=mask, steps=STEPS).latents)


def test_steps_of_one_condition_alone_are_as_if_the_other_had_not_been_given(pipeline, mask):
    seen = seen_of(pipeline, mask=mask, text=TEXT, influence=["mask=1@0-0.6", "text=1@0.4-1"])
    assert [(int(step[0].mean()), int(step[1].mean())) for step in (seen[0], *seen[2:])] == [(1, 0), (0, 1), (0, 1)]
    assert 0 < seen[1][0].mean() < 1


def test_more_weight_is_more_influence_and_less_is_less(pipeline, mask):
    given = {"mask": mask, "text": TEXT, "sharpness": 0.0}
    of_text = [seen_of(pipeline, influence=f"text={weight}", **given)[0][1].mean() for weight in (0.25, 1, 4)]
    assert of_text[0] < of_text[1] < of_text[2]
    np.testing.assert_allclose(seen_of(pipeline, influence="paper", **given), seen_of(pipeline, **given))


def test_a_negative_weight_leads_away_and_the_sum_stays_one(pipeline, mask):
    for step in seen_of(pipeline, mask=mask, text=TEXT, influence="mask=-0.5"):
        assert (step[0] <= 0).all() and (step[1] >= 1 - 1e-6).all()
        np.testing.assert_allclose(step.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("form", ["array", "file", "bytes", "picture"])
def test_a_region_holds_where_it_is_white(form, pipeline, mask, tmp_path):
    picture = Image.fromarray((np.kron(LEFT, np.ones((8, 8))) * 255).astype(np.uint8))
    picture.save(tmp_path / "left.png")
    map_ = {"array": LEFT, "file": tmp_path / "left.png", "picture": picture}.get(form)
    map_ = (tmp_path / "left.png").read_bytes() if map_ is None else map_
    for step in seen_of(pipeline, mask=mask, text=TEXT, region=[Region("text", map_, "at-least", 0.9)]):
        assert step[1, :, :8].min() >= 0.9 - 1e-5
    for step in seen_of(pipeline, mask=mask, text=TEXT, region=[Region("text", map_)]):
        assert np.abs(step[1, :, 8:]).max() == 0


def test_a_region_changes_the_image_where_it_is(pipeline, mask):
    plain = pipeline.generate(mask=mask, text=TEXT, steps=STEPS)
    held = pipeline.generate(mask=mask, text=TEXT, steps=STEPS, region={"mask": LEFT[:, ::-1].copy()})
    change = np.abs(held.images.astype(int) - plain.images).mean((0, 1, 3))
    assert change[:48].mean() > 2 * change[80:].mean() > 0


def test_what_is_asked_of_a_condition_that_is_not_given_is_told(pipeline, mask):
    result = pipeline.generate(mask=mask, steps=1, influence="text=2", region={"text": LEFT})
    assert result.warnings == ["influence: no text is given, so what is asked of it changes nothing"]
    np.testing.assert_array_equal(result.latents, pipeline.generate(mask=mask, steps=1).latents)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"influence": "sketch=2"}, "influence: 'sketch'; faces-128 knows mask, text"),
        ({"influence": "sketch-first"}, "influence: 'sketch'; faces-128 knows mask, text"),
        ({"region": {"sketch": LEFT}}, "influence: 'sketch'; faces-128 knows mask, text"),
        ({"influence": "text=0"}, "influence: text: no weight at any step; give one a weight above 0"),
        ({"influence": "text=-1"}, "in step 1 of 4, no weight above 0 for text"),
        ({"influence": "text=1@0.5-1"}, "in step 1 of 4, no weight above 0 for text"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(asked, words, pipeline):
    with pytest.raises(BadRequest) as caught:
        pipeline.generate(text=TEXT, steps=STEPS, **asked)
    assert words in str(caught.value)


def test_an_edit_keeps_to_weights_and_regions(pipeline, mask):
    made = pipeline.generate(mask=mask, text=TEXT, steps=STEPS)
    photo, source = made.images[0], {"mask": mask, "text": TEXT}
    wanted = {"mask": mask, "text": "This man has no beard.", "steps": STEPS, "source": source}
    plain = pipeline.edit(photo, **wanted)
    held = pipeline.edit(photo, region={"text": LEFT}, influence="text=2", **wanted)
    assert not np.array_equal(plain.images, held.images)
    assert held.parameters["influence"] == ["text=2"] and held.parameters["region"] == ["text=array 16x16:only"]
    assert held.warnings == plain.warnings
