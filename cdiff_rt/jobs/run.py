"""The jobs' images and what became of each, on disk: whatever ends a run, the next one goes on where it was.

An image appears whole, and a line of the results after it. So what has a line has an image; an image without one is
made again, and is the same.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from cdiff_rt import schema
from cdiff_rt.errors import BadEnvironment, BadRequest, CdiffError, OutOfResource, as_told, check_type
from cdiff_rt.jobs.file import Job, read_jobs
from cdiff_rt.manifest import sha256
from cdiff_rt.outputs import files
from cdiff_rt.outputs.files import disk_errors
from cdiff_rt.outputs.generated import IMAGE, LATENT, Beside, check_is_folder
from cdiff_rt.pipeline import Pipeline

MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class Shard:
    """Every `count`-th row, from row `index` on, which is 1 for the first."""

    index: int = 1
    count: int = 1

    def of(self, jobs: list[Job]) -> list[Job]:
        return jobs[self.index - 1 :: self.count]

    @classmethod
    def read(cls, text: str) -> "Shard":
        """From "i/n". Raises BadRequest."""
        check_type("shard", text, str, "write i/n, from 1/n to n/n")
        parts = [int(part) for part in text.split("/") if re.fullmatch("[0-9]{1,9}", part)]
        if len(parts) != 2 or text.count("/") != 1 or not 1 <= parts[0] <= parts[1] <= MOST_SHARDS:
            raise BadRequest("shard", repr(text), "write i/n, from 1/n to n/n")
        return cls(*parts)


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a line of the results. It has an image's file, or an error."""

    id: str
    seed: int
    seconds: float
    file: str | None = None
    sha256: str | None = None  # of the file
    request: str | None = None  # see Job.request
    error: str | None = None
    warnings: tuple[str, ...] = ()

    def line(self) -> bytes:
        told = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        return json.dumps(told).encode() + b"\n"


@dataclass(frozen=True)
class Assignment:
    """What one run has to do, and where."""

    out: Path
    shard: Shard
    suffix: str  # of the images
    jobs: list[Job] = field(default_factory=list)
    kept: list[Outcome] = field(default_factory=list)  # of jobs that were done before
    seen: tuple[int, ...] = ()  # what `stamp` was when that was read

    @property
    def results(self) -> Path:
        return self.out / f"results-{self.shard.index}-of-{self.shard.count}.jsonl"

    @property
    def own(self) -> Path:
        """Where workers note what they begin. It is there as long as the run that it belongs to."""
        return self.out / files.PLACE / self.results.stem

    def file(self, job: Job) -> Path:
        return self.out / f"{job.id}{self.suffix}"


class How(TypedDict, total=False):
    """What else a run of jobs is told."""

    shard: str  # "i/n": every n-th row from row i on
    resume: bool
    force: bool


def run_jobs(pipeline: Pipeline, jobs: str | Path, out: str | Path, **how: Unpack[How]) -> Iterator[Outcome]:
    """Makes the image of each row of the file `jobs`, see file.py, into the folder `out`; yields what became of it.

    All rows are checked before this returns, and nothing is written before the first outcome is asked for. A row's
    image is the same as by `Pipeline.generate`, in any shard; shard "2/8" is every eighth row from the second on. With
    `resume`, rows whose image is there and follows from the same request are left out, and without results to resume
    it is a first run. Raises BadInput for a bad file, BadRequest if something exists and neither `resume` nor `force`
    is set, and OutOfResource when the disk is full.
    """
    return run(prepare(pipeline, jobs, out, **how), pipeline)


def run(work: Assignment, pipeline: Pipeline) -> Iterator[Outcome]:
    return write_outcomes(work, (make(pipeline, job, work) for job in work.jobs))


def prepare(
    pipeline: Pipeline,
    jobs: str | Path,
    out: str | Path,
    *,
    shard: str = "1/1",
    resume: bool = False,
    force: bool = False,
) -> Assignment:
    """Writes nothing. Raises as `run_jobs`."""
    if resume and force:
        raise BadRequest("resume", "it is set, and so is force", "leave either out")
    for name, value in {"jobs": jobs, "out": out}.items():
        check_type(name, value, str | Path, "give a path")
    manifest, folder = pipeline.manifest, Path(out)
    if not out:
        raise BadRequest("out", "it is empty", "give a folder")
    check_is_folder(folder)
    files.check_names(folder / "results")
    files.check_folder(folder)
    work = Assignment(folder, Shard.read(shard), IMAGE if manifest.image_size else LATENT)
    work = replace(work, seen=stamp(work.results))
    todo = work.shard.of(read_jobs(Path(jobs), manifest))
    _check_split(work)
    kept = _kept(work, todo, pipeline.identity()) if resume and work.results.exists() else None
    if kept is None:
        _check_free(work, todo, force)
    return replace(work, jobs=[job for job in todo if job.id not in (kept or {})], kept=list((kept or {}).values()))


