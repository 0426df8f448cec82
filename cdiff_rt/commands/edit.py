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
from cdiff_rt.commands.terminal import Progress, save
from cdiff_rt.errors import BadEnvironment
from cdiff_rt.settings import Influence, Settings

EDITING = "Editing"
OF_INVERSION, OF_IMAGIC = ("source_mask", "source_text", "sources", "strength", "keep"), ("work", "iterations")


@click.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt edit --image man.png --text "This man has a long beard. He is in his seventies." --out older.png
  cdiff-rt edit --image man.png --mask target.png --text "This man has long red hair." --keep background --out red.png
  cdiff-rt edit --image man.png --source-mask now.png --mask target.png --alphas 0,0.5,1,1.5 --out strip.png""",
)
@option(CONDITIONS, "--image", "Edit this photo: a PNG, JPEG or WebP file.", type=PATH, required=True)
@condition_options
@option(CONDITIONS, "--source-mask", "Say where things are now. Default: read from the image.", type=PATH)
@option(CONDITIONS, "--source-text", "Say what the image shows now. Default: read from the image.")
@option(CONDITIONS, "--source", "sources", "Say by the name of a modality what the image shows now.", **NAMED)
@option(
    EDITING,
    "--method",
    "Walk along the noises that lead to the photo, or train the experts on it, as the paper does.",
    type=click.Choice(("inversion", "imagic")),
    default="inversion",
)
@option(EDITING, "--strength", "Walk this share of the steps.", type=float, default=1.0)
@option(
    EDITING, "--keep", "Keep every pixel of these labels, e.g. background,18; or all.", default="", metavar="LABELS"
)
@option(
    EDITING,
    "--alphas",
    "Make an image at each of these points between what the photo shows, 0, and what it is to show, 1, or beyond.",
    default="1",
)
@option(EDITING, "--work", "Let imagic work in this folder, and go on there.", type=PATH)
@option(
    EDITING,
    "--iterations",
    "Let imagic train for this long, in each of its two stages.",
    type=(int, int),
    default=(500, 1000),
)
@settings("batch", "first")
@output_options
@model_option
@backend_option
def edit(
    image: Path,
    mask: Path | None,
    text: str | None,
    others: tuple[str, ...],
    source_mask: Path | None,
    source_text: str | None,
    sources: tuple[str, ...],
    out: Path,
    alphas: str,
    method: str,
    work: Path | None,
    iterations: tuple[int, int],
    backend: str,
    model: str,
    save_influence: bool,
    save_latent: bool,
    scale: int,
    force: bool,
    **options: Any,
) -> None:
    """Change a portrait to a mask, a sentence, or both.

    It stays the same otherwise. The embedded model knows its own painted portraits only; a photograph of a person is
    beyond it.
    """
    from cdiff_rt.editing import inversion
    from cdiff_rt.editing.reading import reading_for
    from cdiff_rt.outputs.generated import Beside, output_paths
    from cdiff_rt.outputs.influence import InfluenceRecorder
    from cdiff_rt.pipeline import Pipeline

    conditions = all_conditions({"mask": mask, "text": text}, others)
    source = all_conditions({"mask": source_mask, "text": source_text}, sources)
    changed, values = chosen_settings(options), inversion.read_alphas(alphas)
    strip = len(values) > 1 and out.suffix.lower() == ".png"
    check_method(method, strip, len(values))
    wished = Settings().amended(changed, Influence())
    inversion.check(wished, options["strength"], values)
    kinds = (InfluenceRecorder,) if save_influence else ()
    output_paths(out, wished.seed, range(1 if strip else len(values)), beside=Beside(kinds, save_latent), force=force)
    pipeline = Pipeline.from_pretrained(model, backend=backend)
    with ExitStack() as stack:
        recorders = [stack.enter_context(kind(out, pipeline.decode)) for kind in kinds]
        watch = recorders[0] if recorders else None
        if method == "imagic":
            wished = Settings().amended(changed, pipeline.manifest.influence)
            place = work or out.with_suffix(".imagic")
            result = by_imagic(pipeline, image, place, iterations, conditions, wished, values, watch)
        else:
            steps = inversion.calls(wished.sampling().steps, options["strength"])
            with Progress(steps, "editing") as progress:
                result = pipeline.edit(
                    image,
                    conditions=conditions,
                    source=source,
                    read=reading_for(pipeline.manifest.name),
                    alphas=values,
                    progress=progress,
                    callback_on_step_end=watch,
                    **options,
                    **changed,
                )
        inversion.tell_change(result)
        result = inversion.side_by_side(result) if strip else result
        save(result, out, recorders, force=force, latent=save_latent, scale=scale)


def by_imagic(
    pipeline: Any,
    image: Path,
    work: Path,
    iterations: tuple[int, int],
    conditions: dict,
    settings: Settings,
    alphas: list[float],
    watch: Any,
) -> Any:
    try:
        from cdiff_rt.editing import imagic
    except ModuleNotFoundError as error:
        remedy = "run `pip install '.[torch]'` in the checkout"
        raise BadEnvironment("imagic", f"{error.name} is not installed", remedy) from None
    from cdiff_rt.pipeline import Pipeline

    tuning = imagic.Tuning(*iterations, seed=settings.seed)
    with Progress(len(conditions) * tuning.iterations, "tuning") as progress:
        tuned = imagic.tune(pipeline.bundle, pipeline.read_photo(image), conditions, work, tuning, progress)
    generate = Pipeline(tuned.bundle, pipeline.backend).generate
    return imagic.edit(tuned, generate, settings, conditions, alphas=alphas, callback_on_step_end=watch)


def check_method(method: str, strip: bool, count: int) -> None:
    """Options that would be ignored in silence, or that contradict each other."""
    saving = given(("save_influence", "save_latent"))
    if strip and saving:
        raise click.UsageError("a strip of images is one file: name a folder as --out to save more")
    if method == "imagic" and count > 1 and saving == "--save-influence":
        raise click.UsageError("--save-influence goes with one of --alphas for imagic, which is a run for each")
    if stray := given(OF_INVERSION if method == "imagic" else OF_IMAGIC):
        raise click.UsageError(f"{stray} does not go with --method {method}")
