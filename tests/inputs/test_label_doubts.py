import numpy as np
import pytest
from PIL import Image

from cdiff_rt.inputs.images import nearest
from cdiff_rt.inputs.label_doubts import doubts, misplaced
from cdiff_rt.inputs.palette import CLASSES, ORDERS, PLACES, USUAL_ORDER
from tests.label_pictures import ROOT, example, in_order

EXAM = np.asarray(Image.open(ROOT / "cdiff_rt" / "exams" / "faces-128" / "masks.png")).reshape(-1, 128, 128)


def of(labels: np.ndarray, classes: int = 19, order: str = USUAL_ORDER) -> list[str]:
    return list(doubts(labels, nearest(labels, 32), classes, order))


def lost_ones(told: list[str]) -> list[str]:
    return [line for line in told if line.startswith("too small to be seen at 32x32")]


def test_of_painted_faces_nothing_is_doubted_but_what_is_lost():
    told = [line for labels in EXAM for line in of(labels)]
    assert len(told) - len(lost_ones(told)) <= len(EXAM) / 100


def test_labels_that_are_lost_are_named():
    assert of(example(1, 512)) == ["too small to be seen at 32x32, so left out: u_lip, l_lip; draw them larger"]
    assert of(example(4, 512)) == []


@pytest.mark.parametrize("side", [64, 100, 256, 512])
@pytest.mark.parametrize("how", ["BILINEAR", "BICUBIC", "LANCZOS"])
def test_averaged_label_numbers_are_told(side, how):
    for labels in (example(6), EXAM[7]):
        averaged = np.asarray(Image.fromarray(labels).resize((side, side), Image.Resampling[how])).clip(0, 18)
        (told,) = [line for line in of(averaged) if "lie only between others" in line]
        assert "resize masks by nearest neighbour" in told


def test_labels_of_other_classes_are_named_by_number():
    (told,) = of(np.repeat(np.array([[0, 0, 0, 2, 4, 4, 4, 4]], np.uint8), 8, 0), 5)
    assert told.startswith("label 2 lie only between others")


def test_another_order_is_seen_and_the_right_one_named():
    told = [of(in_order(labels, "bisenet")) for labels in EXAM[:50]]
    assert all("cannot be an upright face as it is read; with --labels bisenet it can" in lines[-1] for lines in told)


def test_an_order_that_was_asked_for_and_is_wrong_is_named_by_the_usual_one():
    wrong = np.array([CLASSES.index(name) for name in ORDERS["bisenet"]], np.uint8)[example(4)]
    assert of(wrong, order="bisenet")[-1].endswith("; with --labels celebamask it can")


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda labels: labels[::-1], "hat lies below skin"),
        (lambda labels: labels[:, ::-1], "r_eye lies right of l_eye"),
        (lambda labels: np.rot90(labels, 2), "hat lies below skin"),
    ],
    ids=["upside down", "mirrored", "turned"],
)
def test_a_face_the_wrong_way_round_is_told(turn, words):
    (told,) = [line for line in of(turn(example(6))) if "it cannot be an upright face" in line]
    assert words in told and "is it turned or mirrored" in told


def test_without_skin_nothing_is_a_face():
    assert of(np.where(example(6) == 1, 9, example(6)))[-1].startswith("it has no skin")


def test_a_map_of_one_label_is_told_alone():
    assert of(np.full((32, 32), 13)) == ["every pixel has label 13"]


def test_places_are_of_known_classes():
    assert {name for _, first, second in PLACES for name in (first, second)} <= set(CLASSES)
    assert misplaced(example(6), CLASSES) == []
