import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.jobs import file
from cdiff_rt.jobs.file import read_jobs
from cdiff_rt.jobs.rows import Job
from cdiff_rt.manifest import sha256
from cdiff_rt.sampling.tiers import TIERS
from cdiff_rt.settings import Influence, Settings

TEXT = "This man has a long beard."


@pytest.fixture
def write(tmp_path, mask):
    """Writes a file of jobs, beside it a mask; lines are given as they are or as what is JSON."""
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "face.png")

    def write_lines(*lines):
        path = tmp_path / "jobs.jsonl"
        path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines) + b"\n")
        return path

    return write_lines


def test_a_row_is_a_job_whose_paths_start_at_the_file(write, bundle, tmp_path):
    everything = {
        "seed": 7,
        "first": 2,
        "solver": "ddim",
        "steps": 4,
        "eta": 0.5,
        "temperature": 2,
        "rounding": "nearest",
    }
    everything |= {"decay": "linear", "factor": 1, "sharpness": 2, "boost": 3, "without": ["mask"]}
    path = write({"id": "man", "mask": "masks/face.png", "text": TEXT, **everything}, {"text": TEXT, "mask": None})
    first, second = read_jobs(path, bundle.manifest)
    assert first.id == "man" and first.conditions == {"mask": tmp_path / "masks" / "face.png", "text": TEXT}
    assert first.settings == Settings(**everything)
    assert first.settings.over(Influence()) == Influence("linear", 1.0, 2.0, 3.0) and first.settings.without == (
        "mask",
    )
    assert second == Job("000002", {"text": TEXT}, Settings(seed=1), line=2, counted=True)


def test_settings_are_those_of_generate_with_numbers_as_the_command_reads_them(write, bundle):
    (job,) = read_jobs(write({"text": TEXT, "eta": 1, "factor": 3}), bundle.manifest)
    assert type(job.settings.eta) is type(job.settings.factor) is float
    assert job.settings.factor == 3.0


def test_areas_start_at_the_file(write, bundle, tmp_path):
    row = {"text": TEXT, "influence": {"text": 1.5}, "region": "text=masks/beard.png:at-least=0.8"}
    path, area = write(row), tmp_path / "masks" / "beard.png"
    with pytest.raises(BadInput, match=r"line 1: region of text .*beard\.png: there is no such file"):
        read_jobs(path, bundle.manifest)
    shutil.copy(tmp_path / "masks" / "face.png", area)
    (job,) = read_jobs(path, bundle.manifest)
    request = job.request({})
    assert job.inputs() == {"region.0": sha256(area)}
    area.write_bytes(area.read_bytes() + b"x")
    assert job.request({}) != request
    assert job.settings.told()["influence"] == ["text=1.5"]
    assert job.settings.told()["region"] == [f"text={tmp_path}/masks/beard.png:at-least=0.8"]


def test_an_absolute_path_stays(write, bundle, tmp_path):
    (job,) = read_jobs(write({"mask": str(tmp_path / "masks" / "face.png")}), bundle.manifest)
    assert job.conditions == {"mask": tmp_path / "masks" / "face.png"}


