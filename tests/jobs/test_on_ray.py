"""Jobs on Ray Data, with workers that are killed on the way. Each test starts Ray in a process of its own."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdiff_rt.errors import BadEnvironment, BadRequest, CdiffError, OutOfResource
from cdiff_rt.jobs.assignment import prepare
from cdiff_rt.jobs.on_ray import DEATHS, RayWorker, run, run_on_ray
from cdiff_rt.jobs.results import DATASET, Outcome
from cdiff_rt.jobs.run import run_jobs
from cdiff_rt.outputs.files import own_folder
from tests.command_line import check_refused
from tests.command_line import run as run_command

TEXT = "This man has a long beard."
RESULTS = "results-1-of-1.jsonl"


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray puts its sockets, whose paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    left = [pid for pid, (_, command) in processes().items() if str(folder) in command]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    assert left == []


def of_its_own(folder: Path) -> dict[str, str]:
    """The environment of a Ray that leaves nothing elsewhere: it keeps a token in the user's home."""
    return {"RAY_TMPDIR": str(folder), "HOME": str(folder)}


def processes() -> dict[int, tuple[int, str]]:
    """pid -> its parent and its command line; those that ended and wait for their parent have none."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            found[int(folder.name)] = parent, (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def processes_of(driver: int) -> dict[int, str]:
    """pid -> command line, of all that a command has started."""
    known = processes()

    def is_below(pid: int) -> bool:
        parent = known.get(pid, (0, ""))[0]
        return parent == driver or (parent > 1 and is_below(parent))

    return {pid: command for pid, (_, command) in known.items() if is_below(pid)}


def workers_of(driver: int) -> list[int]:
    """Those of the pool."""
    return [pid for pid, command in processes_of(driver).items() if "ray::MapWorker" in command]


def write(folder: Path, rows: list[dict]) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def hashes(folder: Path) -> list[tuple[str, str]]:
    """Of every line of the results."""
    return sorted((row["id"], row["sha256"]) for row in map(json.loads, (folder / RESULTS).read_text().splitlines()))


def begin(root: Path, jobs: Path, out: Path, ray_folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cdiff_rt", "generate", "--jobs", str(jobs), "--out", str(out), "--ray", "2"]
    environment = os.environ | of_its_own(ray_folder)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for(process: subprocess.Popen[str], out: Path, lines: int) -> None:
    results, deadline = out / RESULTS, time.monotonic() + 120
    while not (results.exists() and results.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


@pytest.fixture
def rows(mask_file) -> list[dict]:
    return [{"id": f"i{i:02d}", "mask": "face.png", "text": TEXT, "seed": i, "steps": 8} for i in range(20)]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.slow
def test_of_two_workers_one_is_killed_and_nothing_is_lost_or_double(root, rows, pipeline, ray_folder, tmp_path):
    jobs, out = write(tmp_path, rows), tmp_path / "out"
    process = begin(root, jobs, out, ray_folder)
    wait_for(process, out, 4)
    victims = workers_of(process.pid)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    told, notes = process.communicate(timeout=120)
    assert (process.returncode, told) == (0, f"{out}/{RESULTS}: 20 made, 0 there already, 0 failed\n"), notes
    list(run_jobs(pipeline, jobs, tmp_path / "alone"))
    assert images(out) == images(tmp_path / "alone") and len(images(out)) == 20
    assert hashes(out) == hashes(tmp_path / "alone")
    assert sorted(path.name for path in out.iterdir()) == [DATASET, *(f"{row['id']}.png" for row in rows), RESULTS]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.slow
def test_all_is_killed_at_once_and_goes_on_without_ray(root, rows, pipeline, ray_folder, tmp_path):
    jobs, out = write(tmp_path, rows), tmp_path / "out"
    process = begin(root, jobs, out, ray_folder)
    wait_for(process, out, 4)
    for pid in (process.pid, *processes_of(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    before = len(hashes(out))
    assert 4 <= before < len(rows)
    assert len(list(run_jobs(pipeline, jobs, out, resume=True))) == len(rows) - before
    list(run_jobs(pipeline, jobs, tmp_path / "alone"))
    assert images(out) == images(tmp_path / "alone") and hashes(out) == hashes(tmp_path / "alone")
    assert sorted(path.name for path in out.iterdir()) == [DATASET, *(f"{row['id']}.png" for row in rows), RESULTS]


DEADLY = """
import os, signal, sys
import ray
from cdiff_rt.errors import OutOfResource
from cdiff_rt.jobs.on_ray import run_on_ray
from cdiff_rt.pipeline import Pipeline

class Deadly:
    def __init__(self):
        self.inner = Pipeline.from_pretrained()
        self.manifest, self.backend, self.identity = self.inner.manifest, self.inner.backend, self.inner.identity

    def generate(self, settings, **more):
        if settings.seed == 666:
            os.kill(os.getpid(), signal.SIGKILL)
        if settings.seed == 777:
            raise OutOfResource("disk", "it is full", "empty it")
        return self.inner.generate(settings, **more)

ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
for outcome in run_on_ray(Deadly(), sys.argv[1], sys.argv[3]):
    pass
try:
    for outcome in run_on_ray(Deadly(), sys.argv[2], sys.argv[4]):
        pass
except OutOfResource as error:
    print("stopped:", error)
