from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from cdiff_rt import exam as exam_module
from cdiff_rt.bench import quality
from cdiff_rt.bench.quality import CONFIDENCE, LABELS_KEPT, Scores, exam_for, examine, interval, mean_iou, score, ways
from cdiff_rt.engines.backends import Lack
from cdiff_rt.errors import BadEnvironment, BadRequest
from cdiff_rt.exam import Exam
from cdiff_rt.manifest import Modality
from cdiff_rt.pipeline import Generated, Pipeline
from cdiff_rt.sampling.tiers import Sampling
from cdiff_rt.settings import Influence
from tests.coded_exam import ANSWERS, QUESTIONS, coded, labels_of, write_coded_exam

SKETCH = Modality("sketch", "labels", decays=True, anchor=False, size=32, classes=2)
NAMES = ("mask only", "text only", "plain mean", "collaborative, softmax as trained", "collaborative")
CONTROL = "collaborative, shuffled pairs"


@pytest.fixture
def exam(tmp_path, monkeypatch):
    """The coded exam in place of the one that comes with faces-128."""
    folder = write_coded_exam(tmp_path / "exams" / "faces-128")
    monkeypatch.setattr(exam_module, "EXAMS", folder.parent)
    return Exam.open(folder)


@pytest.fixture
def perfect(monkeypatch):
    """A model that draws exactly what it was asked for, in code, and the calls of it."""
    calls = []

    def generate(self, settings, *, conditions):
        calls.append((settings, conditions))
        labels = conditions.get("mask", np.zeros((128, 128), np.uint8))
        known = {question.sentence: answers for question, answers in zip(QUESTIONS, ANSWERS, strict=True)}
        answers = np.maximum(known.get(conditions.get("text"), [0, 0]), 0)
        return Generated(coded(labels, answers)[None], np.zeros(0), {})

    monkeypatch.setattr(Pipeline, "generate", generate)
    return calls


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ([[0, 0], [1, 1]], [[0, 0], [1, 1]], 1),
        ([[0, 0], [0, 1]], [[0, 0], [1, 1]], (2 / 3 + 1 / 2) / 2),
        ([[1, 1], [0, 0]], [[0, 0], [1, 1]], 0),
        ([[5, 5], [5, 5]], [[5, 5], [5, 7]], (3 / 4 + 0) / 2),
        ([[0, 9], [1, 1]], [[0, 0], [1, 1]], (1 / 2 + 1) / 2),  # 9 was not wanted and has no row of its own
    ],
)
def test_mean_iou_of_small_maps(found, wanted, expected):
    """By hand, and for each image of a batch alone."""
    same = np.zeros((2, 2), int)
    result = mean_iou(np.array([found, same]), np.array([wanted, same]))
    assert result == pytest.approx([expected, 1])


def test_an_image_passes_with_its_mask_kept_and_every_attribute_right():
    nan = np.nan
    iou = np.array([LABELS_KEPT - 0.01, LABELS_KEPT, 0.9, 0.9, 0.1])
    right = np.array([[1, nan, 1], [nan, nan, 1], [1, 1, 1], [1, 0, nan], [0, nan, nan]])
    columns = Scores(iou, right, np.array([1.0, 0, 0, 1, 1])).columns
    assert list(columns) == ["mIoU", "attributes", "both", "face"]
    assert columns["mIoU"] is iou
    assert columns["attributes"] == pytest.approx([1, 1, 1, 0.5, 0])
    assert columns["both"].tolist() == [0, 1, 1, 0, 0]
    assert columns["face"].tolist() == [1, 0, 0, 1, 1]


def test_scores_are_shown_as_means():
    scores = Scores(np.array([0.4, 1.0]), np.array([[1.0], [0.0]]), np.array([1.0, 1.0]))
    assert str(scores) == "mIoU 0.700, attributes 0.500, both 0.000, face 1.000"


def test_what_was_not_asked_is_neither_right_nor_wrong(exam):
    images = np.stack([coded(labels, answers) for labels, answers in zip(labels_of(3), [[1, 0]] * 3, strict=True)])
    scores = score(exam, images, None)
    np.testing.assert_array_equal(scores.right, [[1, 0], [0, np.nan], [1, 0]])
    np.testing.assert_array_equal(scores.iou, np.ones(3))
    assert np.isnan(scores.face).all()


def test_every_image_is_searched_for_a_face(exam):
    images = np.stack([coded(labels, [0, 0]) for labels in labels_of(3)])
    scores = score(exam, images, lambda image: np.array_equal(image, images[1]))
    assert scores.face.tolist() == [0, 1, 0]


def test_an_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(3, 2, 400)
    mean, low, high = interval(values)
    assert CONFIDENCE == 95
    assert mean == values.mean() and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(400), rel=0.1)
    assert interval(values) == (mean, low, high)


def test_an_interval_narrows_with_the_number_of_values():
    values = np.random.default_rng(1).random(800)
    few, many = (interval(values[:count]) for count in (8, 800))
    assert many[2] - many[1] < (few[2] - few[1]) / 5