def _kept(work: Assignment, todo: list[Job], identity: dict) -> dict[str, Outcome]:
    with disk_errors(f"reading {work.out}"):
        before = read_results(work.results)
        return {
            job.id: before[job.id] for job in todo if job.id in before and _holds(before[job.id], job, work, identity)
        }


def _check_free(work: Assignment, todo: list[Job], force: bool) -> None:
    if work.results.exists() and not force:
        remedy = "go on with --resume, choose another folder, or overwrite it with --force"
        raise BadRequest("out", f"{work.results} exists", remedy)
    for path in map(work.file, todo):
        Beside().check(path, force=force)


def _check_split(work: Assignment) -> None:
    """Raises BadRequest for results of another split: rows would be in two files."""
    for path in work.out.glob("results-*-of-*.jsonl"):
        if not path.stem.endswith(f"-of-{work.shard.count}"):
            remedy = "take the same number of shards, or another folder"
            raise BadRequest("shard", f"{work.out} has {path.name}, of another split", remedy)


def read_results(path: Path) -> dict[str, Outcome]:
    """By id. A line that is not whole is left out: its run ended there."""
    found = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            outcome = schema.from_json(Outcome, json.loads(line), "line")
        except (ValueError, TypeError):
            continue
        found[outcome.id] = outcome
    return found


def stamp(path: Path) -> tuple[int, ...]:
    """Another one after every change of a file; empty if there is none."""
    try:
        about = path.stat()
    except OSError:
        return ()
    return about.st_ino, about.st_size, about.st_mtime_ns


def _holds(outcome: Outcome, job: Job, work: Assignment, identity: dict) -> bool:
    """Whether the image is there, as it was written, and would be the same today."""
    path = work.file(job)
    try:
        there = outcome.file == path.name and path.is_file() and sha256(path) == outcome.sha256
        return there and outcome.request == job.request(identity)
    except (OSError, CdiffError):  # making it again will tell
        return False


def make(pipeline: Pipeline, job: Job, work: Assignment) -> Outcome:
    """Writes the image of one job, in place of an older one; what is wrong with this row only is its outcome."""
    began, path = time.perf_counter(), work.file(job)
    told: dict[str, Any] = {}
    try:
        request = job.request(pipeline.identity())
        result = pipeline.generate(job.settings, conditions=job.conditions)
        result.save(path, force=True)
        told = {"file": path.name, "sha256": sha256(path), "request": request, "warnings": tuple(result.warnings)}
    except Exception as error:
        reason = as_told(error)
        if isinstance(reason, OutOfResource | BadEnvironment):  # which other rows share
            raise reason from error
        told = {"error": str(reason)}
        with suppress(OSError):  # one that stays is of another request, and no line names it
            path.unlink(missing_ok=True)
    return Outcome(job.id, job.settings.seed, round(time.perf_counter() - began, 3), **told)


def write_outcomes(work: Assignment, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Appends each to the results as it comes, and passes it on. Raises BadRequest if another run does so too."""
    with ExitStack() as stack:
        with disk_errors(f"writing {work.results}"):
            stack.enter_context(files.own_folder(work.out, work.own.name))
            _begin(work)
        for outcome in outcomes:
            with disk_errors(f"writing {work.results}"), work.results.open("ab") as file:
                file.write(outcome.line())
            yield outcome


def _begin(work: Assignment) -> None:
    """Begins the results with the lines that still hold, unless another run wrote some since they were read."""
    if stamp(work.results) != work.seen:
        raise BadRequest("out", f"another run wrote {work.results} meanwhile", "go on with --resume")
    with files.all_or_nothing(work.results) as new:
        (new / work.results.name).write_bytes(b"".join(outcome.line() for outcome in work.kept))
