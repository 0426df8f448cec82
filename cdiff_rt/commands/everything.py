"""The commands. Each parses, calls one function of the library and prints."""

import logging
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from cdiff_rt.commands.options import (
    PATH,
    SOLVERS,
    TIERS,
    all_conditions,
    check_bench,
    check_export,
    check_jobs,
    check_method,
    jobs_options,
    sampling_options,
    timing_options,
)
from cdiff_rt.commands.terminal import Commands, OneLine, Progress, conclude, run_jobs, save
from cdiff_rt.errors import BadEnvironment
from cdiff_rt.version import __version__

ROUNDINGS, PRECISIONS, ENGINE_PRECISIONS = ("truncate", "nearest"), ("fp16", "fp32"), ("fp16", "bf16", "fp32")
BACKEND_HELP = "`cdiff-rt doctor` lists them and says which work here; auto takes the fastest."


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cdiff-rt")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
@click.option("--quiet", "-q", is_flag=True, help="Only warnings, errors and results.")
def main(debug: bool, quiet: bool) -> None:
    """Collaborative diffusion, fast: faces that follow a mask and a sentence."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    log = logging.getLogger("cdiff_rt")
    log.handlers[:] = [handler]
    log.setLevel(logging.WARNING if quiet else logging.INFO)


@main.command(
    epilog="""\b
