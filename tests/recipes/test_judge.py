import copy
import dataclasses
import gc
import re
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cdiff_rt.bench.quality import COLUMNS
from cdiff_rt.exam import EXAMS, MASKS, UNASKED, WEIGHTS, Exam
from cdiff_rt.nets.collaborative import CollaborativeModel
from recipes.faces import judge as module
from recipes.faces.captions import AGES, BEARDS, HAIR_COLORS, Attributes, caption, sample_attributes
from recipes.faces.config import FACES_128, IMAGE_SIZE, MASK_CLASSES
from recipes.faces.data import Portraits
from recipes.faces.examples import Stage
from recipes.faces.judge import (
    ATTRIBUTES,
    UNSEEN,
    Judge,
    accuracy,
    asked,
    class_weights,
    degrade,
    judge_loss,
    seen,
    write_exam,
)
from recipes.faces.painter import portrait
from recipes.faces.training import Plan

MAN = Attributes(
    male=True,
    age=4,
    beard=4,
    hair_color="gray",
    hair="short",
    bangs=False,
    glasses=True,
    hat=False,
    earrings=False,
    necklace=False,
    smile=0.8,
)
ALL = {
    "gender": "man",
    "age": "fifties",
    "beard": "a long beard",
    "hair colour": "gray",
    "hair length": "short",
    "glasses": "yes",
    "smile": "yes",
}
PAIRS, HELD_OUT = 3, 4


def right(attributes):
    return dict(zip(ATTRIBUTES, seen(attributes), strict=True))


def test_what_is_seen_are_indices_of_the_answers():
    assert right(MAN) == {name: ATTRIBUTES[name].index(value) for name, value in ALL.items()}


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        ({"male": False}, "gender", 0),
        *(({"age": i}, "age", i) for i in range(len(AGES))),
        *(({"beard": i}, "beard", i) for i in range(len(BEARDS))),
        *(({"hair_color": color}, "hair colour", i) for i, color in enumerate(HAIR_COLORS)),
        *(({"hair": hair}, "hair length", i) for i, hair in enumerate(("bald", "short", "medium", "long"))),
        ({"hair": "bald"}, "hair colour", UNSEEN),
        ({"glasses": False}, "glasses", 0),
        ({"smile": 0.5}, "smile", 0),
        ({"smile": 0.51}, "smile", 1),
    ],
)
def test_every_value_is_seen(change, name, expected):
    assert right(dataclasses.replace(MAN, **change))[name] == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("This man is in his fifties.", ()),
        ("This man has a long beard. He is in his fifties.", ("beard",)),
        ("The man has gray hair and a long beard. He is in his fifties.", ("beard", "hair colour")),
        ("The man has short gray hair. He is in his fifties.", ("hair colour", "hair length")),
        ("The man is in his fifties. He wears glasses. He is smiling.", ("glasses", "smile")),
    ],
)
def test_a_caption_asks_what_it_names(text, names):
    assert asked(MAN, text) == {name: ALL[name] for name in ("gender", "age", *names)}


PATTERNS = {
    "gender": "This|The",
    "age": "teens|ties",
    "beard": "beard|stubble",
    "hair colour": " hair",
    "hair length": "short [a-z]+ hair|long [a-z]+ hair|hair of medium length",
    "glasses": "glasses",
    "smile": "smiling",
}


def test_every_caption_of_the_painter_asks_all_that_it_names_and_nothing_else():
    """By patterns of the sentences alone, while `asked` looks for the portrait's own attributes."""
    rng = np.random.default_rng(3)
    counts = dict.fromkeys(ATTRIBUTES, 0)
    for _ in range(2000):
        attributes = sample_attributes(rng)
        text = caption(attributes, rng)
        found = asked(attributes, text)
        assert list(found) == [name for name, pattern in PATTERNS.items() if re.search(pattern, text)], text
        assert all(ATTRIBUTES[name].index(value) == right(attributes)[name] for name, value in found.items())
        for name in found:
            counts[name] += 1
    assert min(counts.values()) > 50


