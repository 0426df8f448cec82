"""Masks that a user drew, not the painter: the embedded model must still make a face of them."""

import numpy as np
import pytest

from cdiff_rt.bench.exam import Exam
from cdiff_rt.bench.faces import face_finder
from cdiff_rt.palette import CLASSES
from tests.freehand_masks import FREEHAND

SENTENCES = (
    None,
    "This man has a long beard. He is in his fifties.",
    "The woman is in her twenties. She has blond hair.",
)
SKIN, HAIR = CLASSES.index("skin"), CLASSES.index("hair")


@pytest.fixture(scope="module")
def exam():
    return Exam.of("faces-128")


@pytest.fixture(scope="module", params=FREEHAND)
def drawn(request, pipeline):
    """A mask and the images that it gives, alone and with each sentence."""
    labels = FREEHAND[request.param]()
    images = [pipeline.generate(mask=labels, text=text, seed=1).images[0] for text in SENTENCES]
    return labels[::2, ::2], np.stack(images)


def test_there_is_a_face_in_every_image(drawn):
    find = face_finder()
    assert [find(image) for image in drawn[1]] == [True] * len(SENTENCES)


def test_head_and_hair_are_where_they_were_drawn(drawn, exam):
    labels, images = drawn
    found, _ = exam.ask(images)
    head = np.isin(labels, (SKIN, HAIR))
    for image in found:
        seen = (image != 0) & (np.arange(128)[:, None] < 90)  # above the shoulders
        wanted = head & (np.arange(128)[:, None] < 90)
        assert (seen & wanted).sum() / (seen | wanted).sum() > 0.8


def test_and_the_sentence_is_followed(drawn, exam):
    names = list(exam.sheet.attributes)
    _, answers = exam.ask(drawn[1])
    _, man, woman = (dict(zip(names, row, strict=True)) for row in answers)
    assert exam.sheet.attributes["gender"][man["gender"]] == "man"
    assert man["beard"] >= 3
    assert exam.sheet.attributes["gender"][woman["gender"]] == "woman"
    assert woman["beard"] == 0
