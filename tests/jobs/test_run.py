import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cdiff_rt.errors import BadEnvironment, BadInput, BadRequest, OutOfResource
from cdiff_rt.jobs import rows
from cdiff_rt.jobs.assignment import Shard, prepare
from cdiff_rt.jobs.results import DATASET, Outcome, read_results
from cdiff_rt.jobs.run import make, run_jobs
from cdiff_rt.manifest import sha256
from cdiff_rt.outputs.files import PLACE, own_folder
from cdiff_rt.outputs.generated import Beside
from cdiff_rt.outputs.influence import InfluenceRecorder
from cdiff_rt.outputs.trajectory import TrajectoryRecorder
from tests.faults import KINDS, check_faults

TEXT = "This man has a long beard."
ROWS = [
    {"id": "a", "mask": "face.png", "text": TEXT, "seed": 7, "first": 3, "steps": 2},
    {"id": "b", "text": TEXT, "steps": 2, "decay": "none", "temperature": 0.5},
    {"id": "c", "mask": "face.png", "steps": 4, "eta": 0},
    {"id": "d", "text": "a woman", "steps": 1},
    {"id": "e", "text": "a woman", "solver": "dpmpp-2m", "steps": 2},
]


def write(folder, *rows):
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def jobs(tmp_path, mask_file):
    return write(tmp_path, *ROWS)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def images(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def lines(out, shard="1-of-1"):
    return [json.loads(line) for line in (out / f"results-{shard}.jsonl").read_text().splitlines()]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_row_is_the_image_that_generate_makes(pipeline, jobs, out, tmp_path, mask_file):
    outcomes = list(run_jobs(pipeline, jobs, out))
    for row, job, outcome in zip(ROWS, prepare(pipeline, jobs, tmp_path / "no").jobs, outcomes, strict=True):
        (alone,) = pipeline.generate(job.settings, conditions=job.conditions).save(
            tmp_path / "alone" / "x.png", force=True
        )
        assert (out / f"{row['id']}.png").read_bytes() == alone.read_bytes()
        assert (outcome.id, outcome.file, outcome.sha256) == (row["id"], f"{row['id']}.png", sha256(alone))
        assert outcome.seed == row.get("seed", ROWS.index(row)) and outcome.seconds > 0 and outcome.error is None
    assert list(read_results(out / "results-1-of-1.jsonl").values()) == outcomes
    assert names(out) == ["a.png", "b.png", "c.png", "d.png", "dataset.json", "e.png", "results-1-of-1.jsonl"]


def test_the_settings_of_a_row_reach_its_image(pipeline, jobs, out):
    list(run_jobs(pipeline, jobs, out, shard="2/5"))
    with Image.open(out / "b.png") as image:
        record = json.loads(image.text["cdiff_rt"])
    assert (record["steps"], record["temperature"], record["decay"]) == (2, 0.5, "none")


def test_a_split_that_was_killed_on_the_way_is_split_anew_and_no_row_is_in_two_files(pipeline, jobs, out):
    outcomes = run_jobs(pipeline, jobs, out)
    assert [next(outcomes).id for _ in range(3)] == ["a", "b", "c"]
    outcomes.close()
    (out / "c.png").unlink()
    list(run_jobs(pipeline, jobs, out, shard="2/2", resume=True))
    assert [row["id"] for row in lines(out)] == ["a", "c"]  # which are the other shard's
    assert [outcome.id for outcome in run_jobs(pipeline, jobs, out, shard="1/2", resume=True)] == ["c", "e"]
    assert [row["id"] for row in lines(out, "1-of-2")] == ["a", "c", "e"] and not (
        out / "results-1-of-1.jsonl"
    ).exists()


def test_another_split_is_refused_without_resume_or_force(pipeline, jobs, out):
    list(run_jobs(pipeline, jobs, out, shard="2/2"))
    with pytest.raises(BadRequest, match=r"results-2-of-2\.jsonl exists; go on with --resume"):
        run_jobs(pipeline, jobs, out)
    assert len(list(run_jobs(pipeline, jobs, out, force=True))) == len(ROWS)
    assert len(lines(out)) == len(ROWS) and not (out / "results-2-of-2.jsonl").exists()


def test_another_split_is_refused_while_a_run_of_the_first_is_at_it(pipeline, jobs, out):
    first = run_jobs(pipeline, jobs, out, shard="1/2")
    next(first)
    before = (out / "results-1-of-2.jsonl").read_bytes()
    with pytest.raises(BadRequest, match="another run is writing results-1-of-2"):
        next(run_jobs(pipeline, jobs, out, resume=True))
    assert (out / "results-1-of-2.jsonl").read_bytes() == before and not (out / "results-1-of-1.jsonl").exists()
    late = run_jobs(pipeline, jobs, out, shard="1/1", resume=True)
    assert len(list(first)) == 2 and len(list(late)) == len(ROWS) - 1
    assert sorted(row["id"] for row in lines(out)) == ["a", "b", "c", "d", "e"]
    assert not (out / "results-1-of-2.jsonl").exists()


def test_a_first_run_of_another_split_does_not_take_what_came_meanwhile(pipeline, jobs, out):
    late = run_jobs(pipeline, jobs, out)
    list(run_jobs(pipeline, jobs, out, shard="1/2"))
    with pytest.raises(BadRequest, match=r"another run wrote .*results-1-of-2\.jsonl meanwhile; go on with --resume"):
        next(late)


def test_two_shards_in_any_order_are_one_run(pipeline, jobs, out, tmp_path):
    list(run_jobs(pipeline, jobs, tmp_path / "whole"))
    for shard in ("2/2", "1/2"):
        list(run_jobs(pipeline, jobs, out, shard=shard))
    assert images(out) == images(tmp_path / "whole") and len(images(out)) == len(ROWS)
    assert [row["id"] for row in lines(out, "1-of-2")] == ["a", "c", "e"]
    assert [row["id"] for row in lines(out, "2-of-2")] == ["b", "d"]


def test_a_shard_may_have_no_rows(pipeline, jobs, out):
    assert list(run_jobs(pipeline, jobs, out, shard="9/9")) == []
    assert names(out) == [DATASET, "results-9-of-9.jsonl"]


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/2/3", "-1/2", "a/b", "1/ 2", "1/2\n", "1/0", "1/9999999"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(BadRequest, match="^shard: .*; write i/n"):
        Shard.read(text)


def test_shards_take_every_row_once():
    rows = list(range(10))
    taken = [row for index in range(1, 4) for row in Shard.read(f"{index}/3").of(rows)]
    assert sorted(taken) == rows and Shard(1, 3).of(rows) == [0, 3, 6, 9]


def test_one_wrong_row_stops_all_before_anything_is_written(pipeline, jobs, out, tmp_path):
    with pytest.raises(BadInput, match="line 6: key: 'x'"):
        run_jobs(pipeline, write(tmp_path, *ROWS, {"text": "a", "x": 1}), out)
    with pytest.raises(BadInput, match="line 6"):  # of another shard
        run_jobs(pipeline, jobs, out, shard="1/2")
    assert not out.exists()


def test_nothing_is_written_before_the_first_is_asked_for(pipeline, jobs, out):
    run_jobs(pipeline, jobs, out)
    assert not out.exists()


def test_a_row_that_fails_leaves_an_error_and_the_others_go_on(pipeline, out, tmp_path, mask_file):
    (tmp_path / "bad.png").write_text("no image")
    jobs = write(tmp_path, ROWS[0], {"id": "bad", "mask": "bad.png", "seed": 5}, ROWS[3])
    outcomes = list(run_jobs(pipeline, jobs, out))
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, False]
    assert sorted(lines(out)[1]) == ["error", "id", "seconds", "seed"]
    assert lines(out)[1]["error"].startswith("mask bad.png: it cannot be read") and lines(out)[1]["seed"] == 5
    assert names(out) == ["a.png", "d.png", DATASET, "results-1-of-1.jsonl"]

    Image.open(mask_file).save(tmp_path / "bad.png")
    (outcome,) = run_jobs(pipeline, jobs, out, resume=True)
    assert outcome.id == "bad" and outcome.error is None
    assert sorted(row["id"] for row in lines(out)) == ["a", "bad", "d"] and (out / "bad.png").exists()


