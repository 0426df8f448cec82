import numpy as np
import pytest

from cdiff_rt import exam as exam_module
from cdiff_rt.editing.reading import described, reading_for
from cdiff_rt.exam import Exam
from tests.coded_exam import QUESTIONS, coded, labels_of, write_coded_exam


@pytest.fixture
def exams(tmp_path, monkeypatch):
    monkeypatch.setattr(exam_module, "EXAMS", tmp_path)
    return write_coded_exam(tmp_path / "faces-128")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([1, 2], 0),  # a man with a long beard
        ([1, 1], 2),  # a man with stubble
        ([0, 2], 1),  # a woman; the beard that the judge sees is left out rather than a man's sentence taken
        ([0, 0], 1),
    ],
)
def test_a_photo_is_described_by_its_labels_and_the_sentence_that_fits_best(answers, expected, exams):
    labels = labels_of(1)[0]
    found = described(Exam.open(exams), coded(labels, answers))
    np.testing.assert_array_equal(found["mask"], labels)
    assert found["text"] == QUESTIONS[expected].sentence


def test_a_model_with_an_exam_can_be_read(exams):
    reading = reading_for("faces-128")
    assert reading is not None and set(reading(coded(labels_of(1)[0], [1, 2]))) == {"mask", "text"}


def test_another_cannot():
    assert reading_for("my-model") is None
