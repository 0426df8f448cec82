import dataclasses

import numpy as np
import pytest

from cdiff_rt.controls import PREFERENCE, Region, Weight, read_regions, read_weights, weights_of
from cdiff_rt.errors import BadRequest
from cdiff_rt.settings import Settings


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("1.5", Weight("text", ((0.0, 1.5),))),
        ("-2", Weight("text", ((0.0, -2.0),))),
        (" 1e-3 ", Weight("text", ((0.0, 0.001),))),
        ("1.5@0.2-1.0", Weight("text", ((0.0, 1.5),), 0.2, 1.0)),
        ("-0.5@0-.5", Weight("text", ((0.0, -0.5),), 0.0, 0.5)),
        ("0@0,1@0.3,1.5@1", Weight("text", ((0.0, 0.0), (0.3, 1.0), (1.0, 1.5)))),
        ("2@0.5", Weight("text", ((0.5, 2.0),))),
    ],
)
def test_a_weight_is_read_and_written_as_the_same_text(text, weight):
    (found,) = read_weights("influence", f"text={text}")
    assert found == weight
    assert read_weights("influence", str(found))[0].keys[-1][1] == weight.keys[-1][1]
    assert str(read_weights("influence", str(found))[0]) == str(found)


@pytest.mark.parametrize("weight", [0.1 + 0.2, 1 / 3, 2.0, -1e-7])
def test_no_digit_of_a_weight_is_lost_in_its_text(weight):
    keys = ((0.0, weight), (1 / 7, -weight))
    for each in (Weight("text", keys), Weight("text", keys[:1], 0.1, 1 / 3)):
        assert read_weights("influence", str(each)) == (each,)


@pytest.mark.parametrize(
    "value",
    [
        "text=2",
        ["text=2"],
        {"text": 2},
        {"text": "2"},
        {"text": np.float32(2)},
        Weight("text", ((0.0, 2.0),)),
        [Weight("text", ((0.0, 2.0),))],
    ],
    ids=["text", "list", "number", "text by name", "numpy's", "object", "objects"],
)
def test_weights_have_one_meaning_however_they_are_given(value):
    assert Settings(influence=value).told()["influence"] == ["text=2"]


def test_nothing_is_no_weight_and_no_region():
    assert Settings(influence=None, region=None) == Settings() == Settings(influence=[], region={})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("text", "influence: 'text'; write a condition's weight, text=1.5, or one of paper, as-trained, NAME-first"),
        ("-first", "influence: '-first'; write a condition's weight"),
        ("text=", "influence of text: '' is no number; write a number, 1.5"),
        ("text=much", "influence of text: 'much' is no number"),
        ("text=nan", "influence of text: 'nan' is no number"),
        ("text=1e9", "influence of text: 1000000000.0 is outside -1000-1000"),
        ("text=1@0.8-0.2", "influence of text: it starts at 0.8 and ends at 0.2; let it end later"),
        ("text=1@0-2", "influence of text, place: 2.0 is outside 0-1"),
        ("text=1@0,2@0", "influence of text: keyframes at 0, 0; give each a later place"),
        ("text=1,2", "influence of text: '1,2'; write a number"),
        ("text=1@2", "influence of text, place: 2.0 is outside 0-1"),
        (["text=1", "text=2"], "influence: text stands twice; give one weight for each condition, or keyframes"),
        (["paper", "as-trained"], "influence: paper and as-trained; give one preset"),
        ({"text": True}, "influence of text: True; give a number"),
        ({"text": float("nan")}, "influence of text: nan is outside"),
        ({"": 1}, "influence: ''; give the name of a condition"),
        (2.0, "influence: a float; give a text, a list of texts, or a dict by condition"),
        ([2.0], "influence: 2.0; write a condition's weight"),
    ],
)
def test_a_weight_that_is_none_is_refused_in_words(value, words):
    with pytest.raises(BadRequest) as caught:
        read_weights("influence", value)
    assert str(caught.value).startswith(words)


def test_the_condition_that_comes_first_weighs_more_unless_told_otherwise():
    assert weights_of(read_weights("influence", "text-first")) == [Weight("text", ((0.0, PREFERENCE),))]
    beside = read_weights("influence", ["text-first", "text=2", "mask=0.5"])
    assert [str(each) for each in weights_of(beside)] == ["text=2", "mask=0.5"]
    assert weights_of(read_weights("influence", "paper")) == []


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("beard.png", ("beard.png", "only", 1.0, 0.0, 1.0)),
        ("beard.png:only", ("beard.png", "only", 1.0, 0.0, 1.0)),
        ("beard.png:at-least=0.8", ("beard.png", "at-least", 0.8, 0.0, 1.0)),
        ("beard.png:at-most=0.2@0.2-0.6", ("beard.png", "at-most", 0.2, 0.2, 0.6)),
        ("a=b:c@1-2.png:weight=3", ("a=b:c@1-2.png", "weight", 3.0, 0.0, 1.0)),
        ("a@0.1-0.5", ("a@0.1-0.5", "only", 1.0, 0.0, 1.0)),
        ("a:only@0.1-0.5", ("a", "only", 1.0, 0.1, 0.5)),
    ],
)
def test_a_region_is_read_and_written_as_the_same_text(text, region):
    (found,) = read_regions("region", f"text={text}")
    assert (found.map, found.rule, found.value, found.start, found.end) == region
    assert str(read_regions("region", str(found))[0]) == str(found)


def test_regions_come_by_name_one_or_several():
    soft = np.zeros((4, 4), np.float32)
    several = read_regions("region", {"text": ["a.png", Region("", soft, "at-most", 0.1)], "mask": soft})
    assert [str(each) for each in several] == [
        "text=a.png:only",
        "text=array 4x4:at-most=0.1",
        "mask=array 4x4:only",
    ]


def test_paths_of_regions_start_at_a_folder(tmp_path):
    (found,) = read_regions("region", "text=a.png:at-least=1", tmp_path)
    assert found.map == str(tmp_path / "a.png")
    assert read_regions("region", f"text={tmp_path}/b.png", tmp_path / "c")[0].map == f"{tmp_path}/b.png"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("beard.png", "region: 'beard.png'; write the condition's name before it, text=beard.png"),
        ("text=", "region of text: ''; write a picture's path"),
        ("text=:only", "region of text: ':only'; write a picture's path"),
        ("text=a.png:only=1", "region of text: 'a.png:only=1'; write a picture's path, then :only, :weight=2"),
        ("text=a.png:at-least", "region of text: 'a.png:at-least'; write"),
        ("text=a.png:at-least=much", "region of text: 'much' is no number"),
        ("text=a.png:at-least=2", "region of text: 2.0 is outside 0-1"),
        ("text=a.png:weight=-1", "region of text: -1.0 is outside 0-1000"),
        ("text=a.png:only@0.5-0.5", "region of text: it starts at 0.5 and ends at 0.5"),
        (7, "region: a int; give a text"),
    ],
)
def test_a_region_that_is_none_is_refused_in_words(value, words):
    with pytest.raises(BadRequest) as caught:
        read_regions("region", value)
    assert str(caught.value).startswith(words)


def test_an_unknown_rule_is_refused():
    with pytest.raises(BadRequest, match="region of text: 'never'; choose one of only, weight, at-least, at-most"):
        Region("text", "a.png", "never")  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Region("text", "a.png").value = 2  # type: ignore[misc]