def test_equal_values_leave_no_doubt():
    assert interval(np.full(7, 0.25)) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_ways_are_every_modality_alone_and_all_together(count, bundle):
    modalities = (*bundle.manifest.modalities, SKETCH)[:count]
    adjusted = Influence("linear", 3.0, 0.5)
    names = ("mask", "text", "sketch")[:count]
    *alone, plain, trained, whole = ways(replace(bundle.manifest, modalities=modalities, influence=adjusted))
    assert [way.modalities for way in alone] == [(name,) for name in names]
    assert [way.name for way in alone] == [f"{name} only" for name in names]
    assert [way.name for way in (plain, trained, whole)] == list(NAMES[2:])
    assert {way.modalities for way in (plain, trained, whole)} == {names}
    assert plain.influence == Influence("none", 1.0, 0.0)
    assert trained.influence == Influence("none", 1.0, 1.0)
    assert whole.influence == adjusted


def test_a_perfect_model_passes_and_its_control_fails(exam, perfect):
    examination = examine("faces-128", "onnxruntime", how=Sampling(steps=4), pairs=3, images=None)
    asked, rows = examination.exam, examination.rows
    assert list(rows) == [*NAMES, CONTROL]
    assert len(asked.labels) == 3
    means = {name: [rows[name].columns[column].mean() for column in ("mIoU", "attributes", "both")] for name in rows}
    assert [means[name] for name in NAMES[2:]] == [[1, 1, 1]] * 3
    assert means["mask only"] == pytest.approx([1, (0 + 1 + 0) / 3, 1 / 3])
    assert means["text only"][0] < 0.2 and means["text only"][1:] == [1, 0]
    assert means[CONTROL][0] < 0.2
    assert means[CONTROL][1:] == pytest.approx([(0 + 0 + 1 / 2) / 3, 0])


def test_every_way_gets_its_conditions_its_influence_and_its_number_of_the_seed(exam, perfect, bundle):
    examine("faces-128", "torch", how=Sampling(steps=8), pairs=2, images=None)
    for i, (settings, given) in enumerate(perfect):
        way, number = ways(bundle.manifest)[i // 2], i % 2
        conditions = {name: exam.conditions(number)[name] for name in way.modalities}
        assert given.keys() == conditions.keys()
        assert all(np.array_equal(given[name], value) for name, value in conditions.items())
        assert (settings.steps, settings.seed, settings.first) == (8, 0, number) and settings.over(
            Influence()
        ) == way.influence
    assert len(perfect) == 2 * len(NAMES)


def test_images_are_those_of_python_and_are_written(exam, pipeline, tmp_path):
    out = tmp_path / "judged"
    rows = examine("faces-128", "onnxruntime", how=Sampling(steps=2), pairs=2, images=out).rows
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == sorted(
        f"{name}/{number:03d}.png" for name in NAMES for number in range(2)
    )
    images = {way: np.stack([np.asarray(Image.open(out / way / f"00{i}.png")) for i in range(2)]) for way in NAMES}
    given = exam.conditions(1)
    for way, conditions, influence in (
        ("collaborative", given, pipeline.manifest.influence),
        ("plain mean", given, Influence("none", 1.0, 0.0)),
        ("mask only", {"mask": given["mask"]}, pipeline.manifest.influence),
    ):
        expected = pipeline.generate(steps=2, seed=0, first=1, **asdict(influence), **conditions).images[0]
        np.testing.assert_array_equal(images[way][1], expected)
    assert len({pixels.tobytes() for way in NAMES for pixels in images[way]}) == 2 * len(NAMES)
    judged = score(exam.first(2).shuffled(), images["collaborative"], None)
    np.testing.assert_array_equal(rows[CONTROL].iou, judged.iou)
    np.testing.assert_array_equal(rows[CONTROL].right, judged.right)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "another"}, "no exam for the model 'another'"),
        ({"image_size": 64}, "makes 64-pixel images from mask, text; its exam is for 128-pixel images"),
        ({"modalities": (SKETCH,)}, "from sketch; its exam is for 128-pixel images from mask and text"),
    ],
)
def test_an_exam_for_another_model_is_not_taken(change, words, exam, bundle):
    with pytest.raises(BadRequest) as raised:
        exam_for(replace(bundle.manifest, **change))
    assert words in str(raised.value)


def test_a_model_of_fewer_conditions_may_sit_the_exam(exam, bundle):
    manifest = replace(bundle.manifest, modalities=bundle.manifest.modalities[:1])
    assert len(exam_for(manifest).labels) == 3


@pytest.fixture
def no_work(monkeypatch):
    def work(*arguments):
        raise AssertionError("bad requests are found before the work begins")

    monkeypatch.setattr(quality, "generate", work)


def test_a_folder_of_images_that_exists_is_left_alone(exam, no_work, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(BadRequest, match="images: .*mine exists"):
        examine("no-such-model", "onnxruntime", how=Sampling(steps=1), pairs=2, images=tmp_path / "mine")


def test_a_backend_that_is_unknown_is_refused(exam, no_work):
    with pytest.raises(BadRequest, match="'cuda'; choose one of onnxruntime, openvino, torch"):
        examine("faces-128", "cuda", how=Sampling(steps=1), pairs=2, images=None)


def test_a_backend_that_is_not_installed_is_refused(exam, no_work, monkeypatch):
    monkeypatch.setattr("cdiff_rt.engines.backends.lacking", lambda backend: [Lack("not installed")])
    with pytest.raises(BadEnvironment, match="backend torch: not installed"):
        examine("faces-128", "torch", how=Sampling(steps=1), pairs=2, images=None)
