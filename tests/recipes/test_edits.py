import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from cdiff_rt.exam import UNASKED
from recipes.faces import edits
from recipes.faces.captions import AGES
from recipes.faces.edits import FIRST_SEED, MARGIN, case_of, main, pair
from recipes.faces.judge import ATTRIBUTES, asked, seen

SEEDS = range(FIRST_SEED, FIRST_SEED + 40)
PAIRS = [pair(seed, size=64) for seed in SEEDS]
FIELDS = {
    "age": "age",
    "glasses": "glasses",
    "smile": "smile",
    "beard": "beard",
    "hair colour": "hair_color",
    "hair length": "hair",
    "bangs": "bangs",
}


def test_what_is_changed_is_changed_and_nothing_else():
    for found in PAIRS:
        before, after = (dataclasses.asdict(of.attributes) for of in (found.before, found.after))
        different = {field for field in before if before[field] != after[field]}
        assert different == {FIELDS[name] for name in found.changed} and 1 <= len(different) <= 2


def test_every_change_is_made_now_and_then():
    assert {name for found in PAIRS for name in found.changed} == set(FIELDS)


def test_the_sentence_names_what_it_can_name():
    for found in PAIRS:
        told = asked(found.after.attributes, found.after.caption)
        for name in set(found.changed) - {"bangs", "glasses", "smile"}:
            assert name in told
        for name, field in (("glasses", found.after.attributes.glasses), ("smile", found.after.attributes.smile > 0.5)):
            assert name not in found.changed or (name in told) == field


def test_an_age_changes_by_decades_and_not_by_one():
    steps = [abs(of.before.attributes.age - of.after.attributes.age) for of in PAIRS if "age" in of.changed]
    assert steps and min(steps) >= 2 and max(steps) < len(AGES)


def test_the_look_is_the_same_where_nothing_is_changed():
    """Most of the rest is equal to the bit, and all of it to the eye: nothing random is drawn anew."""
    for found in PAIRS:
        same = (found.before.image == found.after.image).all(-1)
        assert same.mean() > 0.3
        assert same[:3, :3].all() and same[found.stays].mean() > 0.7


def test_what_stays_keeps_away_from_what_changes():
    found = next(found for found in PAIRS if found.changed == ("hair colour",))
    moved = (np.abs(found.before.image.astype(int) - found.after.image) > 8).any(-1)
    near = np.zeros_like(moved)
    for y, x in np.argwhere(moved):
        near[max(0, y - MARGIN) : y + MARGIN + 1, max(0, x - MARGIN) : x + MARGIN + 1] = True
    np.testing.assert_array_equal(found.stays, ~near)


def test_a_seed_is_a_pair():
    again = pair(SEEDS[3], size=64)
    np.testing.assert_array_equal(again.after.image, PAIRS[3].after.image)
    assert again.after.caption == PAIRS[3].after.caption


def test_a_case_asks_what_the_sentence_names_and_what_differs():
    names = list(ATTRIBUTES)
    for found in PAIRS:
        case, right = case_of(found), np.array(seen(found.after.attributes))
        told = asked(found.after.attributes, found.after.caption)
        assert {names[i] for i in np.flatnonzero(case.named != UNASKED)} == set(told)
        for column in (case.named, case.changed, case.unchanged):
            np.testing.assert_array_equal(column[column != UNASKED], right[column != UNASKED])
        assert not ((case.changed != UNASKED) & (case.unchanged != UNASKED)).any()
        assert {names[i] for i in np.flatnonzero(case.changed != UNASKED)} <= set(found.changed)
        assert case.after["text"] == found.after.caption and case.before["mask"] is found.before.labels


@pytest.mark.slow
@pytest.mark.parametrize("names", [["mask"], ["text"], ["mask", "text"]])
def test_an_edit_leaves_alone_what_its_targets_do_not_speak_of(names, pipeline):
    """On four pairs: less than a fifth of the change that a new image makes."""
    edited, new = [], []
    for case in (case_of(pair(seed)) for seed in SEEDS[:4]):
        before, after = ({name: of[name] for name in names} for of in (case.before, case.after))
        for image, moved in (
            (pipeline.edit(case.photo, source=before, **after).images[0], edited),
            (pipeline.generate(**after).images[0], new),
        ):
            moved.append(np.abs(image.astype(int) - case.photo)[case.stays].mean())
    assert np.mean(edited) < np.mean(new) / 5


@pytest.mark.parametrize("with_json", [False, True])
def test_the_command_prints_a_table_and_writes_every_score(with_json, tmp_path, monkeypatch):
    rows = {"edit": {name: np.array([0.25, np.nan]) for name in ("mIoU", "PSNR")}}
    monkeypatch.setattr(edits, "compare", lambda pipeline, exam, cases: rows if len(cases) == 2 else None)
    monkeypatch.setattr(edits, "table", lambda found: "the table" if found is rows else "")
    monkeypatch.setattr(edits, "Pipeline", SimpleNamespace(from_pretrained=lambda model: None))
    more = ["--json", str(tmp_path / "a.json")] if with_json else []
    result = CliRunner().invoke(main, ["measure", "--count", "2", *more])
    assert result.exit_code == 0 and "pairs 2" in result.stdout and result.stdout.endswith("the table\n")
    if with_json:
        assert json.loads((tmp_path / "a.json").read_text()) == {"edit": {"mIoU": [0.25, None], "PSNR": [0.25, None]}}
