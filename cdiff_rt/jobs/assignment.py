"""What one run of jobs has to do: which rows are its own, and which of them are done already."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from cdiff_rt.errors import BadRequest, CdiffError, check_range, check_type, whole
from cdiff_rt.inputs.modalities import KINDS
from cdiff_rt.jobs.file import read_jobs
from cdiff_rt.jobs.results import DATASET, Outcome, name_of, read_results, results_in, stamp
from cdiff_rt.jobs.rows import Defaults, Job
from cdiff_rt.manifest import Manifest, sha256
from cdiff_rt.notes import log
from cdiff_rt.outputs import files
from cdiff_rt.outputs.files import disk_errors
from cdiff_rt.outputs.generated import IMAGE, LARGEST_SCALE, LATENT, NO_OVERLAY, OVERLAY, Beside, check_is_folder
from cdiff_rt.pipeline import Pipeline

MOST_SHARDS = 1_000_000
NOTHING = Beside()


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
class Assignment:
    """What one run has to do, and where."""

    out: Path
    shard: Shard
    suffix: str  # of the images
    beside: Beside  # what is written beside each
    scale: int  # of the pictures there
    embed: bool = False  # whether each image holds its inputs
    jobs: list[Job] = field(default_factory=list)
    kept: list[Outcome] = field(default_factory=list)  # of jobs that were done before
    elsewhere: frozenset[str] = frozenset()  # the ids of other shards
    anew: bool = False  # what another split left may be split anew
    about: dict[str, Any] = field(default_factory=dict)  # of the whole set, for its manifest
    makers: tuple[str, ...] = ()  # the parameters that say what made an image
    seen: tuple[int, ...] = ()  # what `stamp` was when the results were read

    @property
    def results(self) -> Path:
        return self.out / name_of(self.shard.index, self.shard.count)

    @property
    def own(self) -> Path:
        """Where workers note what they begin. It is there as long as the run that it belongs to."""
        return self.out / files.PLACE / self.results.stem

    def file(self, job: Job) -> Path:
        return self.out / f"{job.id}{self.suffix}"


class How(TypedDict, total=False):
    """What else a run of jobs is told."""

    defaults: Mapping[str, Any]  # conditions and settings by name, for rows that leave them out
    shard: str  # "i/n": every n-th row from row i on
    resume: bool
    force: bool
    beside: Beside  # what is written beside each image
    scale: int  # of the pictures there
    embed: bool  # whether each image holds its inputs


def prepare(
    pipeline: Pipeline,
    jobs: str | Path,
    out: str | Path,
    *,
    defaults: Mapping[str, Any] | None = None,
    shard: str = "1/1",
    resume: bool = False,
    force: bool = False,
    beside: Beside = NOTHING,
    scale: int = 1,
    embed: bool = False,
) -> Assignment:
    """Writes nothing. Raises as `run_jobs`."""
    if resume and force:
        raise BadRequest("resume", "it is set, and so is force", "leave either out")
    _check_paths(jobs, out)
    check_type("defaults", defaults or {}, Mapping, "give a dict of conditions and settings by name")
    check_range("scale", whole("scale", scale), 1, LARGEST_SCALE)
    manifest, path = pipeline.manifest, Path(jobs)
    suffix = IMAGE if manifest.image_size else LATENT
    work = Assignment(Path(out), Shard.read(shard), suffix, beside, scale, embed, anew=resume or force)
    work = replace(work, seen=stamp(work.results))
    usual = Defaults.read(defaults or {}, manifest)
    rows = read_jobs(path, manifest, usual)
    if beside.overlay:
        _check_overlays(path, rows, manifest)
    todo, going_on = work.shard.of(rows), resume and bool(results_in(work.out))
    kept = _kept(work, todo, pipeline.identity()) if going_on else {}
    if not going_on:
        _check_free(work, todo, force)
    _tell_seeds(rows, usual.settings.get("seed", 0))
    return replace(
        work,
        jobs=[job for job in todo if job.id not in kept],
        kept=list(kept.values()),
        elsewhere=frozenset(job.id for job in rows) - {job.id for job in todo},
        about={"jobs": path.name, "jobs_sha256": sha256(path), "rows": len(rows), "licence": manifest.licence},
        makers=tuple(pipeline.identity()),
    )


def _check_paths(jobs: str | Path, out: str | Path) -> None:
    for name, value in {"jobs": jobs, "out": out}.items():
        check_type(name, value, str | Path, "give a path")
    if not out:
        raise BadRequest("out", "it is empty", "give a folder")
    check_is_folder(Path(out))
    files.check_names(Path(out) / "results")
    files.check_folder(Path(out))


def _check_overlays(path: Path, jobs: list[Job], manifest: Manifest) -> None:
    """Raises BadRequest for a row that has none, or whose overlay would take the place of another row's image."""
    ids = {job.id.casefold(): job for job in jobs}
    drawn = {modality.name for modality in manifest.modalities if KINDS[modality.kind].draw}
    for job in jobs:
        what, seen, remedy = NO_OVERLAY
        other = ids.get(f"{job.id}{OVERLAY}".casefold().removesuffix(IMAGE))
        if other:
            seen, remedy = f"that of {job.id} is called as the image of line {other.line}", "give it another id"
        if other or not drawn & job.conditions.keys() - set(job.settings.without) or not manifest.image_size:
            raise BadRequest(f"{path}, line {job.line}: {what}", seen, remedy)