def test_a_row_that_fails_leaves_no_image_of_an_older_request(pipeline, out, tmp_path, mask_file):
    jobs = write(tmp_path, ROWS[2])
    list(run_jobs(pipeline, jobs, out))
    mask_file.write_text("no image")
    (outcome,) = run_jobs(pipeline, jobs, out, resume=True)
    assert outcome.error and names(out) == [DATASET, "results-1-of-1.jsonl"]


def test_what_the_library_warns_of_stands_in_the_outcome(pipeline, out, tmp_path):
    jobs = write(tmp_path, {"text": "a purple man", "steps": 1}, {"text": "a man", "steps": 1})
    first, second = run_jobs(pipeline, jobs, out)
    assert len(first.warnings) == 1 and "'purple'" in first.warnings[0] and second.warnings == ()
    assert read_results(out / "results-1-of-1.jsonl")["000001"] == first


def test_a_line_holds_the_whole_record_and_what_the_row_keeps(pipeline, out, tmp_path, mask_file):
    meta = {"camera": "Ä", "tags": [1, 2.5, None]}
    jobs = write(
        tmp_path, {"mask": "face.png", "seed": 7, "first": 3, "steps": 1, "meta": meta}, {"text": "a", "meta": 0}
    )
    (tmp_path / "no.png").touch()
    list(run_jobs(pipeline, jobs, out, defaults={"steps": 1}))
    first, second = lines(out)
    with Image.open(out / "000001.png") as image:
        assert first["parameters"] == json.loads(image.text["cdiff_rt"]) and first["parameters"]["image"] == 3
    assert first["parameters"]["inputs"]["mask"]["sha256"] == sha256(mask_file)
    assert (first["meta"], second["meta"], second["parameters"]["seed"]) == (meta, 0, 1)
    jobs = write(tmp_path, {"mask": "face.png", "seed": 7, "first": 3, "steps": 1, "meta": "new"}, {"text": "a"})
    assert list(run_jobs(pipeline, jobs, out, defaults={"steps": 1}, resume=True)) == []
    assert lines(out) == [first | {"meta": "new"}, {name: second[name] for name in second if name != "meta"}]