@pytest.mark.parametrize("beard", range(len(BEARDS)))
@pytest.mark.parametrize("hair", ["short", "medium", "long"])
def test_words_about_the_beard_are_not_taken_for_words_about_hair(beard, hair):
    attributes = dataclasses.replace(MAN, beard=beard, hair=hair)
    text = f"The man has gray hair and {BEARDS[beard]}. He is in his fifties."
    assert "hair length" not in asked(attributes, text)


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    return Judge().requires_grad_(False).eval()


def test_the_judge_tells_a_label_for_every_pixel_and_an_answer_for_every_attribute(judge):
    labels, *attributes = judge(torch.randn(2, 3, 64, 64))
    assert labels.shape == (2, MASK_CLASSES, 64, 64)
    assert [logits.shape for logits in attributes] == [(2, len(values)) for values in ATTRIBUTES.values()]


def test_the_judge_sees_each_image_alone(judge):
    images = torch.randn(3, 3, 64, 64)
    for whole, alone in zip(judge(images), judge(images[1:2]), strict=True):
        torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def painted():
    """One to train on for each that is held out."""
    made = [portrait(seed) for seed in range(2 * HELD_OUT)]
    return Portraits(
        np.stack([p.image for p in made]),
        np.stack([p.labels for p in made]),
        [p.caption for p in made],
        [asdict(p.attributes) for p in made],
        0,
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CollaborativeModel(FACES_128).requires_grad_(False)


@pytest.fixture(scope="module", autouse=True)
def few():
    """Fewer portraits than the real data has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipes.faces.data.HELD_OUT", HELD_OUT)
        patch.setattr(module, "HELD_OUT", HELD_OUT)
        patch.setattr(module, "PAIRS", PAIRS)
        yield


def test_portraits_are_degraded_by_the_generator_alone(painted, model):
    images = torch.from_numpy(painted.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    before = images.clone()
    first, again, other = (degrade(images, model.vae, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == images.shape and first.dtype == torch.float32
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    changes = (first - images).flatten(1).abs().mean(1)
    assert (changes > 0.005).all() and first.isfinite().all()
    through_vae = len(images) // 4
    assert changes[:through_vae].min() > changes[through_vae:].max()  # an untrained autoencoder leaves nothing


class Fixed(nn.Module):
    """Says the same of every image, as certainly as it is told to."""

    def __init__(self, labels, answers, certainty):
        super().__init__()
        one_hot = nn.functional.one_hot(torch.from_numpy(labels).long(), MASK_CLASSES).permute(0, 3, 1, 2)
        self.outputs = [one_hot * certainty]
        for column, values in zip(torch.tensor(answers).T, ATTRIBUTES.values(), strict=True):
            self.outputs.append(nn.functional.one_hot(column.clamp(min=0), len(values)) * certainty)

    def forward(self, images):
        return [output.float() for output in self.outputs]


def loss_of(painted, model, labels, answers, certainty=50.0):
    stage = Stage(Plan("judge", None, 1, False, 0, 4), painted, model)
    loss = judge_loss(stage, Fixed(labels, answers, certainty))
    return loss(torch.arange(4), torch.Generator().manual_seed(0)).item()


def test_the_loss_is_of_the_right_labels_and_answers(painted, model):
    labels, answers = painted.labels[:4], [seen(Attributes(**row)) for row in painted.attributes[:4]]
    assert loss_of(painted, model, labels, answers) < 1e-6
    for i, values in enumerate(ATTRIBUTES.values()):
        wrong = [[(v + 1) % len(values) if i == j else v for j, v in enumerate(row)] for row in answers]
        assert loss_of(painted, model, labels, wrong) == pytest.approx(0.1 * 50)
    assert loss_of(painted, model, (labels + 1) % MASK_CLASSES, answers) == pytest.approx(50)
    unsure = np.log(MASK_CLASSES) + 0.1 * sum(np.log(len(values)) for values in ATTRIBUTES.values())
    assert loss_of(painted, model, labels, answers, 0.0) == pytest.approx(unsure, rel=1e-5)


def test_the_colour_of_hair_that_is_not_there_is_left_out_of_the_loss(painted, model):
    first, *others = painted.attributes
    bald = dataclasses.replace(painted, attributes=[first, *(row | {"hair": "bald"} for row in others)])
    answers = [seen(Attributes(**row)) for row in bald.attributes[:4]]
    assert [row.count(UNSEEN) for row in answers] == [0, 1, 1, 1]
    for color in range(len(HAIR_COLORS)):
        said = [[color if v == UNSEEN else v for v in row] for row in answers]
        assert loss_of(bald, model, painted.labels[:4], said) < 1e-6


@pytest.fixture(scope="module")
def written(painted, judge, few, tmp_path_factory):
    """The exam of an untrained judge and its folder, written once."""
    folder = tmp_path_factory.mktemp("exam")
    gc.disable()  # as for tests.tiny
    try:
        return folder, write_exam(painted, judge, folder)
    finally:
        gc.enable()


def test_an_exam_holds_the_first_held_out_portraits(painted, written):
    exam = Exam.open(written[0])
    chosen = range(HELD_OUT, HELD_OUT + PAIRS)
    np.testing.assert_array_equal(exam.labels, painted.labels[chosen])
    assert [question.sentence for question in exam.paper.questions] == [painted.captions[i] for i in chosen]
    for i, answers in zip(chosen, exam.answers, strict=True):
        attributes = Attributes(**painted.attributes[i])
        named = asked(attributes, painted.captions[i])
        assert answers.tolist() == [v if n in named else UNASKED for n, v in right(attributes).items()]


def test_an_exam_is_what_was_measured(written):
    folder, exam = written
    assert Exam.open(folder).paper == exam.paper
    assert exam.paper.truth.keys() == set(COLUMNS)
    assert all(low <= mean <= high for mean, low, high in exam.paper.truth.values())
    assert exam.paper.truth["face"] == [1, 1, 1]
    assert {(folder / name).stat().st_mode & 0o444 for name in (MASKS, WEIGHTS)} == {0o444}


def test_the_exams_judge_sees_what_the_trained_one_sees(painted, judge, written):
    images = painted.images[:HELD_OUT]
    labels, answers = written[1].ask(images)
    rounded = copy.deepcopy(judge).half().float()  # as its weights are stored
    seen_labels, *attributes = rounded(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert (labels == seen_labels.argmax(1).numpy()).mean() > 0.999
    np.testing.assert_array_equal(answers, torch.stack([logits.argmax(1) for logits in attributes], 1).numpy())
    assert len(np.unique(labels)) > 1


def test_accuracy_is_of_the_held_out_portraits_and_leaves_out_unseen_hair(painted):
    rows = [asdict(MAN) | change for change in ({"hair": "bald"}, {}, {}, {"glasses": False})]
    portraits = dataclasses.replace(painted, attributes=[asdict(MAN)] * HELD_OUT + rows)
    exam = SimpleNamespace(ask=lambda images: (None, np.array([seen(MAN)] * len(images))))
    expected = dict.fromkeys(ATTRIBUTES, 1.0) | {"hair length": 0.75, "glasses": 0.75}
    assert accuracy(exam, portraits) == expected


@pytest.mark.skipif(not (EXAMS / "faces-128").is_dir(), reason="faces-128 has no exam yet")
def test_the_exam_that_comes_with_the_model_was_written_by_this_judge():
    sheet = Exam.of("faces-128").paper
    assert (sheet.size, sheet.classes) == (IMAGE_SIZE, MASK_CLASSES)
    assert {name: tuple(values) for name, values in sheet.attributes.items()} == ATTRIBUTES


def test_rare_classes_weigh_more_and_pixels_weigh_one_on_average():
    labels = np.zeros((1, 10, 10), np.uint8)
    labels[0, 0, :4] = 1
    weights = class_weights(labels)
    assert weights[1] / weights[0] == pytest.approx(np.sqrt(0.96 / 0.04), rel=0.01)
    assert 0.96 * weights[0] + 0.04 * weights[1] == pytest.approx(1)
    assert torch.isfinite(weights).all()