Examples:
  cdiff-rt generate --mask examples/1.png --text "This man has a long beard." --out man.png
  cdiff-rt generate --mask examples/1.png --batch 4 --seed 7 --out faces/
  cdiff-rt generate --text "The woman is in her seventies." --out woman.png --save-influence
  cdiff-rt generate --jobs jobs.jsonl --out faces/ --resume"""
)
@click.option("--mask", type=PATH, help="Where what is: a PNG of labels 0-18 or of the CelebAMask-HQ colours.")
@click.option("--text", help="What it looks like: age, beard, hair, glasses, smile.")
@click.option("--condition", "others", metavar="NAME=VALUE", multiple=True, help="For a model's other modalities.")
@click.option("--without", metavar="NAME", multiple=True, help="Leave a modality out of the run.")
@click.option("--out", type=PATH, default="out", show_default=True, help="A folder, or one image's .png file.")
@click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds give equal images.")
@click.option("--batch", type=int, default=1, show_default=True, help="How many images of the seed.")
@click.option("--first", type=int, default=0, show_default=True, help="Number of the first of them.")
@sampling_options
@click.option("--inpaint", type=PATH, help="A photo of which --keep is kept.")
@click.option("--keep", type=PATH, help="A black and white PNG: white is kept.")
@click.option("--rounding", type=click.Choice(ROUNDINGS), default="truncate", show_default=True, help="Of pixels.")
@click.option("--backend", default="onnxruntime", show_default=True, help=BACKEND_HELP)
@click.option("--precision", type=click.Choice(ENGINE_PRECISIONS), help="Of the engines. Default: the backend's.")
@click.option("--whole-step", is_flag=True, help="On a GPU: one engine for the whole step, see docs/gpu.md.")
@click.option("--model", default="faces-128", show_default=True, help="An embedded model's name or a bundle's folder.")
@click.option("--save-influence", is_flag=True, help="Also write each condition's influence, step by step.")
@click.option("--save-steps", is_flag=True, help="Also write x_t, the predicted image and each branch, step by step.")
@click.option("--save-latent", is_flag=True, help="Also write the latent, as .npz.")
@click.option("--save-overlay", is_flag=True, help="Also write the image with the mask laid over it.")
@click.option("--force", is_flag=True, help="Overwrite images that exist.")
@jobs_options
def generate(
    mask: Path | None,
    text: str | None,
    others: tuple[str, ...],
    out: Path,
    inpaint: Path | None,
    keep: Path | None,
    backend: str,
    precision: Literal["fp16", "bf16", "fp32"] | None,
    whole_step: bool,
    model: str,
    force: bool,
    jobs: Path | None,
    **options: Any,
) -> None:
    """Make faces from a mask, a sentence, or both."""
    from cdiff_rt.checks import check_numbers
    from cdiff_rt.inputs.inpainting import Inpainting
    from cdiff_rt.outputs.generated import check_free, output_paths
    from cdiff_rt.outputs.influence import InfluenceRecorder
    from cdiff_rt.outputs.recorder import Recorder
    from cdiff_rt.outputs.trajectory import StepsRecorder
    from cdiff_rt.pipeline import Pipeline
    from cdiff_rt.sampling.loop import StepState
    from cdiff_rt.sampling.tiers import sampling

    check_jobs(jobs)
    how = sampling(*(options[name] for name in ("tier", "solver", "steps", "eta", "temperature")))
    load = partial(Pipeline.from_pretrained, model, backend=backend, precision=precision, whole_step=whole_step)
    many = {name: options.pop(name) for name in ("shard", "resume", "workers", "ray_address")}
    if jobs:
        return run_jobs(load, jobs, out, force=force, **many)
    saving = {name: options.pop(f"save_{name}") for name in ("influence", "steps", "latent", "overlay")}
    changed = {name: options.pop(name) for name in ("decay", "factor", "sharpness", "boost")}
    conditions = all_conditions({"mask": mask, "text": text}, others)
    if (inpaint is None) != (keep is None):
        raise click.UsageError("--inpaint and --keep go together")
    numbers = check_numbers(options["seed"], options["first"], options["batch"])
    kinds = [kind for kind in (InfluenceRecorder, StepsRecorder) if saving.pop(kind.suffix[1:])]
    if out.suffix != ".npz":  # before the model loads; what it writes, unless its latents are the data
        check_free(output_paths(out, options["seed"], numbers), recorders=kinds, force=force, **saving)
    pipeline = load()
    asked = {name: value for name, value in changed.items() if value is not None}
    with ExitStack() as stack:
        recorders: list[Recorder] = [stack.enter_context(kind(out, pipeline.decode)) for kind in kinds]
        with Progress(how.steps, "denoising") as progress:

            def after_step(state: StepState) -> None:
                progress()
                for recorder in recorders:
                    recorder(state)

            result = pipeline.generate(
                influence=replace(pipeline.manifest.influence, **asked) if asked else None,
                inpaint=Inpainting(inpaint, keep) if inpaint and keep else None,
                callback_on_step_end=after_step,
                **options,
                **conditions,
            )
        save(result, out, recorders, force=force, **saving)


@main.command(
    epilog="""\b
