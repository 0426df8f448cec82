import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from cdiff_rt import exam as module
from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.exam import EXAMS, JUDGE, MASKS, NAME, WEIGHTS, Exam, Question, write_paper
from cdiff_rt.manifest import sha256
from tests.coded_exam import ANSWERS, QUESTIONS, coded, labels_of, write_coded_exam


@pytest.fixture
def folder(tmp_path):
    return write_coded_exam(tmp_path / "exams" / "faces-128")


@pytest.fixture
def exam(folder):
    return Exam.open(folder)


def test_an_exam_holds_what_was_written(exam):
    np.testing.assert_array_equal(exam.labels, labels_of(3))
    np.testing.assert_array_equal(exam.answers, ANSWERS)
    assert exam.paper.questions == QUESTIONS
    for number, question in enumerate(QUESTIONS):
        given = exam.conditions(number)
        assert given["text"] == question.sentence and given.keys() == {"mask", "text"}
        np.testing.assert_array_equal(given["mask"], labels_of(3)[number])


@pytest.mark.parametrize("at_once", [1, 2, 25])
def test_the_judge_is_asked_about_every_image_in_order(exam, at_once, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    labels = labels_of(5)
    answers = np.array([[1, 2], [0, 0], [1, 1], [0, 2], [1, 0]])
    seen_labels, seen_answers = exam.ask(np.stack([coded(*pair) for pair in zip(labels, answers, strict=True)]))
    np.testing.assert_array_equal(seen_labels, labels)
    np.testing.assert_array_equal(seen_answers, answers)


def check_holds(exam, numbers):
    """Conditions and right answers belong to the same pairs."""
    np.testing.assert_array_equal(exam.labels, labels_of(3)[numbers])
    np.testing.assert_array_equal(exam.answers, ANSWERS[numbers])
    assert [exam.conditions(i)["text"] for i in range(len(exam.labels))] == [QUESTIONS[i].sentence for i in numbers]


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2])])
def test_the_first_pairs(exam, count, expected):
    check_holds(exam.first(count), expected)


def test_more_pairs_than_there_are_are_refused(exam):
    with pytest.raises(BadRequest, match="^pairs: 4 is outside 1-3"):
        exam.first(4)


def test_shuffled_pairs_everybody_with_the_next(exam):
    check_holds(exam.shuffled(), [1, 2, 0])
    check_holds(exam.first(2).shuffled(), [1, 0])
    check_holds(exam, [0, 1, 2])


def test_an_exam_is_found_by_the_model_s_name(folder, monkeypatch):
    monkeypatch.setattr(module, "EXAMS", folder.parent)
    assert Exam.of("faces-128").paper.model == "faces-128"
    for name in ("another", "", "..", "../exams/faces-128", str(folder)):
        with pytest.raises(BadRequest, match="no exam for the model .*there is one for faces-128"):
            Exam.of(name)


def test_without_any_exam_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EXAMS", tmp_path / "exams")
    with pytest.raises(BadRequest, match="no exam for the model 'faces-128'; there is one for none"):
        Exam.of("faces-128")


@pytest.mark.parametrize("name", [MASKS, JUDGE, WEIGHTS])
def test_an_altered_file_is_refused(folder, name):
    with (folder / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(BadArtefact, match=f"^exam faces-128: {name} was altered.*recipes.faces.judge"):
        Exam.open(folder)


@pytest.mark.parametrize("name", [MASKS, JUDGE, WEIGHTS, NAME])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(BadArtefact, match=f"{name}.*recipes.faces.judge"):
        Exam.open(folder)


def without_hash(data):
    del data["files"][JUDGE]


def surplus_field(data):
    data["note"] = ""


def size_of_other_type(data):
    data["size"] = "128"


def size_of_no_mask(data):
    data["size"] = 100


def no_size(data):
    data["size"] = 0


def one_sentence_less(data):
    data["questions"].pop()


def no_sentences(data):
    data["questions"] = []


def unknown_value(data):
    data["questions"][0]["asks"]["beard"] = "a purple beard"


def unknown_attribute(data):
    data["questions"][0]["asks"]["hat"] = "yes"


def nothing_asked(data):
    data["questions"][0]["asks"] = {}


def other_judge(data):
    data["attributes"]["hat"] = ["no", "yes"]


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (without_hash, f"{JUDGE} was altered"),
        (surplus_field, "note"),
        (size_of_other_type, "exam.size: '128'"),
        (size_of_no_mask, "cannot reshape"),
        (no_size, "cannot reshape"),
        (one_sentence_less, "3 masks, 2 sentences"),
        (no_sentences, "3 masks, 0 sentences"),
        (unknown_value, "the judge does not tell beard 'a purple beard'"),
        (unknown_attribute, "the judge does not tell hat 'yes'"),
        (nothing_asked, "'This man has a long beard.' asks nothing"),
        (other_judge, "its inputs and outputs are"),
    ],
)
def test_a_sheet_that_does_not_fit_is_refused(folder, alter, words):
    data = json.loads((folder / NAME).read_text())
    alter(data)
    (folder / NAME).write_text(json.dumps(data))
    with pytest.raises(BadArtefact) as raised:
        Exam.open(folder)
    assert words in str(raised.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_sheet_that_is_none_is_refused(folder, text):
    (folder / NAME).write_bytes(text)
    with pytest.raises(BadArtefact, match="exam.json cannot be used"):
        Exam.open(folder)


def test_masks_that_are_no_image_are_refused(folder, exam):
    (folder / MASKS).write_text("no image")
    write_paper(replace(exam.paper, files=exam.paper.files | {MASKS: sha256(folder / MASKS)}), folder)
    with pytest.raises(BadArtefact, match="cannot identify image file"):
        Exam.open(folder)


def test_a_sheet_is_read_as_it_was_written(exam, tmp_path):
    paper = replace(exam.paper, questions=[Question("日本", {"gender": "man"})])
    write_paper(paper, tmp_path)
    assert json.loads((tmp_path / NAME).read_text(encoding="utf-8")) == asdict(paper)


@pytest.mark.skipif(not (EXAMS / "faces-128").is_dir(), reason="faces-128 has no exam yet")
def test_the_exam_that_comes_with_the_model_can_be_passed():
    exam = Exam.of("faces-128")
    assert len(exam.labels) == 200
    assert exam.labels.max() < exam.paper.classes
    assert all(low <= mean <= high for mean, low, high in exam.paper.truth.values())
    assert all(exam.paper.truth[column][0] > least for column, least in (("mIoU", 0.7), ("attributes", 0.85)))
