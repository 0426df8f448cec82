"""`cdiff-rt edit`: a photo, changed to other conditions."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from cdiff_rt.commands.options import (
    CONDITIONS,
    NAMED,
    PATH,
    GroupedCommand,
    backend_option,
    chosen_settings,
    condition_options,
    conditions_of,
    experts_of,
    given,
    model_option,
    option,
    output_options,
    settings,
    threads_option,
    with_option,
)
from cdiff_rt.commands.terminal import Progress, save
from cdiff_rt.notes import collected
from cdiff_rt.settings import Settings

EDITING = "Editing"
METHODS, STAGES = click.Choice(("inversion", "imagic")), (500, 1000)
OF_INVERSION, OF_IMAGIC = ("source_mask", "source_text", "source_others", "strength", "keep"), ("work", "iterations")


@click.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt edit --image man.png --text "This man has a long beard. He is in his seventies." --out older.png
  cdiff-rt edit --image man.png --mask target.png --text "This man has long red hair." --keep background --out red.png
  cdiff-rt edit --image man.png --source-mask now.png --mask target.png --alphas 0,0.5,1,1.5 --out strip.png""",
)
@option(CONDITIONS, "--image", "Edit this picture: a PNG, JPEG or WebP file.", type=PATH, required=True)
@condition_options
@option(
    CONDITIONS, "--source-mask", "Give the mask that fits the picture as it is. Default: estimated from it.", type=PATH
)
@option(CONDITIONS, "--source-text", "Give a sentence for the picture as it is. Default: estimated from it.")
@option(
    CONDITIONS,
    "--source",
    "source_others",
    "As --condition, but for the picture as it is, e.g. mask=now.png.",
    **NAMED,
)
@option(
    EDITING,
    "--method",
    "Invert the picture to noise, or train on it (slow; needs torch).",
    type=METHODS,
    default="inversion",
)
@option(EDITING, "--strength", "Edit only this last share of the steps, at most 1.", type=float, default=1.0)
@option(
    EDITING,
    "--keep",
    "Freeze these parts where the old and the new mask agree, e.g. hair,glasses; or all.",
    default="",
    metavar="LABELS",
)
@option(
    EDITING,
    "--alphas",
    "Make an image for each, all in one .png: 0 the input, 1 the edit, above 1 beyond it.",
    default="1",
    metavar="A,A",
)
@option(
    EDITING,
    "--work",
    "With --method imagic, keep its progress in this folder and resume from it. Default: OUT.imagic.",
    type=PATH,
)
@option(
    EDITING,
    "--iterations",
    "Set imagic's training steps for embedding and network.",
    type=(click.IntRange(1), click.IntRange(1)),
    metavar="N N",
    default=STAGES,
)
@settings("batch", "first")
@output_options
@model_option
@with_option
@backend_option
@threads_option
def edit(
    image: Path,
    out: Path,
    alphas: str,
    method: str,
    work: Path | None,
    iterations: tuple[int, int],
    backend: str,
    threads: int | None,
    model: str,
    save_influence: bool,
    save_latent: bool,
    embed_inputs: bool,
    scale: int,
    force: bool,
    **options: Any,
) -> None:
    """Edit a portrait to follow a mask or a sentence.

    The rest changes little; --keep freezes parts. The included model knows its own painted portraits only; a photograph of a person is
    beyond it.
    """
    from cdiff_rt.editing import inversion
    from cdiff_rt.outputs.generated import Beside, output_paths
    from cdiff_rt.outputs.influence import InfluenceRecorder
    from cdiff_rt.pipeline import Pipeline

    conditions, source, added = conditions_of(options), conditions_of(options, "source_"), experts_of(options)
    if not conditions:
        raise click.UsageError("say what the picture is to show: give --mask, --text or --condition")
    changed, values = chosen_settings(options), inversion.read_alphas(alphas)
    strip = len(values) > 1 and out.suffix.lower() == ".png"
    check_method(method, strip, len(values))
    wished = Settings(**changed)
    inversion.check(wished, options["strength"], values)
    kinds = (InfluenceRecorder,) if save_influence else ()
    output_paths(out, wished.seed, range(1 if strip else len(values)), beside=Beside(kinds, save_latent), force=force)
    pipeline = Pipeline.from_pretrained(model, with_experts=added, backend=backend, threads=threads)
    with ExitStack() as stack:
        stack.enter_context(collected())  # for imagic, which reads conditions to learn and again to generate
        recorders = [stack.enter_context(kind(out, pipeline.decode)) for kind in kinds]
        watch = recorders[0] if recorders else None
        if method == "imagic":
            place = work or out.with_name(f"{out.stem or 'edit'}.imagic")
            how = {"alphas": values, "threads": threads, "callback_on_step_end": watch}
            result = by_imagic(pipeline, image, place, iterations, wished, conditions, **how)
        else:
            more = {**options, **changed, "conditions": conditions, "source": source, "alphas": values}
            result = by_inversion(pipeline, image, wished.sampling().steps, callback_on_step_end=watch, **more)
        inversion.tell_change(result)
        result = inversion.side_by_side(result) if strip else result
        save(result, out, recorders, force=force, latent=save_latent, scale=scale, embed=embed_inputs)


def by_inversion(pipeline: Any, image: Path, length: int, *, strength: float, **more: Any) -> Any:
    from cdiff_rt.editing import inversion
    from cdiff_rt.editing.reading import reading_for

    with Progress(inversion.calls(length, strength), "editing") as progress:
        read = reading_for(pipeline.manifest.name)
        return pipeline.edit(image, strength=strength, read=read, progress=progress, **more)


def by_imagic(
    pipeline: Any,
    image: Path,
    work: Path,
    iterations: tuple[int, int],
    settings: Settings,
    conditions: dict,
    **how: Any,
) -> Any:
    from cdiff_rt.extras import needed

    with needed("imagic", "torch"):
        from cdiff_rt.editing.imagic import Tuning
        from cdiff_rt.tuned import edit_by_imagic

    tuning = Tuning(*iterations, seed=settings.seed)
    with Progress(len(conditions) * tuning.iterations, "tuning") as progress:
        return edit_by_imagic(pipeline, image, settings, conditions, work, tuning, progress=progress, **how)


def check_method(method: str, strip: bool, count: int) -> None:
    """Options that would be ignored in silence, or that contradict each other."""
    saving = given(("save_influence", "save_latent"))
    if strip and saving:
        raise click.UsageError("a strip of images is one file: name a folder as --out to save more")
    if method == "imagic" and count > 1 and saving == "--save-influence":
        raise click.UsageError("--save-influence goes with one of --alphas for imagic, which is a run for each")
    if stray := given(OF_INVERSION if method == "imagic" else OF_IMAGIC):
        raise click.UsageError(f"{stray} does not go with --method {method}")
