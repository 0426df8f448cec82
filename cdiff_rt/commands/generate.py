"""`cdiff-rt generate`: images from conditions, one request or a file of them."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from cdiff_rt.commands.options import (
    ARRANGEMENTS,
    CONDITIONS,
    MANY,
    MODEL,
    OUTPUT,
    PATH,
    GroupedCommand,
    backend_option,
    chosen_settings,
    condition_options,
    conditions_of,
    device_option,
    experts_of,
    given,
    model_option,
    option,
    output_options,
    precision_option,
    settings,
    threads_option,
    with_option,
)
from cdiff_rt.commands.terminal import Progress, follow, resumable, save
from cdiff_rt.settings import Settings

WITH_JOBS = ("resume", "shard", "workers", "ray_address")
NOT_WITH_JOBS = ("batch", "inpaint", "keep")


@click.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt generate --mask examples/1.png --text "This man has a long beard." --out man.png
  cdiff-rt generate --mask examples/1.png --batch 4 --seed 7 --out faces/
  cdiff-rt generate --mask examples/4.png --text "She is in her seventies." --out woman.png --save-influence
  cdiff-rt generate --jobs jobs.jsonl --out faces/ --resume""",
)
@condition_options
@option(CONDITIONS, "--inpaint", "Keep part of this picture and repaint the rest; --keep says which part.", type=PATH)
@option(CONDITIONS, "--keep", "Keep the white part of the --inpaint picture: a PNG of pure black and white.", type=PATH)
@settings()
@output_options
@option(
    OUTPUT,
    "--save-trajectory",
    "Write x_t (the noisy latent) and the predictions of every step to NAME.trajectory/.",
    is_flag=True,
)
@option(OUTPUT, "--save-overlay", "Write the image with its mask laid over it to NAME.overlay.png.", is_flag=True)
@model_option
@with_option
@backend_option
@precision_option
@threads_option
@option(
    MODEL,
    "--experts",
    "Run a step's experts as separate engines, stacked as one, or the whole step as one; on a GPU (docs/gpu.md).",
    type=click.Choice(ARRANGEMENTS),
    default="separate",
)
@device_option
@option(
    MANY,
    "--jobs",
    "Make an image for each row of this JSON Lines or CSV file; other options are what rows leave out (docs/jobs.md).",
    type=PATH,
)
@option(MANY, "--resume", "Skip the rows whose image exists and is up to date.", is_flag=True)
@option(MANY, "--shard", "Make only every N-th row, starting from row I, e.g. 2/8.", metavar="I/N", default="1/1")
@option(MANY, "--ray", "workers", "Run on this many Ray workers; needs `pip install '.[ray]'`.", type=click.IntRange(1))
@option(
    MANY,
    "--ray-address",
    "Connect to the Ray cluster at this address, or auto to find one; needs --ray.",
    metavar="ADDRESS",
)
def generate(jobs: Path | None, **options: Any) -> None:
    """Make faces from a mask, a sentence, or both."""
    check_jobs(jobs)
    conditions, changed = conditions_of(options), chosen_settings(options)
    opened = {name: options.pop(name) for name in ("model", "backend", "precision", "experts", "threads", "device")}
    opened["with_experts"] = experts_of(options)
    many = {name: options.pop(name) for name in WITH_JOBS}
    if jobs:
        how = {"defaults": conditions | changed} | {name: many.pop(name) for name in ("resume", "shard")}
        return run_jobs(opened, jobs, how | {"force": options.pop("force")}, **many, **options)
    if (options["inpaint"] is None) != (options["keep"] is None):
        raise click.UsageError("--inpaint and --keep go together")
    one_request(opened, changed, conditions, **options)


