"""Who has his way is counted by a judge that reads a code, so what each image shows is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from cdiff_rt.bench import conflicts
from cdiff_rt.bench.conflicts import (
    AGREEING,
    AS_IS,
    DRAWN,
    IOU,
    SAID,
    Case,
    Found,
    auc,
    auc_interval,
    compare,
    score,
    ways,
)
from cdiff_rt.exam import UNASKED, Exam
from cdiff_rt.sampling.tiers import Sampling
from tests.coded_exam import coded, labels_of, write_coded_exam

GENDER, BEARD = range(2)
LABELS, OTHER = labels_of(2)
AREA = np.zeros((128, 128), bool)
AREA[:64] = True


@pytest.fixture
def exam(tmp_path):
    return Exam.open(write_coded_exam(tmp_path / "exam"))


def case(named=(1, 2), drawn=0, about=BEARD, labels=LABELS):
    elsewhere = [UNASKED if number == about else answer for number, answer in enumerate(named)]
    return Case({"mask": labels, "text": "words"}, labels, np.array(named), about, drawn, AREA, np.array(elsewhere))


def columns(exam, image, **of):
    found, failed = score(exam, [case(**of)], image[None], ("mask", "text"))
    return {name: float(values[0]) for name, values in found.items()}, bool(failed[0])


@pytest.mark.parametrize(("shown", "said", "drawn"), [(2, 1, 0), (0, 0, 1), (1, 0, 0)])
def test_what_shows_is_the_sentences_or_the_masks_or_neithers(shown, said, drawn, exam):
    found, failed = columns(exam, coded(LABELS, [1, shown]))
    assert (found[SAID], found[DRAWN], failed) == (said, drawn, True)


@pytest.mark.parametrize(("shown", "failed"), [(2, False), (0, True)])
def test_of_conditions_that_agree_both_can_be_followed(shown, failed, exam):
    assert columns(exam, coded(LABELS, [1, shown]), drawn=2)[1] == failed


def test_elsewhere_is_outside_the_area_and_what_else_the_sentence_says(exam):
    half = np.where(AREA, OTHER, LABELS)  # as the mask has it outside, not inside
    found, _ = columns(exam, coded(half, [1, 0]))
    assert (found["mask elsewhere"], found["text elsewhere"]) == (1, 1) and 0.3 < found[IOU] < 0.7
    found, _ = columns(exam, coded(np.where(AREA, LABELS, OTHER), [0, 2]))
    assert (found["mask elsewhere"], found["text elsewhere"]) == (0, 0)
    assert found["attributes"] == 0.5


def test_a_sentence_that_says_nothing_else_is_not_counted(exam):
    found, _ = columns(exam, coded(LABELS, [1, 2]), named=(UNASKED, 2))
    assert np.isnan(found["text elsewhere"]) and found["attributes"] == 1


@pytest.mark.parametrize(
    ("scores", "failed", "expected"),
    [
        ([3, 4, 1, 2], [1, 1, 0, 0], 1),
        ([1, 2, 3, 4], [1, 1, 0, 0], 0),
        ([1, 3, 2, 4], [0, 1, 1, 0], 0.5),
        ([2, 2], [1, 0], 0.5),
        ([1, 2], [1, 1], np.nan),
    ],
)
def test_an_auc_counts_pairs(scores, failed, expected):
    assert auc(np.array(scores), np.array(failed, bool)) == pytest.approx(expected, nan_ok=True)


def test_an_interval_holds_the_auc_and_narrows():
    rng, widths = np.random.default_rng(0), []
    for count in (30, 400):
        failed = rng.random(count) < 0.5
        mean, low, high = auc_interval(rng.normal(size=count) + failed, failed)
        assert low < mean < high and 0.6 < mean < 0.9
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_the_disagreement_is_held_against_what_was_not_followed():
    rows = {AS_IS: {SAID: np.array([1.0, 1, 0, 0]), IOU: np.array([0.9, 0.1, 0.9, 0.1])}}
    agreeing, contrary = np.array([0.1, 0.4, 0.3, 0.1]), np.array([0.2, 0.5, 0.6, 0.7])
    failed = {AS_IS: np.ones(4, bool), AGREEING: np.array([False, True, False, False])}
    spoken, alone = Found(rows, {AS_IS: contrary, AGREEING: agreeing}, failed).aucs().items()
    assert spoken[0].endswith("5 of 8 images") and spoken[1][0] == pytest.approx(14 / 15)
    assert alone[0].endswith("3 of 4 that contradict") and alone[1][0] == 1


def test_a_brush_is_in_one_hand_and_what_it_leaves_in_the_others():
    found = ways("mask", "text")
    for inside, outside in (("text", "mask"), ("mask", "text")):
        regions = found[f"{inside} only in the area, {outside} only elsewhere"](case())["region"]
        assert [(each.condition, each.rule) for each in regions] == [(inside, "only"), (outside, "only")]
        np.testing.assert_array_equal(regions[0].map, AREA)
        np.testing.assert_array_equal(regions[0].map + regions[1].map, 1)
    assert found["mask-first"](case()) == {"influence": "mask-first"}


def test_every_way_makes_every_case_and_the_last_is_of_conditions_that_agree(exam, monkeypatch):
    calls = []

    def generate(settings, *, conditions, callback_on_step_end):
        calls.append((settings.first, bool(settings.influence or settings.region), conditions["text"]))
        image = coded(LABELS, [1, 2])
        return SimpleNamespace(images=image[None], conflict=SimpleNamespace(of_images=[float(settings.first)]))

    pipeline = SimpleNamespace(generate=generate)
    contrary, agreeing = [case(), case(drawn=1)], [case(drawn=2), case(drawn=2)]
    found = compare(pipeline, exam, contrary, agreeing, Sampling(steps=2))
    assert [first for first, *_ in calls] == [0, 1] * len(found.rows)
    assert sum(not changed for _, changed, _ in calls) == 4  # as it is, and those that agree
    assert set(found.rows) == {AGREEING, *ways("mask", "text")}
    assert found.failed[AS_IS].all() and not found.failed[AGREEING].any()
    assert found.conflicts[AS_IS].tolist() == found.conflicts[AGREEING].tolist() == [0, 1]
    assert conflicts.HALF == 0.5
