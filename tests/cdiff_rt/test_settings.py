import dataclasses
import enum
import inspect
import json
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from cdiff_rt.errors import BadRequest
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.tiers import TIERS
from cdiff_rt.settings import RESERVED, SETTINGS, Influence, Settings, unknown_argument

USUAL = Influence("linear", 3.0)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_seeds_of_the_range_are_taken(seed):
    assert Settings(seed=seed).seed == seed


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_outside_the_range_are_refused(seed):
    with pytest.raises(BadRequest, match=f"{seed} is outside"):
        Settings(seed=seed)


def test_numbers_of_numpy_become_plain_ones():
    settings = Settings(seed=np.int64(7), batch=np.uint8(2), solver="ddim", steps=np.int32(10), eta=np.float32(0.5))
    assert settings == Settings(seed=7, batch=2, solver="ddim", steps=10, eta=0.5)
    assert type(settings.seed) is int and type(settings.eta) is float
    assert json.dumps(settings.told())
    assert type(Influence(factor=np.float64(2)).factor) is float


class Text(str):
    pass


class Tier(str, enum.Enum):  # noqa: UP042 - whose str() is no text of its own
    FAST = "fast"


class Number(enum.IntEnum):
    SEVEN = 7


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("seed", np.array(7), 7),
        ("seed", Number.SEVEN, 7),
        ("batch", np.uint64(7), 7),
        ("eta", np.array(0.5, np.float16), 0.5),
        ("eta", Fraction(1, 2), 0.5),
        ("temperature", Decimal("0.5"), 0.5),
        ("tier", Tier.FAST, "fast"),
        ("tier", np.str_("fast"), "fast"),
        ("decay", Text("none"), "none"),
        ("without", np.array(["mask"]), ("mask",)),
        ("without", (name for name in [Text("mask")]), ("mask",)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_says_a_value_becomes_a_plain_one(name, value, plain):
    kind = Influence if name == "decay" else Settings
    found = getattr(kind(**{name: value}), name)
    assert found == plain and type(found) is type(plain)
    assert not isinstance(found, tuple) or [type(each) for each in found] == [str]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", "7", "seed: '7'; give a whole number"),
        ("seed", True, "seed: True; give a whole number"),
        ("seed", np.True_, "seed: np.True_; give a whole number"),
        ("seed", np.array([7]), "seed: array([7]); give a whole number"),
        ("seed", Fraction(7), "seed: Fraction(7, 1); give a whole number"),
        ("eta", np.array([0.5]), "eta: array([0.5]); give a number"),
        ("eta", np.array(True), "eta: array(True); give a number"),
        ("eta", bytearray(b"1"), "eta: bytearray(b'1'); give a number"),
        ("eta", 1j, "eta: 1j; give a number"),
        ("tier", np.array("fast"), "tier: array('fast'"),
        ("without", np.array("mask"), "without: array('mask'"),
        ("without", 5, "without: 5; give a list of names"),
        ("batch", 2.0, "batch: 2.0; give a whole number"),
        ("batch", 0, "batch: 0 is outside 1-256"),
        ("first", -1, "first: -1 is outside"),
        ("steps", "10", "steps: '10'; give a whole number"),
        ("eta", "1", "eta: '1'; give a number"),
        ("eta", float("nan"), "eta: nan is outside 0-1"),
        ("eta", 10**400, "eta: 1000"),
        ("temperature", False, "temperature: False; give a number"),
        ("tier", "slow", "tier: 'slow'; choose one of exact, fast, turbo"),
        ("solver", 3, "solver: 3; give a name in quotes"),
        ("rounding", "up", "rounding: 'up'; choose one of truncate, nearest"),
        ("without", "mask", "without: 'mask'; give a list of names"),
        ("snap", 1, "snap: 1; give true or false"),
        ("snap", "yes", "snap: 'yes'; give true or false"),
        ("labels", 7, "labels: 7 is no order and no file; give celebamask or bisenet"),
        ("labels", "", "labels: '' is no order and no file; give celebamask or bisenet"),
        ("decay", "slow", "decay: 'slow'; choose one of none, linear, cosine"),
        ("factor", -1, "factor: -1.0 is outside"),
        ("influence", 2.0, "influence: a float; give a text, a list of texts, or a dict by condition"),
        ("region", USUAL, "region: a Influence; give a text"),
    ],
)
def test_a_value_that_is_none_is_refused_in_words(name, value, words):
    with pytest.raises(BadRequest) as caught:
        Settings(**{name: value})
    assert str(caught.value).startswith(words)


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 1