BESIDE = Beside((InfluenceRecorder, TrajectoryRecorder), latent=True, overlay=True)


def test_what_lies_beside_is_what_generate_writes_and_is_made_again_where_it_is_not_as_it_was(
    pipeline, out, tmp_path, mask_file
):
    jobs = write(tmp_path, *({"id": f"i{n}", "mask": "face.png", "seed": n, "steps": 1} for n in range(6)))
    list(run_jobs(pipeline, jobs, out, beside=BESIDE))
    with InfluenceRecorder(tmp_path, pipeline.decode) as recorder:
        result = pipeline.generate(mask=mask_file, seed=2, steps=1, callback_on_step_end=recorder)
        (alone,) = result.save(tmp_path / "alone" / "i2.png", recorders=[recorder], latent=True, overlay=True)
    content = {
        file.relative_to(alone.parent): file.read_bytes() for file in alone.parent.rglob("*.*") if file.is_file()
    }
    assert len(content) > 5 and all((out / name).read_bytes() == of for name, of in content.items())
    assert list(run_jobs(pipeline, jobs, out, beside=BESIDE, resume=True)) == []
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.suffix != ".jsonl"}
    shutil.rmtree(out / "i0.influence")
    (out / "i1.trajectory" / "trajectory.npz").write_bytes(b"torn")
    (out / "i2.influence" / "sheet.jpg").unlink()
    (out / "i3.npz").unlink()
    (out / "i4.overlay.png").write_bytes(b"")
    assert list(run_jobs(pipeline, jobs, out, resume=True)) == []  # nobody asks for it
    made = [outcome.id for outcome in run_jobs(pipeline, jobs, out, beside=BESIDE, resume=True)]
    assert made == ["i0", "i1", "i2", "i3", "i4"]
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(run_jobs(pipeline, jobs, out, beside=BESIDE, scale=2, resume=True))) == 6
    assert list(run_jobs(pipeline, jobs, out, beside=BESIDE, scale=2, resume=True)) == []