print("still there:", ray.is_initialized())
"""


@pytest.mark.slow
def test_a_row_that_kills_its_workers_fails_alone_and_a_full_disk_ends_all(root, rows, ray_folder, pipeline, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    odd = [{"id": "deadly", "text": TEXT, "seed": 666}, {"id": "bad", "mask": "bad.png"}]
    jobs = write(tmp_path, [*rows[:2], *odd, *rows[2:8]])
    (tmp_path / "full").mkdir()
    full = write(tmp_path / "full", [{"text": TEXT, "seed": 777}, *({"text": TEXT, "steps": 50} for _ in range(200))])
    arguments = map(str, (jobs, full, tmp_path / "out", tmp_path / "full" / "out"))
    environment = os.environ | of_its_own(ray_folder) | {"RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", DEADLY, *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "stopped: disk: it is full; empty it\n" in done.stdout and "still there: True\n" in done.stdout
    found = {row["id"]: row for row in map(json.loads, (tmp_path / "out" / RESULTS).read_text().splitlines())}
    assert len(found) == 10 and found["deadly"]["error"] == f"ray: {DEATHS} workers died at this row"
    assert found["bad"]["error"].startswith("mask bad.png")
    assert sorted(name for name, row in found.items() if "error" not in row) == [row["id"] for row in rows[:8]]
    (tmp_path / "alone").mkdir()
    list(run_jobs(pipeline, write(tmp_path, rows[:8]), tmp_path / "alone"))
    assert images(tmp_path / "out") == images(tmp_path / "alone")
    assert len(images(tmp_path / "full" / "out")) < 100


def test_a_worker_tells_outcomes_and_errors(pipeline, rows, tmp_path, monkeypatch):
    work = prepare(pipeline, write(tmp_path, rows[:1]), tmp_path / "out")
    worker = RayWorker(pickle.dumps(pipeline), work)
    batch = {"job": [pickle.dumps(work.jobs[0])]}
    with own_folder(work.out, work.own.name):
        before = list(work.own.iterdir())
        (outcome,) = map(pickle.loads, worker(batch)["told"])
        assert isinstance(outcome, Outcome) and outcome.id == "i00" and list(work.own.iterdir()) == before

    (error,) = map(pickle.loads, worker(batch)["told"])
    assert isinstance(error, OutOfResource) and "No such file" in str(error)


def test_a_worker_that_cannot_load_tells_it(pipeline, rows, tmp_path, bundle_copy):
    work = prepare(pipeline, write(tmp_path, rows[:1]), tmp_path / "out")
    elsewhere = pickle.dumps(type(pipeline).from_pretrained(bundle_copy))
    (bundle_copy / "weights.safetensors").unlink()
    with own_folder(work.out, work.own.name):
        (error,) = map(pickle.loads, RayWorker(elsewhere, work)({"job": [pickle.dumps(work.jobs[0])]})["told"])
    assert isinstance(error, CdiffError) and error.exit_code == 4 and "weights.safetensors is missing" in str(error)


@pytest.mark.parametrize("workers", [0, -1, 100_000])
def test_a_number_of_workers_that_is_none_is_refused(workers, pipeline, rows, tmp_path):
    with pytest.raises(BadRequest, match=f"^workers: {workers} is outside"):
        run_on_ray(pipeline, write(tmp_path, rows), tmp_path / "out", workers)
    assert not (tmp_path / "out").exists()


def test_without_ray_there_is_a_remedy(pipeline, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    work = prepare(pipeline, write(tmp_path, rows), tmp_path / "out")
    with pytest.raises(BadEnvironment, match=r"ray is not installed; run `pip install '\.\[ray\]'`"):
        run(work, pipeline, 2)
    result = run_command("generate", "--jobs", tmp_path / "jobs.jsonl", "--out", tmp_path / "out", "--ray", 2)
    check_refused(result, 5, "ray is not installed")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "localhost", "127.0.0.1:99999", "a:b:c"])
def test_an_address_where_nothing_answers_is_exit_code_5_at_once(address, rows, tmp_path):
    arguments = ["--jobs", write(tmp_path, rows), "--out", tmp_path / "out", "--ray", 2, "--ray-address", address]
    check_refused(run_command("generate", *arguments), 5, f"nothing answers at {address!r}", "`ray start`")
    assert not (tmp_path / "out").exists()


def test_nothing_to_do_starts_no_ray(pipeline, rows, tmp_path, monkeypatch):
    jobs, out = write(tmp_path, rows[:1]), tmp_path / "out"
    list(run_jobs(pipeline, jobs, out))
    monkeypatch.setattr("ray.init", None)
    assert list(run_on_ray(pipeline, jobs, out, resume=True)) == []


def test_a_pipeline_is_the_same_elsewhere_and_opens_its_bundle_anew(pipeline, bundle_copy):
    again = pickle.loads(pickle.dumps(pipeline))
    assert again.identity() == pipeline.identity() and again.manifest == pipeline.manifest
    pickled = pickle.dumps(type(pipeline).from_pretrained(bundle_copy))
    with (bundle_copy / "vocab.txt").open("a") as file:
        file.write("x")
    with pytest.raises(CdiffError, match="was altered"):
        pickle.loads(pickled)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--text", TEXT, "--ray", 2], "--ray goes with --jobs"),
        (["--jobs", "jobs.jsonl", "--ray", 0], "'--ray': 0"),
        (["--jobs", "jobs.jsonl", "--ray-address", "auto"], "--ray-address goes with --ray"),
    ],
    ids=str,
)
def test_options_of_ray_that_make_no_sense_are_exit_code_2(options, words, tmp_path):
    check_refused(run_command("generate", *options, "--out", tmp_path / "out"), 2, words)
