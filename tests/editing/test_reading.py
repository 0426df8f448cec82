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


def test_a_model_with_an_exam_can_be_read_and_who_reads_is_said(exams, caplog):
    caplog.set_level("INFO")
    reading = reading_for("faces-128")
    assert reading is not None and caplog.messages == []
    assert set(reading(coded(labels_of(1)[0], [1, 2]))) == {"mask", "text"}
    assert "by the judge of the exam of faces-128, which knows images like its model's only" in caplog.text


def test_the_judge_that_is_shipped_knows_painted_portraits():
    assert Exam.of("faces-128").paper.knows == "painted portraits"


def test_another_cannot():
    assert reading_for("my-model") is None