def test_who_resumes_and_wants_the_inputs_inside_gets_them(pipeline, out, tmp_path, mask_file):
    jobs = write(tmp_path, {"mask": "face.png", "steps": 1})
    list(run_jobs(pipeline, jobs, out))
    small = (out / "000001.png").stat().st_size
    assert len(list(run_jobs(pipeline, jobs, out, embed=True, resume=True))) == 1
    assert (out / "000001.png").stat().st_size > small
    assert list(run_jobs(pipeline, jobs, out, embed=True, resume=True)) == []


def test_who_resumes_and_wants_more_beside_gets_it(pipeline, out, tmp_path):
    jobs = write(tmp_path, {"text": "a man", "steps": 1})
    list(run_jobs(pipeline, jobs, out))
    assert len(list(run_jobs(pipeline, jobs, out, beside=Beside(latent=True), resume=True))) == 1
    assert names(out) == ["000001.npz", "000001.png", DATASET, "results-1-of-1.jsonl"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a"}], "line 1: overlay: no condition of this run can be drawn"),
        ([{"mask": "face.png", "text": "a", "without": ["mask"]}], "line 1: overlay: no condition"),
        ([{"id": "a", "mask": "face.png"}, {"id": "A.overlay", "mask": "face.png"}], "line 1: overlay: .* of line 2"),
    ],
    ids=["none", "left out", "taken"],
)
def test_an_overlay_that_cannot_be_is_refused_before_anything_runs(rows, words, pipeline, out, tmp_path, mask_file):
    with pytest.raises(BadRequest, match=words):
        run_jobs(pipeline, write(tmp_path, *rows), out, beside=Beside(overlay=True))
    assert not out.exists()


def test_the_manifest_of_the_set_counts_all_shards_and_tells_what_the_images_share(pipeline, out, tmp_path, mask_file):
    (tmp_path / "bad.png").write_text("no image")
    jobs = write(tmp_path, {"mask": "face.png"}, {"mask": "bad.png"}, {"mask": "face.png"}, {"mask": "face.png"})
    runs = [run_jobs(pipeline, jobs, out, shard=f"{i}/2", defaults={"text": TEXT, "steps": 1}) for i in (1, 2)]
    list(runs[0])
    told = json.loads((out / DATASET).read_text())
    assert (told["rows"], told["made"], told["failed"], told["results"]) == (4, 2, 0, ["results-1-of-2.jsonl"])
    next(runs[1])
    assert not (out / DATASET).exists()  # it is there only after a run that came to its end
    list(runs[1])
    told = json.loads((out / DATASET).read_text())
    assert (told["rows"], told["made"], told["failed"]) == (4, 3, 1)
    assert (told["jobs"], told["jobs_sha256"], told["licence"]) == (jobs.name, sha256(jobs), pipeline.manifest.licence)
    assert told["results"] == ["results-1-of-2.jsonl", "results-2-of-2.jsonl"]
    assert told["made_by"] == [pipeline.identity()]
    shared = told["shared"]
    assert (shared["steps"], shared["prompt"], shared["conditions"]) == (1, TEXT, {"mask": "face.png", "text": TEXT})
    assert "seed" not in shared and "version" not in shared


def test_a_manifest_that_is_none_of_ours_is_kept(pipeline, jobs, out):
    out.mkdir()
    (out / DATASET).write_text("mine")
    for options in ({}, {"resume": True}):
        with pytest.raises(BadRequest, match=r"dataset\.json exists"):
            run_jobs(pipeline, jobs, out, **options)
    assert names(out) == [DATASET]


def test_what_exists_is_refused_without_resume_or_force(pipeline, jobs, out):
    out.mkdir()
    (out / "b.png").write_text("mine")
    with pytest.raises(BadRequest, match=r"b\.png exists"):
        run_jobs(pipeline, jobs, out)
    with pytest.raises(BadRequest, match=r"b\.png exists"):  # there are no results that it could be of
        run_jobs(pipeline, jobs, out, resume=True)
    assert len(list(run_jobs(pipeline, jobs, out, shard="1/2"))) == 3  # it is none of this shard's
    with pytest.raises(BadRequest, match=r"results-1-of-2\.jsonl exists; go on with --resume"):
        run_jobs(pipeline, jobs, out, shard="1/2")
    assert (out / "b.png").read_text() == "mine"


