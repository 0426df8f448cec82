"""Masks that a user drew, not the painter: the embedded model must still make a face of them."""

import numpy as np
import pytest

from cdiff_rt.bench.faces import face_finder
from cdiff_rt.exam import Exam
from cdiff_rt.inputs.palette import CLASSES
from tests.freehand_masks import FREEHAND

SENTENCES = (
    None,
    "This man has a long beard. He is in his fifties.",
    "The woman is in her twenties. She has blond hair.",
)
SKIN, HAIR = CLASSES.index("skin"), CLASSES.index("hair")

pytestmark = pytest.mark.slow  # hundreds of images


@pytest.fixture(scope="module")
def exam():
    return Exam.of("faces-128")


@pytest.fixture(scope="module")
def all_drawn(pipeline):
    """name of a mask -> its labels, and the images that it gives, alone and with each sentence."""

    def images(labels):
        return np.stack([pipeline.generate(mask=labels, text=text, seed=1).images[0] for text in SENTENCES])

    return {name: (draw()[::2, ::2], images(draw())) for name, draw in FREEHAND.items()}


@pytest.fixture(params=FREEHAND)
def drawn(request, all_drawn):
    return all_drawn[request.param]


def test_each_mask_alone_gives_a_face(drawn):
    assert face_finder()(drawn[1][0])


def test_and_nearly_always_with_a_sentence(pipeline):
    find, asked = face_finder(), [(draw(), text) for draw in FREEHAND.values() for text in SENTENCES]
    made = [image for mask, text in asked for image in pipeline.generate(mask=mask, text=text, seed=1, batch=8).images]
    assert np.mean([find(image) for image in made]) >= 0.95  # the cascade misses some painted portraits, too


def test_head_and_hair_are_where_they_were_drawn(drawn, exam):
    """A sentence may take some of the hair away: a man's with a long beard does."""
    labels, images = drawn
    above_shoulders = np.arange(128)[:, None] < 90
    wanted = np.isin(labels, (SKIN, HAIR)) & above_shoulders
    alone, *others = [(found != 0) & above_shoulders for found in exam.ask(images)[0]]
    assert overlap(alone, wanted) > 0.7
    assert min(overlap(seen, wanted) for seen in others) > 0.55


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_and_the_sentence_is_followed(drawn, exam):
    names = list(exam.paper.attributes)
    _, answers = exam.ask(drawn[1])
    _, man, woman = (dict(zip(names, row, strict=True)) for row in answers)
    assert exam.paper.attributes["gender"][man["gender"]] == "man"
    assert man["beard"] >= 3
    assert exam.paper.attributes["gender"][woman["gender"]] == "woman"
    assert woman["beard"] == 0
