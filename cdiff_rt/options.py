"""What stands on the command line: conditions by name, and options that contradict each other."""

from collections.abc import Callable, Iterable
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
    stray = None if target else given(("compute_capability", "engine_precision", "engine_batch", "fused_step"))
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


def check_fits(measurement: str) -> None:
    """Options of another measurement would be ignored in silence."""
    stray = None if measurement == "time" else given(("suite", "batch", "repeats"))
    if stray:
        raise click.UsageError(f"{stray} does not go with --{measurement}")
    for options, of in ((("images",), ["quality"]), (("pairs", "tier", "solver"), ["quality", "drift"])):
        stray = None if measurement in of else given(options)
        if stray:
            raise click.UsageError(f"{stray} goes with --{' or --'.join(of)}")


WITH_JOBS = ("resume", "shard", "workers", "ray_address")
ALSO_WITH_JOBS = ("jobs", "out", "backend", "precision", "fused_step", "model", "force")


def jobs_options(command: Callable) -> Callable:
    for option in (
        click.option("--ray-address", metavar="ADDRESS", help="For --ray: of a cluster that runs, or auto."),
        click.option("--ray", "workers", type=click.IntRange(1), help="Run --jobs on so many processes of Ray Data."),
        click.option("--shard", metavar="I/N", default="1/1", help="Of --jobs: every N-th row, from row I on."),
        click.option("--resume", is_flag=True, help="Go on with --jobs: what is there and holds is not made again."),
        click.option("--jobs", type=click.Path(path_type=Path), help="Many images: a JSON Lines file, a row for each."),
    ):
        command = option(command)
    return command


def check_jobs(jobs: Path | None) -> None:
    """Options that are a row's affair, or that only a file of rows gives a meaning to."""
    ours = [str(parameter.name) for parameter in click.get_current_context().command.params]
    if jobs and (stray := given(name for name in ours if name not in (*WITH_JOBS, *ALSO_WITH_JOBS))):
        raise click.UsageError(f"{stray} does not go with --jobs; what differs by image stands in its rows")
    if not jobs and (stray := given(WITH_JOBS)):
        raise click.UsageError(f"{stray} goes with --jobs")
    if given(("ray_address",)) and not given(("workers",)):
        raise click.UsageError("--ray-address goes with --ray")