def test_force_makes_all_anew(pipeline, jobs, out):
    list(run_jobs(pipeline, jobs, out))
    before = images(out)
    (out / "a.png").write_text("mine")
    assert len(list(run_jobs(pipeline, jobs, out, force=True))) == len(ROWS)
    assert images(out) == before and len(lines(out)) == len(ROWS)


def test_resume_and_force_contradict_each_other(pipeline, jobs, out):
    with pytest.raises(BadRequest, match="resume"):
        run_jobs(pipeline, jobs, out, resume=True, force=True)


def test_another_split_takes_over_what_is_done(pipeline, jobs, out, tmp_path):
    list(run_jobs(pipeline, jobs, tmp_path / "whole"))
    list(run_jobs(pipeline, jobs, out, shard="2/2"))
    assert [outcome.id for outcome in run_jobs(pipeline, jobs, out, shard="1/1", resume=True)] == ["a", "c", "e"]
    made = [[outcome.id for outcome in run_jobs(pipeline, jobs, out, shard=f"{i}/3", resume=True)] for i in (1, 2, 3)]
    assert made == [[], [], []] and images(out) == images(tmp_path / "whole")
    assert names(out) == names(tmp_path / "whole")[:-1] + [f"results-{i}-of-3.jsonl" for i in (1, 2, 3)]
    assert [[row["id"] for row in lines(out, f"{i}-of-3")] for i in (1, 2, 3)] == [["a", "d"], ["b", "e"], ["c"]]


@pytest.mark.parametrize("name", ["out.png", "out.npz"])
def test_one_file_for_many_images_is_refused(name, pipeline, jobs, tmp_path):
    with pytest.raises(BadRequest, match="give a folder"):
        run_jobs(pipeline, jobs, tmp_path / name)


def test_resuming_what_is_done_does_nothing(pipeline, jobs, out):
    list(run_jobs(pipeline, jobs, out, resume=True))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.png")}
    written = lines(out)
    assert list(run_jobs(pipeline, jobs, out, resume=True)) == [] and lines(out) == written
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.png")} == before


def test_resuming_makes_what_is_missing_changed_or_damaged(pipeline, jobs, out, tmp_path, mask):
    list(run_jobs(pipeline, jobs, out))
    (out / "d.png").unlink()
    (out / "e.png").write_bytes((out / "e.png").read_bytes()[:-1])
    changed = [ROWS[0], ROWS[1] | {"seed": 9}, *ROWS[2:], {"id": "new", "text": "a", "steps": 1}]
    jobs = write(tmp_path, *changed)
    assert [outcome.id for outcome in run_jobs(pipeline, jobs, out, resume=True)] == ["b", "d", "e", "new"]
    assert sorted(row["id"] for row in lines(out)) == ["a", "b", "c", "d", "e", "new"]
    list(run_jobs(pipeline, jobs, tmp_path / "fresh"))
    assert images(out) == images(tmp_path / "fresh")

    Image.fromarray(mask.T.copy()).save(tmp_path / "face.png")
    assert [outcome.id for outcome in run_jobs(pipeline, jobs, out, resume=True)] == ["a", "c"]


def test_resuming_makes_anew_what_another_model_made(pipeline, jobs, out, monkeypatch):
    list(run_jobs(pipeline, jobs, out))
    identity = pipeline.identity()
    monkeypatch.setattr(pipeline, "identity", lambda: identity | {"model_hash": "0" * 64})
    assert len(prepare(pipeline, jobs, out, resume=True).jobs) == len(ROWS)


@pytest.mark.parametrize("cut", [1, 30, -2, -1], ids=str)
def test_a_half_written_line_is_dropped_and_its_row_made_again(cut, pipeline, jobs, out, tmp_path):
    list(run_jobs(pipeline, jobs, tmp_path / "whole"))
    list(run_jobs(pipeline, jobs, out))
    results = out / "results-1-of-1.jsonl"
    whole = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(b"".join(whole[:-1]) + whole[-1][:cut])
    made = [outcome.id for outcome in run_jobs(pipeline, jobs, out, resume=True)]
    assert made == ([] if cut == -1 else ["e"])  # only the line's end was missing
    assert sorted(row["id"] for row in lines(out)) == ["a", "b", "c", "d", "e"]
    assert images(out) == images(tmp_path / "whole")


