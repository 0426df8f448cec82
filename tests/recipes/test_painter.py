import dataclasses
import itertools
import re

import numpy as np
import pytest

from recipes.faces.canvas import LABEL
from recipes.faces.captions import AGES, BEARDS, HAIR_COLORS, Attributes, caption, sample_attributes, words
from recipes.faces.painter import paint, portrait

SEEDS = range(6)
MAN = Attributes(
    male=True,
    age=2,
    beard=0,
    hair_color="brown",
    hair="short",
    bangs=False,
    glasses=False,
    hat=False,
    earrings=False,
    necklace=False,
    smile=0.3,
)


def painted(seed=0, **changes):
    return paint(dataclasses.replace(MAN, **changes), np.random.default_rng(seed), size=64)


def pixels_of(label, **changes):
    return sum((painted(seed, **changes)[1] == LABEL[label]).sum() for seed in SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_seed_gives_the_same_bytes(seed):
    first, again, other = portrait(seed, 64), portrait(seed, 64), portrait(seed + 1, 64)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert (first.attributes, first.caption) == (again.attributes, again.caption)
    assert first.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_images_and_labels_have_the_types_of_a_data_set(seed):
    made = portrait(seed, 64)
    assert (made.image.shape, made.image.dtype) == ((64, 64, 3), np.uint8)
    assert (made.labels.shape, made.labels.dtype) == ((64, 64), np.uint8)
    assert set(np.unique(made.labels)) <= set(range(19))
    assert made.image.std() > 10


@pytest.mark.parametrize(
    ("attribute", "values"),
    [("age", (0, len(AGES) - 1)), ("beard", (0, len(BEARDS) - 1)), ("hair_color", ("black", "white"))],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_only_words_can_say_shows_in_the_image_and_not_in_the_labels(attribute, values, seed):
    (image, labels), (other_image, other_labels) = (painted(seed, **{attribute: value}) for value in values)
    assert np.array_equal(labels, other_labels)
    assert np.abs(image.astype(int) - other_image).max() > 20


@pytest.mark.parametrize(
    ("label", "without", "with_it"),
    [
        ("eye_g", {}, {"glasses": True}),
        ("hat", {}, {"hat": True}),
        ("ear_r", {"male": False}, {"male": False, "earrings": True}),
        ("neck_l", {"male": False}, {"male": False, "necklace": True}),
    ],
)
def test_what_is_worn_stands_in_the_labels(label, without, with_it):
    assert pixels_of(label, **without) == 0
    assert pixels_of(label, **with_it) > 10


def test_longer_hair_covers_more_pixels():
    areas = [pixels_of("hair", hair=hair) for hair in ("bald", "short", "medium", "long")]
    assert all(shorter < longer for shorter, longer in itertools.pairwise(areas))


@pytest.mark.parametrize(
    "label", ["skin", "nose", "l_eye", "r_eye", "l_brow", "r_brow", "u_lip", "l_lip", "neck", "cloth"]
)
def test_every_face_has_its_parts(label):
    assert pixels_of(label) > 10


def test_the_person_s_left_is_on_the_right_of_the_image():
    _, labels = painted()
    columns = {name: np.nonzero(labels == LABEL[name])[1].mean() for name in ("l_eye", "r_eye", "l_brow", "r_brow")}
    assert columns["l_eye"] > columns["r_eye"]
    assert columns["l_brow"] > columns["r_brow"]


def test_captions_use_only_listed_words_and_use_them_all():
    rng = np.random.default_rng(0)
    said = {
        word for _ in range(5000) for word in re.findall(r"\w+|[^\w\s]", caption(sample_attributes(rng), rng).lower())
    }
    assert said == set(words())


def test_a_caption_says_what_is_true():
    rng = np.random.default_rng(1)
    for _ in range(300):
        attributes = sample_attributes(rng)
        text = caption(attributes, rng)
        assert ("man" in text.lower().split()) == attributes.male
        assert AGES[attributes.age] in text
        mentioned = {color for color in HAIR_COLORS if f"{color} hair" in text}
        assert mentioned <= {attributes.hair_color}
        if attributes.beard:
            assert BEARDS[attributes.beard].removeprefix("a ") in text
        assert "glasses" not in text or attributes.glasses
        assert "smiling" not in text or attributes.smile > 0.5


def test_age_and_hair_colour_are_independent_of_what_the_labels_show():
    """Else a mask would tell the age, and nothing would be left for words to say."""
    rng = np.random.default_rng(2)
    drawn = [sample_attributes(rng) for _ in range(4000)]
    ages = np.array([attributes.age for attributes in drawn])
    for field in ("male", "glasses", "hat", "bangs"):
        shown = np.array([getattr(attributes, field) for attributes in drawn])
        spread = ages.std() * np.sqrt(1 / shown.sum() + 1 / (~shown).sum())
        assert abs(ages[shown].mean() - ages[~shown].mean()) < 4 * spread
