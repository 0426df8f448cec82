import dataclasses

import numpy as np
import pytest

from cdiff_rt import exam as exam_module
from cdiff_rt.bench import edits
from cdiff_rt.bench.edits import COLUMNS, Case, compare, psnr, score, share, table, ways
from cdiff_rt.exam import UNASKED, Exam
from tests.coded_exam import coded, labels_of, write_coded_exam

LABELS = labels_of(2)
EVERYWHERE = np.ones((128, 128), bool)


@pytest.fixture
def exam(tmp_path, monkeypatch):
    monkeypatch.setattr(exam_module, "EXAMS", tmp_path)
    return Exam.open(write_coded_exam(tmp_path / "faces-128"))


def case(number):
    """Somebody has a beard; a long one is wanted."""
    conditions = [{"mask": LABELS[number], "text": f"This man has {beard}."} for beard in ("stubble", "a long beard")]
    return Case(
        photo=coded(LABELS[number], [1, 1]),
        before=conditions[0],
        after=conditions[1],
        labels=LABELS[number],
        named=np.array([1, 2]),
        changed=np.array([UNASKED, 2]),
        unchanged=np.array([1, UNASKED]),
        stays=EVERYWHERE,
        becomes=coded(LABELS[number], [1, 2]),
    )


CASES = [case(0), case(1)]


def test_an_image_is_scored_by_what_was_wanted_and_what_was_not(exam):
    perfect, wrong = coded(LABELS[0], [1, 2]), coded(LABELS[1], [0, 1])
    columns = score(exam, CASES, [perfect, wrong])
    assert columns["mIoU"].tolist() == [1, 1]
    for name in ("attributes", "both", "changed", "unchanged"):
        assert columns[name].tolist() == [1, 0]
    assert (columns["PSNR"] < 60).all() and list(columns) == list(COLUMNS)


def test_the_photo_itself_is_kept_but_not_edited(exam):
    columns = score(exam, CASES, [case.photo for case in CASES])
    assert columns["changed"].tolist() == [0, 0] and columns["unchanged"].tolist() == [1, 1]
    assert columns["attributes"].tolist() == [0.5, 0.5] and columns["SSIM"] == pytest.approx([1, 1])


def test_where_nothing_is_asked_there_is_no_share():
    assert np.isnan(share(np.array([0, 1]), np.array([UNASKED, UNASKED])))
    assert share(np.array([0, 1]), np.array([0, 0])) == 0.5


def test_psnr_is_of_the_pixels_that_stay():
    first, second = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    second[4:] = 255
    second[:4] = 16
    where = np.zeros((8, 8), bool)
    where[:4] = True
    assert psnr(first, second, where) == pytest.approx(20 * np.log10(255 / 16))
    assert psnr(first, first, where) == 60
    assert np.isnan(psnr(first, second, np.zeros((8, 8), bool)))


class Recording:
    """A pipeline that writes down what it is asked, and answers with the case's photo."""

    def __init__(self, manifest):
        self.manifest, self.asked = manifest, []

    def edit(self, photo, *, source, **settings):
        self.asked.append(("edit", sorted(source), settings))
        return self._image()

    def generate(self, **settings):
        self.asked.append(("generate", [], settings))
        return self._image()

    def _image(self):
        return type("Result", (), {"images": np.stack([CASES[0].photo])})()


def test_every_way_is_asked_for_what_its_name_says(exam, bundle):
    pipeline = Recording(bundle.manifest)
    for way in ways(pipeline, exam).values():
        way(CASES[0], 7)
    asked = dict(zip(ways(pipeline, exam), pipeline.asked, strict=True))
    assert asked["edit"] == ("edit", ["mask", "text"], CASES[0].after | {"seed": 7})
    assert asked["edit, alpha 1.5"][2]["alphas"] == (1.5,)
    assert asked["edit by text only"] == ("edit", ["text"], {"text": CASES[0].after["text"], "seed": 7})
    assert asked["SDEdit, strength 0.6"][2].items() >= {"method": "sdedit", "strength": 0.6}.items()
    assert asked["from scratch"][0] == "generate" and asked["from scratch"][2]["first"] == 7


def test_the_table_has_a_row_for_each_way_and_the_photo(exam, bundle, monkeypatch):
    monkeypatch.setattr(edits, "STRENGTHS", (0.5,))
    rows = compare(Recording(bundle.manifest), exam, CASES)
    lines = table(rows).splitlines()
    assert len(lines) == 2 + len(rows) and "the photo, unedited" in lines[2]
    assert "| 1.000 [1.000, 1.000] |" in lines[2] and "SDEdit, strength 0.5" in lines[-2]


def test_what_is_left_over_at_a_border_is_seen():
    """The left half is kept; hair ends two pixels before its border, and an outline stays of the photo's."""
    photo, becomes = np.full((16, 16, 3), 200, np.uint8), np.full((16, 16, 3), 200, np.uint8)
    photo[:, 6:] = 50
    becomes[:, 8:] = 100
    kept = np.zeros((16, 16), bool)
    kept[:, :8] = True
    of = dataclasses.replace(CASES[0], photo=photo, becomes=becomes)
    pasted = np.where(kept[..., None], photo, becomes)
    assert edits.at_border(of, pasted, kept) == [1, 75, 0]  # two of four columns are 150 off
    assert edits.at_border(of, becomes, kept) == [0, 0, 0]
    assert edits.at_border(of, photo, kept) == [1, 75, 50]
    same = dataclasses.replace(of, becomes=photo)
    assert np.isnan(edits.at_border(same, photo, kept)[0])


def test_borders_are_compared_with_both_sources_and_pasted_whole(exam, bundle):
    rows = edits.compare_borders(pipeline := Recording(bundle.manifest), exam, CASES, "all")
    assert list(rows) == [
        f"source {how}{paste}" for how in ("given", "read from the photo") for paste in ("", ", pasted to the border")
    ]
    assert all(list(row) == list(edits.BORDER_COLUMNS) and len(row["left over"]) == 2 for row in rows.values())
    assert {asked[2]["keep"] for asked in pipeline.asked} == {"all"} and len(pipeline.asked) == 4


def test_a_column_that_nothing_is_asked_of_is_empty():
    columns = {name: np.array([np.nan, np.nan]) for name in COLUMNS}
    assert table({"way": columns}).splitlines()[-1] == "| way | - | - | - | - | - | - | - |"