def test_lines_that_are_none_of_ours_are_dropped(pipeline, jobs, out):
    list(run_jobs(pipeline, jobs, out))
    with (out / "results-1-of-1.jsonl").open("ab") as file:
        file.write(b'\xff\n[]\n{"id": "a"}\n{"id": "a", "seed": 7, "seconds": 1, "file": "../a.png"}\n')
    assert [outcome.id for outcome in run_jobs(pipeline, jobs, out, resume=True)] == ["a"]  # its last line is not true
    assert sorted(row["id"] for row in lines(out)) == ["a", "b", "c", "d", "e"]


def test_an_image_whose_line_was_not_written_is_made_again_and_is_the_same(pipeline, jobs, out, tmp_path):
    outcomes = run_jobs(pipeline, jobs, out)
    next(outcomes)
    outcomes.close()
    work = prepare(pipeline, jobs, out, resume=True)
    make(pipeline, work.jobs[0], work)  # and here the process ends
    before = (out / "b.png").read_bytes()
    assert [outcome.id for outcome in run_jobs(pipeline, jobs, out, resume=True)] == ["b", "c", "d", "e"]
    assert (out / "b.png").read_bytes() == before and len(lines(out)) == len(ROWS)


def test_who_stops_asking_keeps_what_was_made(pipeline, jobs, out):
    for outcome in run_jobs(pipeline, jobs, out):
        if outcome.id == "b":
            break
    assert names(out) == ["a.png", "b.png", "results-1-of-1.jsonl"] and len(lines(out)) == 2


def test_what_a_killed_run_left_is_swept_but_not_what_another_shard_writes(pipeline, jobs, out):
    (out / PLACE / "results-1-of-2" / "new").mkdir(parents=True)
    with own_folder(out, "results-2-of-2") as other:
        list(run_jobs(pipeline, jobs, out, shard="1/2"))
        assert other.is_dir() and names(out / PLACE) == ["results-2-of-2"]
    assert names(out) == ["a.png", "c.png", DATASET, "e.png", "results-1-of-2.jsonl"]


def test_a_full_disk_ends_the_run_and_what_is_made_stays(pipeline, jobs, out, monkeypatch):
    real = os.replace

    def full_at_c(source, target):
        if Path(target).name == "c.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full_at_c)
    with pytest.raises(OutOfResource, match=r"c\.png: No space left on device"):
        list(run_jobs(pipeline, jobs, out))
    assert names(out) == ["a.png", "b.png", "results-1-of-1.jsonl"]
    monkeypatch.undo()
    assert [outcome.id for outcome in run_jobs(pipeline, jobs, out, resume=True)] == ["c", "d", "e"]


@pytest.mark.parametrize(
    "kind", [ValueError, RuntimeError, KeyError, AssertionError, RecursionError, UnicodeError], ids=str
)
def test_whatever_a_row_raises_is_its_line_and_the_others_go_on(kind, pipeline, jobs, out, monkeypatch):
    real = type(pipeline).generate

    def broken(self, settings, **more):
        if settings.seed == 7:
            raise kind("not\nforeseen")
        return real(self, settings, **more)

    monkeypatch.setattr(type(pipeline), "generate", broken)
    outcomes = list(run_jobs(pipeline, jobs, out))
    assert [bool(outcome.error) for outcome in outcomes] == [True, False, False, False, False]
    assert f"{kind.__name__} in test_run.py:" in outcomes[0].error and "foreseen" in outcomes[0].error
    monkeypatch.undo()
    assert [outcome.error for outcome in run_jobs(pipeline, jobs, out, resume=True)] == [None]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), OutOfResource),
        (RuntimeError("[ONNXRuntimeError] : std::bad_alloc"), OutOfResource),
        (RuntimeError("CUDA out of memory. Tried"), OutOfResource),
        (OSError(errno.ENOSPC, "No space left on device"), OutOfResource),
        (OSError(errno.EMFILE, "Too many open files"), OutOfResource),
        (ModuleNotFoundError("No module named 'x'", name="x"), BadEnvironment),
        (BadEnvironment("backend", "it is gone", "install it"), BadEnvironment),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_all_rows_share_ends_the_run_once(error, kind, pipeline, jobs, out, monkeypatch):
    calls = []

    def broken(self, settings, **more):
        calls.append(settings)
        raise error

    monkeypatch.setattr(type(pipeline), "generate", broken)
    with pytest.raises(kind):
        list(run_jobs(pipeline, jobs, out))
    assert len(calls) == 1 and lines(out) == [] and names(out) == ["results-1-of-1.jsonl"]


