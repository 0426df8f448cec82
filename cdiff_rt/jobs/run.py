"""The jobs' images and what became of each, on disk: whatever ends a run, the next one goes on where it was.

An image appears whole, and a line of the results after it. So what has a line has an image; an image without one is
made again, and is the same.
"""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Unpack

from cdiff_rt.errors import BadEnvironment, BadRequest, OutOfResource, as_told
from cdiff_rt.jobs.assignment import Assignment, How, lying_beside, prepare
from cdiff_rt.jobs.results import (
    DATASET,
    TURN,
    Outcome,
    check_idle,
    keep_only,
    results_in,
    stamp,
    write_dataset,
    write_results,
)
from cdiff_rt.jobs.rows import Job
from cdiff_rt.manifest import sha256
from cdiff_rt.outputs import files
from cdiff_rt.outputs.files import disk_errors
from cdiff_rt.outputs.formats import as_json
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.loop import StepState


def run_jobs(pipeline: Pipeline, jobs: str | Path, out: str | Path, **how: Unpack[How]) -> Iterator[Outcome]:
    """Makes the image of each row of the file `jobs`, see file.py, into the folder `out`; yields what became of it.

    All rows are checked before this returns, and nothing is written before the first outcome is asked for. A row's
    image is the same as by `Pipeline.generate`, in any shard; shard "2/8" is every eighth row from the second on. With
    `resume`, rows whose image is there and follows from the same request are left out, whichever shard they were of,
    and without results to resume it is a first run. Raises BadInput for a bad file, BadRequest if something exists and
    neither `resume` nor `force` is set, and OutOfResource when the disk is full.
    """
    return run(prepare(pipeline, jobs, out, **how), pipeline)


def run(work: Assignment, pipeline: Pipeline) -> Iterator[Outcome]:
    return write_outcomes(work, (make(pipeline, job, work) for job in work.jobs))


def make(pipeline: Pipeline, job: Job, work: Assignment) -> Outcome:
    """Writes the image of one job, in place of an older one; what is wrong with this row only is its outcome."""
    began, path = time.perf_counter(), work.file(job)
    told: dict[str, Any] = {}
    try:
        told = {"request": job.request(pipeline.identity() | {"embed": work.embed})}
        told |= _generate(pipeline, job, work)
        told |= {"file": path.name, "sha256": sha256(path)}
        if beside := lying_beside(path, work.beside):
            told |= {"beside": beside, "scale": work.scale}
    except Exception as error:
        reason = as_told(error)
        if isinstance(reason, OutOfResource | BadEnvironment):  # which other rows share
            raise reason from error
        told = {"error": str(reason)}
        with suppress(OSError):  # one that stays is of another request, and no line names it
            path.unlink(missing_ok=True)
    return Outcome(job.id, job.settings.seed, round(time.perf_counter() - began, 3), meta=job.meta, **told)


def _generate(pipeline: Pipeline, job: Job, work: Assignment) -> dict[str, Any]:
    """Makes and writes an image and what lies beside it; what its outcome tells of that."""
    beside = work.beside
    with ExitStack() as stack:
        recorders = [
            stack.enter_context(kind(work.out, pipeline.decode)) for kind in beside.recorders if isinstance(kind, type)
        ]

        def record(state: StepState) -> None:
            for recorder in recorders:
                recorder(state)

        watch = record if recorders else None
        result = pipeline.generate(job.settings, conditions=job.conditions, callback_on_step_end=watch)
        more: dict[str, Any] = {
            "latent": beside.latent,
            "overlay": beside.overlay,
            "scale": work.scale,
            "embed": work.embed,
        }
        result.save(work.file(job), force=True, recorders=recorders, **more)
    parameters = json.loads(as_json(result.parameters | {"image": job.settings.first}))
    return {"parameters": parameters, "warnings": tuple(result.warnings)}


def write_outcomes(work: Assignment, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Appends each to the results as it comes, and passes it on. Raises BadRequest if another run does so too."""
    with ExitStack() as stack:
        with disk_errors(f"writing {work.results}"), files.own_folder(work.out, TURN, files.TURN):
            stack.enter_context(files.own_folder(work.out, work.own.name))
            _begin(work)
        for outcome in outcomes:
            with disk_errors(f"writing {work.results}"), work.results.open("ab") as file:
                file.write(outcome.line())
            yield outcome
        with disk_errors(f"writing {work.out / DATASET}"), files.own_folder(work.out, TURN, files.TURN):
            write_dataset(work.out, work.about, work.makers)


def _begin(work: Assignment) -> None:
    """Begins the results with the lines that still hold, unless another run wrote some since they were read.

    What another split of the rows left of this shard is taken over, or made anew.
    """
    if stamp(work.results) != work.seen:
        raise BadRequest("out", f"another run wrote {work.results} meanwhile", "go on with --resume")
    of_others = results_in(work.out, but=work.shard.count)
    if of_others and not work.anew:
        raise BadRequest("out", f"another run wrote {of_others[0]} meanwhile", "go on with --resume")
    check_idle(of_others)
    (work.out / DATASET).unlink(missing_ok=True)
    write_results(work.results, work.kept)
    for path in of_others:
        keep_only(path, work.elsewhere)