def test_settings_of_the_influence_change_the_models_own():
    assert Settings(seed=1).over(USUAL) == USUAL
    assert Settings(factor=1).over(USUAL) == Influence("linear", 1.0)
    assert Settings(decay="none", sharpness=2).over(USUAL) == Influence("none", 3.0, 2.0)
    assert Settings(boost=1).over(USUAL) == Influence("linear", 3.0, boost=1.0)


@pytest.mark.parametrize(
    ("preset", "meant"),
    [("paper", Influence("cosine", 2.0)), ("as-trained", Influence("none", 1.0)), ("mask-first", USUAL)],
)
def test_a_preset_stands_in_for_the_models_own_and_what_is_given_beside_it_for_both(preset, meant):
    assert Settings(influence=preset).over(USUAL) == meant
    beside = Settings(influence=[preset, "text=2"], decay="linear", boost=1).over(USUAL)
    assert beside == dataclasses.replace(meant, decay="linear", boost=1.0)


def test_what_is_told_is_resolved_and_leaves_out_what_was_left_to_the_model():
    assert Settings(tier="fast", seed=3).told() == {
        "solver": "dpmpp-2m-sde",
        "steps": 20,
        "eta": 1.0,
        "temperature": 1.0,
        "seed": 3,
        "first": 0,
        "batch": 1,
        "tier": "fast",
        "rounding": "truncate",
        "labels": "celebamask",
        "snap": False,
    }
    told = Settings(steps=10, factor=3, influence={"text": 1.5}, region={"mask": "a.png"}, rounding="nearest").told()
    assert (told["rounding"], told["factor"], told["influence"]) == ("nearest", 3.0, ["text=1.5"])
    assert told["region"] == ["mask=a.png:only"] and not {"tier", "decay"} & set(told)


def test_how_masks_are_read_is_told_as_it_can_be_asked_for_again(tmp_path):
    (tmp_path / "order.txt").write_text("0 = background\n17 = hair\n")
    settings = Settings(labels=tmp_path / "order.txt", snap=True)
    told = settings.told()
    assert (told["labels"], told["snap"]) == ("0=background,17=hair", True)
    assert Settings(labels=told["labels"], snap=told["snap"]) == settings


def test_every_tier_can_be_asked_for():
    for name, tier in TIERS.items():
        assert Settings(tier=name).sampling() == tier


def test_every_argument_and_setting_is_a_reserved_name():
    arguments = {*inspect.signature(Pipeline.generate).parameters, *inspect.signature(Pipeline.edit).parameters}
    assert (arguments - {"given"}) | set(SETTINGS) | {"id"} <= RESERVED


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("num_inference_steps", "steps"),
        ("maks", "mask"),
        ("promt", "text"),
        ("colour", None),
        ("prompt", "text"),
        ("sead", "seed"),
    ],
)
def test_a_wrong_word_is_refused_with_the_right_one(word, meant):
    error = str(unknown_argument(word, ["mask", "text", *SETTINGS]))
    assert error.startswith(f"argument: {word!r}; ")
    assert f"it is called {meant} here" in error if meant else "choose one of mask, text, seed" in error


def test_a_pipeline_names_the_right_word(pipeline):
    with pytest.raises(BadRequest, match="'num_inference_steps'; it is called steps here"):
        pipeline.generate(text="a man", num_inference_steps=10)
    with pytest.raises(BadRequest, match="'maks'; it is called mask here"):
        pipeline.generate(text="a man", maks="m.png")
    with pytest.raises(BadRequest, match="settings: a dict; give a cdiff_rt.Settings"):
        pipeline.generate({"seed": 1}, text="a man")


def test_settings_as_one_object_and_by_name_are_the_same_request(pipeline):
    by_name = pipeline.generate(text="a man", seed=7, steps=2, factor=1)
    settings = Settings(seed=7, steps=2, factor=1)
    whole = pipeline.generate(settings, text="a man")
    amended = pipeline.generate(settings, conditions={"text": "a man"}, seed=7)
    assert by_name.parameters == whole.parameters == amended.parameters
    np.testing.assert_array_equal(by_name.images, whole.images)