def _tell_seeds(jobs: list[Job], start: int) -> None:
    if counted := sum(job.counted for job in jobs):
        log.info("jobs: no seed in %d of %d rows; they take their numbers, from %d on", counted, len(jobs), start)


def _kept(work: Assignment, todo: list[Job], identity: dict) -> dict[str, Outcome]:
    """By id, in the order of the rows, what holds of any results."""
    wanted, found = {job.id: job for job in todo}, dict[str, Outcome]()
    with disk_errors(f"reading {work.out}"):
        for outcome in (outcome for path in results_in(work.out) for outcome in read_results(path).values()):
            job = wanted.get(outcome.id)
            if job and job.id not in found and _holds(outcome, job, work, identity):
                found[job.id] = replace(outcome, meta=job.meta)
    return {job.id: found[job.id] for job in todo if job.id in found}


def _check_free(work: Assignment, todo: list[Job], force: bool) -> None:
    of_others = results_in(work.out, but=work.shard.count)
    for path in (work.results, *of_others, *([] if results_in(work.out) else [work.out / DATASET])):
        if path.exists() and not force:
            remedy = "go on with --resume, choose another folder, or overwrite it with --force"
            raise BadRequest("out", f"{path} exists", remedy)
    for path in map(work.file, todo):
        work.beside.check(path, force=force)


def _holds(outcome: Outcome, job: Job, work: Assignment, identity: dict) -> bool:
    """Whether the image and what lies beside it are there, as they were written, and would be the same today."""
    path = work.file(job)
    try:
        there = outcome.file == path.name and path.is_file() and sha256(path) == outcome.sha256
        beside = lying_beside(path, work.beside)
        whole = beside.items() <= outcome.beside.items() and (not beside or outcome.scale == work.scale)
        return there and whole and outcome.request == job.request(identity | {"embed": work.embed})
    except (OSError, CdiffError):  # making it again will tell
        return False


def lying_beside(path: Path, beside: Beside) -> dict[str, str]:
    """Name -> sha256 of each file beside an image; of a folder that of the names and contents of its files."""
    single = [LATENT] * beside.latent + [OVERLAY] * beside.overlay
    found = {target.name: sha256(target) for target in map(path.with_suffix, single)}
    for folder in (recorder.folder_of(path) for recorder in beside.recorders):
        content = "".join(f"{sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir()))
        found[folder.name] = hashlib.sha256(content.encode()).hexdigest()
    return found
