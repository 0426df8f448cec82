import json
import logging

import pytest

from cdiff_rt.errors import BadInput, BadRequest
from cdiff_rt.jobs.file import read_jobs
from cdiff_rt.jobs.rows import Defaults
from cdiff_rt.settings import Settings


@pytest.fixture
def read(tmp_path, bundle, mask_file):
    """Rows as jobs, under the defaults; beside their file there is a mask."""

    def rows(*rows, **defaults):
        path = tmp_path / "jobs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" if row else "\n" for row in rows))
        return read_jobs(path, bundle.manifest, Defaults.read(defaults, bundle.manifest))

    return rows


def test_a_row_without_a_seed_has_its_number_from_the_default_on(read):
    rows = ({"text": "a"}, None, {"text": "a", "seed": 5}, {"text": "a", "seed": None})
    assert [(job.settings.seed, job.counted) for job in read(*rows)] == [(0, True), (5, False), (3, True)]
    assert [job.settings.seed for job in read(*rows, seed=100)] == [100, 5, 103]
    with pytest.raises(BadInput, match=f"line 4: seed: {2**63} is outside"):
        read(*rows, seed=2**63 - 3 - 0)


def test_nothing_is_the_same_as_left_out(read):
    names = (
        "id",
        "mask",
        "seed",
        "first",
        "tier",
        "steps",
        "eta",
        "factor",
        "rounding",
        "labels",
        "snap",
        "without",
        "meta",
    )
    (null,), (plain,) = read({"text": "a"} | dict.fromkeys(names)), read({"text": "a"})
    assert null == plain


def test_what_a_row_leaves_out_it_takes_from_the_defaults(read, mask_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    common = {"mask": "face.png", "text": "a man", "first": 2, "rounding": "nearest", "without": ("mask",), "factor": 3}
    first, second = read({"text": "a woman", "first": 1, "without": []}, {"mask": str(mask_file)}, **common)
    assert str(first.conditions["mask"]) == "face.png" and first.conditions["text"] == "a woman"
    assert (first.settings.first, first.settings.rounding, first.settings.without) == (1, "nearest", ())
    assert second.conditions == {"mask": mask_file, "text": "a man"} and second.settings.without == ("mask",)
    assert first.settings.factor == second.settings.factor == 3.0


@pytest.mark.parametrize(
    ("usual", "own", "found"),
    [
        ({"tier": "turbo"}, {}, {"tier": "turbo"}),
        ({"tier": "turbo"}, {"tier": "fast"}, {"tier": "fast"}),
        ({"tier": "turbo"}, {"steps": 4}, {"steps": 4}),
        ({"tier": "turbo"}, {"eta": 0, "steps": 4}, {"eta": 0, "steps": 4}),
        ({"steps": 4, "solver": "dpmpp-2m"}, {"tier": "fast"}, {"tier": "fast"}),
        ({"steps": 4, "eta": 0}, {"steps": 5}, {"steps": 5, "eta": 0}),
        ({"steps": 4}, {"solver": "dpmpp-2m"}, {"steps": 4, "solver": "dpmpp-2m"}),
        ({"steps": 4, "eta": 0.5, "temperature": 2}, {"eta": 0}, {"steps": 4, "eta": 0}),
        ({"steps": 4, "eta": 0}, {"temperature": 2}, {"steps": 4, "temperature": 2}),
        ({"eta": 0.5, "temperature": 2}, {"solver": "dpmpp-2m-sde"}, {"solver": "dpmpp-2m-sde", "temperature": 2}),
        ({"solver": "dpmpp-2m", "steps": 4}, {"eta": 0.5}, {"eta": 0.5, "steps": 4}),
        ({"solver": "dpmpp-2m", "steps": 4}, {"temperature": 2}, {"temperature": 2, "steps": 4}),
    ],
    ids=str,
)
def test_of_what_excludes_each_other_the_row_wins_and_the_fewest_defaults_go(usual, own, found, read):
    (job,) = read({"text": "a", "seed": 0} | own, **usual)
    assert job.settings == Settings(**found)


def test_what_a_row_has_wrong_itself_is_not_lost_among_the_defaults(read):
    with pytest.raises(BadInput, match="line 1: tier: fast and steps of your own"):
        read({"text": "a", "tier": "fast", "steps": 4}, solver="dpmpp-2m", eta=0)
    with pytest.raises(BadInput, match="line 1: eta: '1'; give a number"):
        read({"text": "a", "eta": "1"}, solver="dpmpp-2m")


@pytest.mark.parametrize(
    ("defaults", "kind", "words"),
    [
        ({"sketch": "a"}, BadRequest, "condition: 'sketch'; faces-128 knows mask, text"),
        ({"batch": 2}, BadRequest, "condition: 'batch'"),
        ({"id": "a"}, BadRequest, "condition: 'id'"),
        ({"steps": 7}, BadRequest, "steps: 7"),
        ({"tier": "slow"}, BadRequest, "tier: 'slow'"),
        ({"mask": "no.png"}, BadInput, "mask no.png: there is no such file"),
        ({"text": ""}, BadInput, "text: it is empty"),
        ({"text": 5}, BadInput, "text: 5; give a string"),
    ],
    ids=str,
)
def test_defaults_that_are_none_are_refused_without_a_line(defaults, kind, words, read):
    with pytest.raises(kind, match=f"^{words}"):
        read({"text": "a"}, **defaults)


def test_up_to_twenty_rows_are_named_at_once_and_all_are_counted(read, caplog):
    with pytest.raises(BadInput, match=r"jobs.jsonl: 2 of 3 rows are wrong; correct them, they are named above"):
        read({"text": "a"}, {"text": 1}, {"x": 1})
    assert [message.split("jobs.jsonl, ")[1][:12] for message in caplog.messages] == ["line 2: text", "line 3: key:"]
    caplog.clear()
    with pytest.raises(BadInput, match="25 of 26 rows are wrong; correct them, the first of them are named above"):
        read(*({"text": "a", "seed": f"{n}"} for n in range(25)), {"text": "a"})
    assert len(caplog.messages) == 20 and {record.levelno for record in caplog.records} == {logging.ERROR}