BAD_ROWS = {
    "not JSON": (b"{", "not JSON"),
    "half a row": (b'{"text": "a"', "not JSON"),
    "two rows": (b'{"text": "a"} {"text": "b"}', "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "NaN": (b'{"text": "a", "eta": NaN}', "NaN is no number"),
    "key twice": (b'{"text": "a", "text": "b"}', "'text' stands twice"),
    "a list": ([1], "a list; write one object a line"),
    "not UTF-8": (b'{"text": "\xff"}', "not UTF-8"),
    "huge": (b'{"text": "' + b"x" * file.LONGEST_LINE + b'"}', f"longer than {file.LONGEST_LINE} bytes"),
    "unknown key": ({"text": TEXT, "colour": "red"}, "key: 'colour'; a row has id, mask, text, seed, first, tier,"),
    "batch": ({"text": TEXT, "batch": 2}, "key: 'batch'"),
    "no condition": ({"seed": 1}, "conditions: none given; give at least one of mask, text"),
    "nothing left": ({"text": TEXT, "without": ["text"]}, "without: it leaves no condition"),
    "unknown modality": ({"text": TEXT, "without": ["sketch"]}, "without: 'sketch'"),
    "text is a number": ({"text": 5}, "text: 5; give a string"),
    "text is empty": ({"text": " "}, "text: it is empty"),
    "text has control characters": ({"text": "a\0"}, "text: control character U+0000"),
    "text has half a character": (b'{"text": "\\ud800"}', "text: half a character, U+D800"),
    "mask is missing": ({"mask": "no.png"}, "no.png: there is no such file"),
    "mask is a folder": ({"mask": "masks"}, "masks: this is not a file"),
    "mask is nothing": ({"mask": ""}, "mask: its path is empty"),
    "mask has a NUL": ({"mask": "a\0.png"}, "there is no such file"),
    "mask is a list": ({"mask": ["masks/face.png"]}, "mask: ['masks/face.png']; give a string"),
    "seed is a string": ({"text": TEXT, "seed": "7"}, "seed: '7'; give a whole number"),
    "seed is a fraction": ({"text": TEXT, "seed": 1.5}, "seed: 1.5; give a whole number"),
    "seed is true": ({"text": TEXT, "seed": True}, "seed: True; give a whole number"),
    "seed is negative": ({"text": TEXT, "seed": -1}, "seed: -1 is outside"),
    "seed is large": ({"text": TEXT, "seed": 2**63}, f"seed: {2**63} is outside"),
    "first is very large": ({"text": TEXT, "first": 10**400}, "first"),
    "eta is very large": ({"text": TEXT, "eta": 10**400}, "eta"),
    "eta is a string": ({"text": TEXT, "eta": "1"}, "eta: '1'; give a number"),
    "eta is outside": ({"text": TEXT, "eta": 2}, "eta: 2.0 is outside 0-1"),
    "steps": ({"text": TEXT, "steps": 7}, "steps: 7"),
    "tier": ({"text": TEXT, "tier": "slow"}, "tier: 'slow'; choose one of exact, fast"),
    "tier and steps": ({"text": TEXT, "tier": "fast", "steps": 10}, "tier: fast and steps of your own"),
    "temperature": ({"text": TEXT, "temperature": -1}, "temperature: -1.0 is outside"),
    "decay": ({"text": TEXT, "decay": "slow"}, "decay: 'slow'"),
    "factor": ({"text": TEXT, "factor": -1}, "factor: -1.0 is outside"),
    "rounding": ({"text": TEXT, "rounding": "up"}, "rounding: 'up'"),
    "without is a string": ({"text": TEXT, "without": "mask"}, "without: 'mask'; give a list of names"),
    "without has numbers": ({"text": TEXT, "without": [1]}, "without: [1]; give a list of names"),
    "id is a fraction": ({"text": TEXT, "id": 7.5}, "id: 7.5; take up to 200 letters"),
    "id is negative": ({"text": TEXT, "id": -7}, "id: '-7'; take up to 200 letters"),
    "id is true": ({"text": TEXT, "id": True}, "id: True"),
    "comma after the row": (b'{"text": "a"},', "leave out the comma after it"),
    "comma before the bracket": (b'{"text": "a",}', "leave out the comma before the bracket"),
    "a list of rows": (b'[{"text": "a"}', "without a list around them"),
    "a row on many lines": (b"{", "write each object whole on one line"),
    "seed is larger than a number": (b'{"text": "a", "seed": 1e400}', "seed: inf; give a whole number"),
    "id has folders": ({"text": TEXT, "id": "train/001"}, "id: 'train/001'; an id has no folders: write train-001,"),
    "id has folders of Windows": ({"text": TEXT, "id": "a\\b c"}, "an id has no folders: write a-b-c,"),
    "region is a number": ({"text": TEXT, "region": {"text": 5}}, "region of text: 5; give the path of a picture"),
    "influence of none": ({"text": TEXT, "influence": "sketch=2"}, "influence: 'sketch'; faces-128 knows mask, text"),
    "no weight": ({"text": TEXT, "influence": "text=0"}, "influence: text: no weight at any step"),
    "meta is no JSON": (b'{"text": "a", "meta": [1e999]}', "meta: Infinity is no number"),
    "meta has half a character": (b'{"text": "a", "meta": "\\ud800"}', "meta: "),
    "meta is deep": ({"text": TEXT, "meta": json.loads("[" * 60 + "]" * 60)}, "meta: nested more than 50 deep"),
    "id is empty": ({"text": TEXT, "id": ""}, "id: ''"),
    "id is a path": ({"text": TEXT, "id": "../a"}, "id: '../a'"),
    "id is hidden": ({"text": TEXT, "id": ".a"}, "id: '.a'"),
    "id has a line end": ({"text": TEXT, "id": "a\n"}, r"id: 'a\\n'"),
    "id is long": ({"text": TEXT, "id": "a" * 201}, "id: 'aaa"),
    "id is taken": ({"text": TEXT, "id": "Good"}, "id: 'Good' is that of line 1 too"),
    "id is taken on some disks": ({"text": TEXT, "id": "GOOD"}, "id: 'GOOD' is that of line 1 too"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_refused_with_its_line(name, write, bundle):
    line, words = BAD_ROWS[name]
    path = write({"id": "Good", "text": TEXT}, line, {"text": TEXT})
    with pytest.raises(BadInput) as caught:
        read_jobs(path, bundle.manifest)
    assert str(caught.value).startswith(f"{path}, line 2: ") and words.replace(r"\\", "\\") in str(caught.value)
    assert len(str(caught.value)) < 900


def test_an_id_may_clash_with_the_number_of_another_row(write, bundle):
    with pytest.raises(BadInput, match="line 2: id: '000002' is that of line 1 too"):
        read_jobs(write({"id": "000002", "text": TEXT}, {"text": TEXT}), bundle.manifest)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.touch(), "0 bytes"),
        (lambda path: path.mkdir(), "this is not a file"),
        (os.mkfifo, "this is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "this is not a file"),
    ],
    ids=["missing", "empty", "folder", "fifo", "device"],
)
def test_a_file_that_is_none_is_refused(make, words, tmp_path, bundle):
    make(tmp_path / "jobs.jsonl")
    with pytest.raises(BadInput, match=words):
        read_jobs(tmp_path / "jobs.jsonl", bundle.manifest)


def test_a_file_without_a_last_line_end_and_with_windows_ends_is_read(tmp_path, bundle):
    (tmp_path / "jobs.jsonl").write_bytes(b'{"text": "a man"}\r\n{"text": "a woman"}')
    assert [job.id for job in read_jobs(tmp_path / "jobs.jsonl", bundle.manifest)] == ["000001", "000002"]


def test_what_other_programs_write_is_read(tmp_path, bundle):
    content = b'\xef\xbb\xbf{"text": "a man", "id": 7, "seed": 7.0, "steps": 1e1, "eta": 1.0}\r\n\r\n'
    (tmp_path / "jobs.jsonl").write_bytes(content + b'\xef\xbb\xbf{"text": "a woman", "id": 8.0}\n\n  \n')
    first, second = read_jobs(tmp_path / "jobs.jsonl", bundle.manifest)
    assert (first.id, second.id) == ("7", "8")
    settings = first.settings
    assert (settings.seed, settings.steps, settings.eta) == (7, 10, 1.0) and type(settings.seed) is int


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_another_encoding_is_named(encoding, tmp_path, bundle):
    (tmp_path / "jobs.jsonl").write_bytes('{"text": "a man"}\n'.encode(encoding))
    with pytest.raises(BadInput, match="jobs.jsonl: it is UTF-16 or UTF-32.*; save it as UTF-8"):
        read_jobs(tmp_path / "jobs.jsonl", bundle.manifest)


@pytest.mark.parametrize("content", [b"\n", b"\xef\xbb\xbf", b" \r\n\n"])
def test_a_file_of_empty_lines_is_refused(content, tmp_path, bundle):
    (tmp_path / "jobs.jsonl").write_bytes(content)
    with pytest.raises(BadInput, match="it has no row"):
        read_jobs(tmp_path / "jobs.jsonl", bundle.manifest)


def test_a_request_is_known_by_all_that_the_image_follows_from(write, bundle, tmp_path, mask):
    row, identity = {"id": "a", "mask": "masks/face.png", "text": TEXT}, {"model_hash": "0"}

    def request(changes, identity=identity):
        (job,) = read_jobs(write(row | changes), bundle.manifest)
        return job.request(identity)

    same = request({})
    assert request({"id": "b"}) == request({"seed": 0}) == same
    shutil.copy(tmp_path / "masks" / "face.png", tmp_path / "face.png")
    assert request({"mask": "face.png"}) == same  # the image tells the file's name, not its folder
    changes = [{"seed": 1}, {"first": 1}, {"steps": 4}, {"text": "a man"}, {"mask": None}, {"without": ["mask"]}]
    changes += [{"factor": 1}, {"rounding": "nearest"}, {"tier": "fast"}]
    requests = [same, *map(request, changes), request({}, {"model_hash": "1"})]
    Image.fromarray(np.roll(mask, 1)).save(tmp_path / "masks" / "face.png")
    requests.append(request({}))
    assert len(set(requests)) == len(changes) + 3


def test_a_tier_is_known_by_what_it_stands_for(write, bundle, monkeypatch):
    def request(settings):
        (job,) = read_jobs(write({"id": "a", "text": TEXT} | settings), bundle.manifest)
        return job.request({})

    fast = request({"tier": "fast"})
    assert fast == request({"solver": TIERS["fast"].solver, "steps": TIERS["fast"].steps})
    assert request({"tier": "exact"}) == request({}) != fast
    monkeypatch.setitem(TIERS, "fast", replace(TIERS["fast"], steps=12))
    assert request({"tier": "fast"}) != fast


def test_an_order_of_labels_is_a_file_beside_the_jobs_and_part_of_the_request(write, bundle, tmp_path):
    (tmp_path / "masks" / "order.txt").write_text("0 = background\n1 = skin\n")
    path = write({"mask": "masks/face.png", "labels": "masks/order.txt", "snap": True}, {"mask": "masks/face.png"})
    mine, usual = read_jobs(path, bundle.manifest)
    assert (mine.settings.labels, mine.settings.snap) == ("0=background,1=skin", True)
    (tmp_path / "masks" / "order.txt").write_text("0 = background\n1 = hair\n")
    (other, _) = read_jobs(path, bundle.manifest)
    assert len({job.request({}) for job in (mine, usual, other)}) == 3
    with pytest.raises(BadInput, match="line 1: labels: 'order.txt' is no order and no file; give celebamask"):
        read_jobs(write({"mask": "masks/face.png", "labels": "order.txt"}), bundle.manifest)
