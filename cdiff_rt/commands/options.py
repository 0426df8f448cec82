"""What stands on the command line: conditions by name, and options that contradict each other."""

from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import click


def given(names: Iterable[str]) -> str | None:
    """The first of these parameters that stands on the command line, as it is written there."""
    context = click.get_current_context()
    written = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    found = (n for n in names if context.get_parameter_source(n) is click.core.ParameterSource.COMMANDLINE)
    return next((written[name] for name in found), None)


def all_conditions(named: dict[str, Any], others: tuple[str, ...]) -> dict[str, Any]:
    """The conditions by name; `others` are written NAME=VALUE."""
    conditions = {name: value for name, value in named.items() if value is not None}
    for other in others:
        name, equals, value = other.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"--condition {other!r}: write NAME=VALUE")
        if name in conditions:
            raise click.UsageError(f"--condition {name}: it is given twice")
        conditions[name] = value
    return conditions


def check_export(checkpoints: bool, out: Path | None, model: str | None, target: str | None) -> None:
    """Options that contradict each other, or would be ignored in silence."""
    if not (checkpoints and out and not model or model and target and not checkpoints and not out):
        raise click.UsageError("give --checkpoint and --out, or --model and --target")
    if out and out.suffix == ".safetensors" and target:
        raise click.UsageError("--target needs a bundle: name a folder as --out")
    stray = None if target else given(("compute_capability", "engine_precision", "engine_batch", "whole_step"))
    if stray:
        raise click.UsageError(f"{stray} goes with --target")
    stray = given(("precision", "diffuser_input", "freeu", "head_multiple")) if model else None
    if stray:
        raise click.UsageError(f"{stray} goes with --checkpoint")


def check_method(method: str, strip: bool, count: int) -> None:
    """Options that would be ignored in silence, or that contradict each other."""
    saving = given(("save_influence", "save_latent"))
    if strip and saving:
        raise click.UsageError("a strip of images is one file: name a folder as --out to save more")
    if method == "imagic" and count > 1 and saving == "--save-influence":
        raise click.UsageError("--save-influence goes with one of --alphas for imagic, which is a run for each")
    wrong = (
        ("work", "iterations") if method != "imagic" else ("source_mask", "source_text", "sources", "strength", "keep")
    )
    if stray := given(wrong):
        raise click.UsageError(f"{stray} does not go with --method {method}")


WITH_JOBS = ("resume", "shard", "workers", "ray_address")
ALSO_WITH_JOBS = ("jobs", "out", "backend", "precision", "whole_step", "model", "force")


Decorator = Callable[[Callable], Callable]
PATH = click.Path(path_type=Path)