Examples:
  cdiff-rt edit --image man.png --text "This man has a long beard. He is in his seventies." --out older.png
  cdiff-rt edit --image man.png --mask target.png --text "This man has long red hair." --keep background --out red.png
  cdiff-rt edit --image man.png --source-mask now.png --mask target.png --alphas 0,0.5,1,1.5 --out strip.png"""
)
@click.option("--image", type=PATH, required=True, help="A photo: PNG, JPEG or WebP; its centre square is used.")
@click.option("--mask", type=PATH, help="Where things are to be; as of `generate`.")
@click.option("--text", help="What it is to look like.")
@click.option("--condition", "others", metavar="NAME=VALUE", multiple=True, help="For a model's other modalities.")
@click.option("--source-mask", type=PATH, help="Where things are now. Default: read from the image, if that is known.")
@click.option("--source-text", help="What it looks like now. Default: read from the image, if that is known.")
@click.option("--source", "sources", metavar="NAME=VALUE", multiple=True, help="For a model's other modalities.")
@click.option("--out", type=PATH, default="out", show_default=True, help="A folder, or one image's .png file.")
@click.option("--method", type=click.Choice(("inversion", "imagic")), default="inversion", show_default=True)
@click.option("--work", type=PATH, help="For imagic: its folder, where it goes on. Default: beside --out.")
@click.option(
    "--iterations", type=(int, int), default=(500, 1000), show_default=True, help="For imagic: of each stage."
)
@click.option("--strength", type=float, default=1.0, show_default=True, help="The share of the steps that are walked.")
@click.option("--keep", default="", metavar="REGION", help="Labels that must not change, e.g. background,18; or all.")
@click.option(
    "--alphas", default="1", show_default=True, help="From what it shows, 0, to what it is to show, 1, or on."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds give equal images.")
@click.option("--steps", type=int, default=50, show_default=True, help="Denoising steps of a whole run.")
@click.option("--rounding", type=click.Choice(ROUNDINGS), default="truncate", show_default=True, help="Of pixels.")
@click.option("--backend", default="onnxruntime", show_default=True, help=BACKEND_HELP)
@click.option("--model", default="faces-128", show_default=True, help="An embedded model's name or a bundle's folder.")
@click.option("--save-influence", is_flag=True, help="Also write each condition's influence, step by step.")
@click.option("--save-latent", is_flag=True, help="Also write the latent, as .npz.")
@click.option("--force", is_flag=True, help="Overwrite images that exist.")
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
    force: bool,
    **options: Any,
) -> None:
    """Change a photo to a mask, a sentence, or both, and as little else as possible."""
    from cdiff_rt.editing import inversion
    from cdiff_rt.editing.reading import reading_for
    from cdiff_rt.outputs.generated import check_free, output_paths
    from cdiff_rt.outputs.influence import InfluenceRecorder
    from cdiff_rt.pipeline import Pipeline

    conditions = all_conditions({"mask": mask, "text": text}, others)
    source = all_conditions({"mask": source_mask, "text": source_text}, sources)
    values = inversion.read_alphas(alphas)
    strip = len(values) > 1 and out.suffix.lower() == ".png"
    check_method(method, strip, len(values))
    inversion.check(options["seed"], options["strength"], values, options["rounding"])
    kinds = [InfluenceRecorder] if save_influence else []
    numbers = range(1 if strip else len(values))
    check_free(output_paths(out, options["seed"], numbers), recorders=kinds, force=force, latent=save_latent)
    pipeline = Pipeline.from_pretrained(model, backend=backend)
    with ExitStack() as stack:
        recorders = [stack.enter_context(kind(out, pipeline.decode)) for kind in kinds]
        watch = recorders[0] if recorders else None
        if method == "imagic":
            place = work or out.with_suffix(".imagic")
            more = {name: options[name] for name in ("seed", "steps", "rounding")}
            result = by_imagic(
                pipeline, image, place, iterations, conditions, alphas=values, callback_on_step_end=watch, **more
            )
        else:
            with Progress(inversion.calls(options["steps"], options["strength"]), "editing") as progress:
                more = options | {"source": source, "read": reading_for(pipeline.manifest.name), "progress": progress}
                result = pipeline.edit(image, alphas=values, callback_on_step_end=watch, **more, **conditions)
        inversion.tell_change(result)
        result = inversion.side_by_side(result) if strip else result
        save(result, out, recorders, force=force, latent=save_latent)


def by_imagic(
    pipeline: Any, image: Path, work: Path, iterations: tuple[int, int], conditions: dict, **more: Any
) -> Any:
    try:
        from cdiff_rt.editing import imagic
    except ModuleNotFoundError as error:
        remedy = "run `pip install '.[torch]'` in the checkout"
        raise BadEnvironment("imagic", f"{error.name} is not installed", remedy) from None
    settings = imagic.Settings(*iterations, seed=more["seed"])
    with Progress(len(conditions) * settings.iterations, "tuning") as progress:
        tuned = imagic.tune(pipeline.bundle, pipeline.read_photo(image), conditions, work, settings, progress)
    return imagic.edit(tuned, conditions, backend=pipeline.backend, **more)


@main.command(
    epilog="""\b