def one_request(
    opened: dict[str, Any],
    changed: dict[str, Any],
    conditions: dict[str, Any],
    *,
    inpaint: Path | None,
    keep: Path | None,
    out: Path,
    force: bool,
    scale: int,
    embed_inputs: bool,
    **saving: bool,
) -> None:
    """Images of one request, recorded and saved as asked for."""
    from cdiff_rt.errors import BadRequest
    from cdiff_rt.inputs.inpainting import Inpainting
    from cdiff_rt.inputs.modalities import KINDS, chosen_of
    from cdiff_rt.outputs.generated import IMAGE, LATENT, NO_OVERLAY, Beside, output_paths
    from cdiff_rt.pipeline import Pipeline
    from cdiff_rt.sampling.loop import StepState

    usual, kinds = Settings(**changed), recorders_of(saving)
    more = {"latent": saving["save_latent"], "overlay": saving["save_overlay"]}
    if out.suffix != ".npz":  # before the model loads; what it writes, unless its latents are the data
        output_paths(out, usual.seed, usual.numbers, beside=Beside(tuple(kinds), **more), force=force)
    pipeline = Pipeline.from_pretrained(**opened)
    suffix = IMAGE if pipeline.manifest.image_size else LATENT
    output_paths(out, usual.seed, usual.numbers, suffix, Beside(tuple(kinds), **more), force=force)
    chosen = chosen_of(pipeline.manifest, conditions, usual.without)
    if saving["save_overlay"] and not (suffix == IMAGE and any(KINDS[modality.kind].draw for modality in chosen)):
        raise BadRequest(*NO_OVERLAY)
    with ExitStack() as stack:
        recorders = [stack.enter_context(kind(out, pipeline.decode)) for kind in kinds]
        progress = stack.enter_context(Progress(usual.sampling().steps, "denoising"))

        def record(state: StepState) -> None:
            for recorder in recorders:
                recorder(state)

        painted = Inpainting(inpaint, keep) if inpaint and keep else None
        more_of = {"conditions": conditions, "inpaint": painted, **changed}
        result = pipeline.generate(progress=progress, callback_on_step_end=record if recorders else None, **more_of)
        progress.end()
        save(result, out, recorders, force=force, scale=scale, embed=embed_inputs, **more)


def recorders_of(saving: dict[str, bool]) -> list[Any]:
    from cdiff_rt.outputs.influence import InfluenceRecorder
    from cdiff_rt.outputs.trajectory import TrajectoryRecorder

    return [kind for kind in (InfluenceRecorder, TrajectoryRecorder) if saving[f"save_{kind.suffix[1:]}"]]


def check_jobs(jobs: Path | None) -> None:
    """Options that no row can have, or that only a file of rows gives a meaning to."""
    if jobs and (stray := given(NOT_WITH_JOBS)):
        raise click.UsageError(f"{stray} does not go with --jobs, of which each row is one whole image")
    if not jobs and (stray := given(WITH_JOBS)):
        raise click.UsageError(f"{stray} goes with --jobs")
    if given(("ray_address",)) and not given(("workers",)):
        raise click.UsageError("--ray-address goes with --ray")


def run_jobs(
    opened: dict[str, Any],
    jobs: Path,
    how: dict[str, Any],
    *,
    out: Path,
    workers: int | None,
    ray_address: str | None,
    scale: int,
    embed_inputs: bool,
    **saving: bool,
) -> None:
    """A file of jobs, on this process or on `workers` of Ray Data."""
    from cdiff_rt.jobs import assignment, on_ray
    from cdiff_rt.jobs import run as many
    from cdiff_rt.outputs.generated import Beside
    from cdiff_rt.pipeline import Pipeline

    beside = Beside(tuple(recorders_of(saving)), saving["save_latent"], saving["save_overlay"])
    with resumable(how["defaults"].get("seed")):
        pipeline = Pipeline.from_pretrained(**opened)
        work = assignment.prepare(pipeline, jobs, out, beside=beside, scale=scale, embed=embed_inputs, **how)
        follow(work, on_ray.run(work, pipeline, workers, ray_address) if workers else many.run(work, pipeline))