def _together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which --help lists them."""

    def decorate(command: Callable) -> Callable:
        return reduce(lambda made, option: option(made), reversed(options), command)

    return decorate


# Those of `generate` for many images.
jobs_options = _together(
    click.option("--jobs", type=PATH, help="Many images: a JSON Lines file, a row for each."),
    click.option("--resume", is_flag=True, help="Go on with --jobs: what is there and holds is not made again."),
    click.option("--shard", metavar="I/N", default="1/1", help="Of --jobs: every N-th row, from row I on."),
    click.option("--ray", "workers", type=click.IntRange(1), help="Run --jobs on so many processes of Ray Data."),
    click.option("--ray-address", metavar="ADDRESS", help="For --ray: of a cluster that runs, or auto."),
)

# The library's own, which would take a tenth of a second to import; a test compares them.
TIERS, SOLVERS, DECAYS = ("exact", "fast", "turbo"), ("ddim", "dpmpp-2m", "dpmpp-2m-sde"), ("none", "linear", "cosine")
# Those of `generate` about the sampler and the influence functions.
sampling_options = _together(
    click.option("--tier", type=click.Choice(TIERS), help="Solver and steps at once. Default: exact."),
    click.option("--solver", type=click.Choice(SOLVERS), help="Instead of a tier. Default: ddim."),
    click.option("--steps", type=int, help="Denoising steps, instead of a tier. Default: 50."),
    click.option("--eta", type=float, help="DDIM's: 1 adds noise at each step, 0 none. Default: 1."),
    click.option("--temperature", type=float, help="Of the noise that steps add. Default: 1."),
    click.option("--decay", type=click.Choice(DECAYS), help="How the mask's influence fades. Default: the model's."),
    click.option("--factor", type=float, help="Then multiplies the mask's influence. Default: the model's."),
    click.option("--sharpness", type=float, help="Of the softmax over modalities. Default: the model's."),
    click.option("--boost", type=float, help="Of a second softmax over the influence. Default: the model's."),
)

# Those of `bench` that are about time alone.
timing_options = _together(
    click.option("--suite", type=click.Choice(("cpu", "gpu")), default="cpu", show_default=True, help="What is timed."),
    click.option(
        "--what",
        type=click.Choice(("image", "step", "start")),
        default="image",
        show_default=True,
        help="A whole image, one fused step, or the command's start.",
    ),
    click.option(
        "--precision",
        "precisions",
        type=click.Choice(("fp32", "bf16", "fp16")),
        multiple=True,
        help="Only those cases. Default: all that work here.",
    ),
    click.option(
        "--batch", "batches", type=int, multiple=True, help="Images at a time. Default: 1; on a GPU 1, 2, 4 and 8."
    ),
    click.option(
        "--repeats",
        type=click.IntRange(min=3),
        default=10,
        show_default=True,
        help="Counted runs of each case; more until each has taken 3 seconds.",
    ),
    click.option("--after", type=click.IntRange(min=2), help="Take the accuracy also after so many steps."),
    click.option("--pairwise", is_flag=True, help="Hold two cases at a time in memory, the first with each other one."),
    click.option("--csv", "csv_file", type=PATH, help="Also write a row per case to this file."),
    click.option("--plot", type=PATH, help="Also draw the times, as .svg."),
    click.option("--compare", type=PATH, help="Also compare with what --json wrote before."),
)


def check_jobs(jobs: Path | None) -> None:
    """Options that are a row's affair, or that only a file of rows gives a meaning to."""
    ours = [str(parameter.name) for parameter in click.get_current_context().command.params]
    if jobs and (stray := given(name for name in ours if name not in (*WITH_JOBS, *ALSO_WITH_JOBS))):
        raise click.UsageError(f"{stray} does not go with --jobs; what differs by image stands in its rows")
    if not jobs and (stray := given(WITH_JOBS)):
        raise click.UsageError(f"{stray} goes with --jobs")
    if given(("ray_address",)) and not given(("workers",)):
        raise click.UsageError("--ray-address goes with --ray")


def check_bench(tiers: tuple[str, ...]) -> str:
    """Which measurement is asked for. Options of another one would be ignored in silence."""
    asked = [name for name in ("budget", "quality", "drift") if given((name,))]
    if len(asked) > 1:
        raise click.UsageError(f"--{asked[0]} and --{asked[1]} are two measurements")
    measurement = asked[0] if asked else "time"
    timing = ("suite", "batches", "repeats", "what", "precisions", "after", "pairwise", "csv_file", "plot", "compare")
    if stray := given(timing if asked else ("images", "pairs")):
        why = f"does not go with --{measurement}" if asked else "goes with --quality"
        raise click.UsageError(f"{stray} {why}")
    if measurement != "quality" and (stray := given(("images",))):
        raise click.UsageError(f"{stray} goes with --quality")
    if measurement == "budget" and (stray := given(("pairs", "tiers", "solver"))):
        raise click.UsageError(f"{stray} does not go with --budget")
    if asked and len(tiers) > 1:
        raise click.UsageError(f"--tier: --{measurement} takes one at a time")
    return measurement
