import numpy as np
import pytest
from click.testing import CliRunner

from cdiff_rt.bench.conflicts import Found
from cdiff_rt.exam import UNASKED
from recipes.faces import conflicts
from recipes.faces.conflicts import KINDS, case_of, main, pair
from recipes.faces.judge import ATTRIBUTES, asked, seen

PAIRS = [pair(number, size=64) for number in range(2 * len(KINDS))]
NAMES = list(ATTRIBUTES)


def test_the_kinds_take_turns():
    assert [each.kind for each in PAIRS] == [*KINDS, *KINDS]
    assert {kind.about for kind in KINDS} == {"hair length", "glasses", "smile", "beard"}


@pytest.mark.parametrize("found", PAIRS, ids=lambda found: found.kind.about)
def test_mask_and_sentence_say_two_things_of_what_they_contradict_each_other_in(found):
    about = NAMES.index(found.kind.about)
    told = asked(found.told.attributes, found.told.caption)
    case, agreeing = case_of(found), case_of(found, agrees=True)
    assert case.named[about] == seen(found.told.attributes)[about] != case.drawn
    assert case.drawn == seen(found.drawn.attributes)[about]
    assert agreeing.drawn == agreeing.named[about]
    assert {name for name, answer in zip(NAMES, case.named, strict=True) if answer != UNASKED} == set(told)
    assert case.conditions["text"] == agreeing.conditions["text"]
    np.testing.assert_array_equal(agreeing.labels, found.told.labels)
    np.testing.assert_array_equal(case.labels, found.drawn.labels)


@pytest.mark.parametrize("found", PAIRS, ids=lambda found: found.kind.about)
def test_nothing_of_what_shows_in_the_area_counts_elsewhere(found):
    case, inside = case_of(found), {found.kind.about, *found.kind.inside}
    counted = {name for name, answer in zip(NAMES, case.elsewhere, strict=True) if answer != UNASKED}
    assert counted == {name for name, answer in zip(NAMES, case.named, strict=True) if answer != UNASKED} - inside


@pytest.mark.parametrize("found", PAIRS, ids=lambda found: found.kind.about)
def test_the_area_holds_what_differs_and_leaves_the_rest(found):
    differs = found.drawn.labels != found.told.labels
    if found.kind.labelled:
        assert not (differs & ~found.area).any() and differs.any()
    assert 0.02 < found.area.mean() < 0.9


def test_a_number_is_a_pair():
    again = pair(3, size=64)
    np.testing.assert_array_equal(again.told.image, PAIRS[3].told.image)
    assert again.told.caption == PAIRS[3].told.caption


def test_the_table_says_on_what_it_was_measured(monkeypatch, tmp_path):
    values = np.array([0.0, 1.0] * 5)
    rows = {name: {"as said": values, "mIoU": values} for name in ("as is", "as is, conditions that agree")}
    found = Found(rows, dict.fromkeys(rows, values), {name: values > 0 for name in rows})
    monkeypatch.setattr(conflicts, "compare", lambda *arguments: found)
    monkeypatch.setattr(conflicts, "cases_of", lambda numbers: ([], []))
    out = tmp_path / "all.json"
    result = CliRunner().invoke(main, ["measure", "--count", "10", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "tier turbo, pairs 10" in result.output and "| as is | 0.500 [" in result.output
    assert "AUC 1.000 [1.000, 1.000]" in result.output and "10 of 20 images" in result.output
    assert out.exists()


def test_the_level_is_what_few_that_agree_exceed(monkeypatch):
    monkeypatch.setattr(conflicts, "cases_of", lambda numbers: (["contrary"], ["agreeing"]))
    of = {"contrary": np.linspace(0.5, 1.5, 100), "agreeing": np.linspace(0, 1, 101)}
    monkeypatch.setattr(conflicts, "images", lambda pipeline, cases, how, way: (None, of[cases[0]]))
    result = CliRunner().invoke(main, ["level"])
    assert result.exit_code == 0, result.output
    assert ": 0.950; above it are 0.55 of those" in result.output