def test_out_of_inodes_ends_the_run_once(pipeline, jobs, out, monkeypatch):
    real = os.mkdir

    def full(path, *more, **named):
        if str(path).endswith("new"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *more, **named)

    outcomes = run_jobs(pipeline, jobs, out)
    next(outcomes)
    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OutOfResource, match="b.png: No space left on device"):
        next(outcomes)
    assert names(out) == ["a.png", "results-1-of-1.jsonl"]


def test_a_row_whose_place_is_taken_by_a_folder_fails_alone(pipeline, jobs, out):
    list(run_jobs(pipeline, jobs, out))
    (out / "c.png").unlink()
    (out / "c.png").mkdir()
    (outcome,) = run_jobs(pipeline, jobs, out, resume=True)
    assert outcome.id == "c" and "c.png is a folder" in outcome.error and (out / "c.png").is_dir()


def test_a_file_that_cannot_be_read_any_more_fails_its_row_and_not_the_resuming(pipeline, jobs, out, monkeypatch):
    list(run_jobs(pipeline, jobs, out))
    real = rows.sha256

    def unreadable(path):
        if path.name == "face.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(rows, "sha256", unreadable)
    outcomes = list(run_jobs(pipeline, jobs, out, resume=True))
    assert [outcome.id for outcome in outcomes] == ["a", "c"]
    assert all("face.png: it cannot be read (Permission denied)" in outcome.error for outcome in outcomes)


def test_of_two_runs_of_one_shard_the_second_is_told_and_no_line_is_double(pipeline, jobs, out):
    first = run_jobs(pipeline, jobs, out)
    next(first)
    second = run_jobs(pipeline, jobs, out, resume=True)
    with pytest.raises(BadRequest, match="another run is writing results-1-of-1"):
        next(second)
    late = run_jobs(pipeline, jobs, out, resume=True)  # which read the lines that there were then
    assert len(list(first)) == len(ROWS) - 1
    with pytest.raises(BadRequest, match="another run wrote .*results-1-of-1.jsonl.*--resume"):
        next(late)
    assert [row["id"] for row in lines(out)] == ["a", "b", "c", "d", "e"] and names(out)[-1] == "results-1-of-1.jsonl"


@pytest.mark.parametrize(("kinds", "every"), [(["SIGKILL"], 4), (["ENOSPC"], 11)], ids=str)
def test_a_run_that_ends_anywhere_goes_on_to_what_an_unbroken_one_makes(kinds, every, tmp_path):
    check_faults("jobs", tmp_path, kinds, every)


@pytest.mark.long
def test_a_run_that_ends_at_any_operation_goes_on_to_what_an_unbroken_one_makes(tmp_path):
    check_faults("jobs", tmp_path, list(KINDS))


def test_an_interrupt_leaves_no_half_of_anything(pipeline, jobs, out, monkeypatch):
    real = os.replace

    def interrupted(source, target):
        if Path(target).name == "c.png":  # written, but not yet in its place
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(pipeline, jobs, out))
    assert names(out) == ["a.png", "b.png", "results-1-of-1.jsonl"] and len(lines(out)) == 2


def test_a_line_tells_only_what_there_is():
    assert json.loads(Outcome("a", 7, 0.5, error="no").line()) == {"id": "a", "seed": 7, "seconds": 0.5, "error": "no"}