Examples:
  cdiff-rt export --checkpoint 512_codiff_mask_text.ckpt --out collaborative-512/
  cdiff-rt export --checkpoint 512_codiff_mask_text.ckpt --checkpoint my_512_text.ckpt --out mine/
  cdiff-rt export --model faces-128 --target tensorrt-rtx"""
)
@click.option(
    "--checkpoint",
    "checkpoints",
    type=PATH,
    multiple=True,
    help="A published checkpoint, or a recipe's. A later one replaces the branch of an earlier one.",
)
@click.option("--out", type=PATH, help="The bundle's folder, or a .safetensors file; must not exist yet.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp16", show_default=True, help="Of the weights.")
@click.option("--diffuser-input", type=click.Choice(("x_t", "prediction")), help="What dynamic diffusers look at.")
@click.option(
    "--freeu", metavar="NAME=B1,B2,S1,S2", multiple=True, help="FreeU on a branch, e.g. text=1.1,1.2,0.9,0.2."
)
@click.option("--head-multiple", type=click.IntRange(1, 64), help="Pad heads. Default: 16 with --target, else 1.")
@click.option("--model", help="Instead of --checkpoint and --out: a bundle that is there, by its name or folder.")
@click.option("--target", type=click.Choice(("tensorrt", "tensorrt-rtx")), help="Also build engines for this backend.")
@click.option(
    "--compute-capability", metavar="8.6,8.9", help="Of their GPUs. Default: this one's; for RTX 8.6,8.9,12.0."
)
@click.option("--engine-precision", type=click.Choice(ENGINE_PRECISIONS), default="fp16", show_default=True)
@click.option(
    "--engine-batch", type=click.IntRange(1), multiple=True, default=(1,), help="Images at a time. Default: 1."
)
@click.option("--whole-step", is_flag=True, help="Also build an engine of the whole step.")
def export(
    checkpoints: tuple[Path, ...],
    out: Path | None,
    freeu: tuple[str, ...],
    head_multiple: int | None,
    model: str | None,
    target: str | None,
    compute_capability: str | None,
    engine_precision: Literal["fp16", "bf16", "fp32"],
    engine_batch: tuple[int, ...],
    whole_step: bool,
    **settings: Any,
) -> None:
    """Turn trained weights into a bundle: ONNX networks, weights, manifest. Or a bundle into engines for GPUs."""
    check_export(bool(checkpoints), out, model, target)
    try:
        from cdiff_rt.export.bundle import export_checkpoint, read_freeu
        from cdiff_rt.export.gpu_engines import build_engines
    except ModuleNotFoundError as error:
        remedy = "run `pip install '.[export]'` in the checkout"
        raise BadEnvironment("export", f"{error.name} is not installed", remedy) from None
    from cdiff_rt.manifest import Bundle
    from cdiff_rt.pipeline import find_model

    if out:
        multiple = head_multiple or (16 if target else 1)
        report = export_checkpoint(checkpoints, out, freeu=read_freeu(freeu), head_multiple=multiple, **settings)
        for network, difference in report.items():
            click.echo(f"{network:20} onnxruntime against torch: relative error {difference:.1e}")
        click.echo(out)
    if target:
        bundle, capabilities = Bundle.open(find_model(model or str(out))), (compute_capability or "").split(",")
        how = {"precision": engine_precision, "batches": engine_batch, "whole_step": whole_step}
        for line in build_engines(bundle, target, [c for c in capabilities if c], **how):  # type: ignore[arg-type]
            click.echo(line)


@main.command(
    epilog="""\b
