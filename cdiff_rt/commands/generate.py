"""`cdiff-rt generate`: images from conditions, one request or a file of them."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from cdiff_rt.commands.options import (
    CONDITIONS,
    MANY,
    MODEL,
    PATH,
    PRECISIONS,
    GroupedCommand,
    all_conditions,
    backend_option,
    chosen_settings,
    condition_options,
    given,
    model_option,
    option,
    output_options,
    settings,
)
from cdiff_rt.commands.terminal import Progress, follow, save
from cdiff_rt.settings import OUTPUT, Influence, Settings

WITH_JOBS = ("resume", "shard", "workers", "ray_address")
ALSO_WITH_JOBS = ("jobs", "out", "backend", "precision", "whole_step", "model", "force")


@click.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt generate --mask examples/1.png --text "This man has a long beard." --out man.png
  cdiff-rt generate --mask examples/1.png --batch 4 --seed 7 --out faces/
  cdiff-rt generate --text "The woman is in her seventies." --out woman.png --save-influence
  cdiff-rt generate --jobs jobs.jsonl --out faces/ --resume""",
)
@condition_options
@option(CONDITIONS, "--inpaint", "Keep a part of this photo, which --keep names.", type=PATH)
@option(CONDITIONS, "--keep", "Keep what is white in this black and white PNG.", type=PATH)
@settings()
@output_options
@option(OUTPUT, "--save-trajectory", "Also write x_t and the predictions of each step.", is_flag=True)
@option(OUTPUT, "--save-overlay", "Also write the image with the mask laid over it.", is_flag=True)
@model_option
@backend_option
@option(MODEL, "--precision", "Compute in this. Default: the backend's.", type=click.Choice(PRECISIONS))
@option(MODEL, "--whole-step", "Take one engine for the whole step (docs/gpu.md).", is_flag=True)
@option(MANY, "--jobs", "Make an image for each row of this JSON Lines file (docs/jobs.md).", type=PATH)
@option(MANY, "--resume", "Leave out the rows whose image is there and still holds.", is_flag=True)
@option(MANY, "--shard", "Take every N-th row, from row I on.", metavar="I/N", default="1/1")
@option(MANY, "--ray", "workers", "Run on this many processes of Ray Data.", type=click.IntRange(1))
@option(MANY, "--ray-address", "Run on the Ray cluster at this address, or auto.", metavar="ADDRESS")
def generate(
    mask: Path | None,
    text: str | None,
    others: tuple[str, ...],
    out: Path,
    inpaint: Path | None,
    keep: Path | None,
    jobs: Path | None,
    force: bool,
    scale: int,
    **options: Any,
) -> None:
    """Make faces from a mask, a sentence, or both."""
    check_jobs(jobs)
    load = loader(**{name: options.pop(name) for name in ("model", "backend", "precision", "whole_step")})
    many = {name: options.pop(name) for name in WITH_JOBS}
    if jobs:
        return run_jobs(load, jobs, out, force=force, **many)
    changed = chosen_settings(options)
    conditions = all_conditions({"mask": mask, "text": text}, others)
    if (inpaint is None) != (keep is None):
        raise click.UsageError("--inpaint and --keep go together")
    saving = {name: options[f"save_{name}"] for name in ("influence", "trajectory", "latent", "overlay")}
    one_request(load, changed, conditions, inpaint, keep, out, saving, force=force, scale=scale)


def loader(**arguments: Any) -> Callable[[], Any]:
    from cdiff_rt.pipeline import Pipeline

    return partial(Pipeline.from_pretrained, **arguments)


def one_request(
    load: Callable[[], Any],
    changed: dict[str, Any],
    conditions: dict[str, Any],
    inpaint: Path | None,
    keep: Path | None,
    out: Path,
    saving: dict[str, bool],
    *,
    force: bool,
    scale: int,
) -> None:
    """Images of one request, recorded and saved as asked for."""
    from cdiff_rt.inputs.inpainting import Inpainting
    from cdiff_rt.outputs.generated import Beside, output_paths
    from cdiff_rt.outputs.influence import InfluenceRecorder
    from cdiff_rt.outputs.trajectory import TrajectoryRecorder
    from cdiff_rt.sampling.loop import StepState

    usual = Settings().amended(changed, Influence())
    kinds = [kind for kind in (InfluenceRecorder, TrajectoryRecorder) if saving.pop(kind.suffix[1:])]
    if out.suffix != ".npz":  # before the model loads; what it writes, unless its latents are the data
        output_paths(out, usual.seed, usual.numbers, beside=Beside(tuple(kinds), **saving), force=force)
    pipeline = load()
    with ExitStack() as stack:
        recorders = [stack.enter_context(kind(out, pipeline.decode)) for kind in kinds]
        with Progress(usual.sampling().steps, "denoising") as progress:

            def after_step(state: StepState) -> None:
                progress()
                for recorder in recorders:
                    recorder(state)

            result = pipeline.generate(
                conditions=conditions,
                inpaint=Inpainting(inpaint, keep) if inpaint and keep else None,
                callback_on_step_end=after_step,
                **changed,
            )
        save(result, out, recorders, force=force, scale=scale, **saving)


def check_jobs(jobs: Path | None) -> None:
    """Options that are a row's affair, or that only a file of rows gives a meaning to."""
    ours = [str(parameter.name) for parameter in click.get_current_context().command.params]
    if jobs and (stray := given(name for name in ours if name not in (*WITH_JOBS, *ALSO_WITH_JOBS))):
        raise click.UsageError(f"{stray} does not go with --jobs; what differs by image stands in its rows")
    if not jobs and (stray := given(WITH_JOBS)):
        raise click.UsageError(f"{stray} goes with --jobs")
    if given(("ray_address",)) and not given(("workers",)):
        raise click.UsageError("--ray-address goes with --ray")


def run_jobs(
    load: Callable[[], Any],
    jobs: Path,
    out: Path,
    *,
    shard: str,
    resume: bool,
    force: bool,
    workers: int | None,
    ray_address: str | None,
) -> None:
    """A file of jobs, on this process or on `workers` of Ray Data."""
    from cdiff_rt.jobs import on_ray
    from cdiff_rt.jobs import run as many

    work = many.prepare(pipeline := load(), jobs, out, shard=shard, resume=resume, force=force)
    follow(work, on_ray.run(work, pipeline, workers, ray_address) if workers else many.run(work, pipeline))