Examples:
  cdiff-rt bench --repeats 20 --json bench.json --plot bench.svg
  cdiff-rt bench --backend onnxruntime --backend openvino --tier exact --tier fast --batch 1 --batch 4
  cdiff-rt bench --what step --model synthetic-512/ --after 10 --compare before.json
  cdiff-rt bench --quality --pairs 20 --images judged/"""
)
@click.option("--model", default="faces-128", show_default=True, help="An embedded model's name or a bundle's folder.")
@click.option("--backend", "backends", multiple=True, help="Default: all on the CPU; for quality onnxruntime.")
@click.option("--tier", "tiers", type=click.Choice(TIERS), multiple=True, help="Solver and steps. Default: exact.")
@click.option("--solver", type=click.Choice(SOLVERS), help="Instead of a tier.")
@click.option("--steps", type=int, help="Denoising steps of an image, instead of a tier. Default: 50.")
@timing_options
@click.option("--quality", is_flag=True, help="Measure how well images follow their conditions, not the time.")
@click.option("--drift", is_flag=True, help="Measure how far latents drift from the exact ones, not the time.")
@click.option("--pairs", type=click.IntRange(min=2), help="For quality and drift: how many. Default: 200, for drift 5.")
@click.option("--images", type=PATH, help="For quality: also write all images into this folder.")
@click.option("--budget", is_flag=True, help="Count a step's launches, bytes and operations on a GPU; needs none.")
@click.option("--json", "json_file", type=PATH, help="Also write all figures to this file.")
def bench(model: str, backends: tuple[str, ...], tiers: tuple[str, ...], json_file: Path | None, **more: Any) -> None:
    """Time ways of running a model, judge its images, measure their drift, or count a step's work."""
    from cdiff_rt.bench import budget, drift, quality, report
    from cdiff_rt.outputs.files import check_folder
    from cdiff_rt.sampling.tiers import sampling

    measurement = check_bench(tiers)
    samplings = tuple(sampling(tier, more["solver"], more["steps"]) for tier in tiers or (None,))
    for file in filter(None, (json_file, more["csv_file"], more["plot"])):
        check_folder(file.parent)
    if measurement == "budget":
        conclude(budget.count(model), report.budget_table, report.write_budget, json_file)
    elif measurement == "quality":
        found = quality.examine(model, backends, how=samplings[0], pairs=more["pairs"] or 200, images=more["images"])
        conclude(found, report.quality_table, report.write_quality, json_file)
    elif measurement == "drift":
        drifted = drift.measure(model, backends, samplings[0], more["pairs"] or 5)
        conclude(drifted, report.drift_table, report.write_drift, json_file)
    else:
        time_cases(model, backends, samplings, json_file=json_file, **more)


def time_cases(
    model: str, backends: tuple[str, ...], samplings: tuple, *, json_file: Path | None, plot: Path | None, **more: Any
) -> None:
    from cdiff_rt.bench import startup, timings
    from cdiff_rt.bench.latency import compare_suite
    from cdiff_rt.bench.plot import check_suffix, write_plot

    if plot:
        check_suffix(plot)
    old = timings.read_old(more["compare"]) if more["compare"] else None
    settings = {name: more[name] for name in ("precisions", "batches", "repeats", "after", "pairwise")}
    if more["what"] == "start":
        found: Any = [startup.measure(model, more["repeats"])]
    else:
        found = compare_suite(model, more["suite"], more["what"], backends=backends, samplings=samplings, **settings)
    timed = []
    for comparison in found:
        click.echo(timings.table(comparison) + "\n")
        if old:
            click.echo(timings.against(comparison, old) + "\n")
        timed.append(comparison)
    for file, write in ((json_file, timings.write_json), (more["csv_file"], timings.write_csv), (plot, write_plot)):
        if file:
            write(timed, file)


@main.command()
def doctor() -> None:
    """Say what is installed, which backends work, and why others don't."""
    from cdiff_rt.commands.doctor import examine

    rows, healthy = examine()
    for row in rows:
        click.echo(row)
    if not healthy:
        sys.exit(5)


if __name__ == "__main__":
    main()
