"""`cdiff-rt bench`: one subcommand for each thing that is measured."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from cdiff_rt.commands.options import (
    PATH,
    PRECISIONS,
    GroupedCommand,
    Late,
    backend_option,
    json_option,
    model_option,
    option,
    setting,
    together,
)
from cdiff_rt.settings import OUTPUT, SAMPLING, SETTINGS

CASES, RUNS = "What is compared", "How it is measured"

own_sampling = together(setting("solver"), setting("steps"))
tiers_option = option(
    "--tier",
    "tiers",
    type=Late(SETTINGS["tier"].metadata["about"].choices),
    multiple=True,
    group=SAMPLING,
    help="Time this tier; may be given several times. Default: exact.",
)
case_options = together(
    option("--backend", "backends", multiple=True, group=CASES, help="Time only this backend; may be repeated."),
    option(
        "--precision",
        "precisions",
        type=click.Choice(PRECISIONS),
        multiple=True,
        group=CASES,
        help="Time only what computes in this precision; may be repeated.",
    ),
    option("--batch", "batches", type=int, multiple=True, group=CASES, help="Make this many images at a time."),
    tiers_option,
    own_sampling,
)
repeats_option = option(
    "--repeats",
    type=click.IntRange(min=3),
    default=10,
    show_default=True,
    group=RUNS,
    help="Count this many runs of each case, and more until each has taken 3 seconds.",
)
accuracy_options = together(
    option("--after", type=click.IntRange(min=2), group=RUNS, help="Also compare latents after this many steps."),
    option("--pairwise", is_flag=True, group=RUNS, help="Hold two cases in memory at a time, not all of them."),
)
figure_options = together(
    json_option,
    option("--csv", "csv_file", type=PATH, group=OUTPUT, help="Also write a row per case to this file."),
    option("--plot", type=PATH, group=OUTPUT, help="Also draw the times into this .svg file."),
    option("--compare", type=PATH, group=OUTPUT, help="Also compare with the figures that --json wrote before."),
)


def pairs(default: int) -> Callable[[Callable], Callable]:
    return option(
        "--pairs",
        type=click.IntRange(min=2),
        default=default,
        show_default=True,
        group=RUNS,
        help="Take this many of the held-out pairs of mask and sentence.",
    )


@click.group()
def bench() -> None:
    """Measure speed, quality, drift, or the work of a step."""


@bench.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt bench time --repeats 20 --json bench.json --plot bench.svg
  cdiff-rt bench time --backend onnxruntime --backend openvino --tier exact --tier fast --batch 1 --batch 4""",
)
@model_option
@option(
    "--suite",
    type=click.Choice(("cpu", "gpu")),
    default="cpu",
    show_default=True,
    group=CASES,
    help="Compare the backends of the CPU, or those of a GPU.",
)
@case_options
@repeats_option
@accuracy_options
@figure_options
def time(**options: Any) -> None:
    """Time whole images, case against case."""
    compare("image", **options)


@bench.command(
    cls=GroupedCommand,
    epilog="""\b
Example:
  cdiff-rt bench step --model synthetic-512/ --after 10 --compare before.json""",
)
@model_option
@case_options
@repeats_option
@accuracy_options
@figure_options
def step(**options: Any) -> None:
    """Time one step: experts, fusion and update."""
    compare("step", suite="cpu", **options)


@bench.command(cls=GroupedCommand)
@model_option
@repeats_option
@figure_options
def start(model: str, repeats: int, **figures: Any) -> None:
    """Time the command itself, from nothing."""
    from cdiff_rt.bench import startup

    tell(lambda: [startup.measure(model, repeats)], **figures)


@bench.command(
    cls=GroupedCommand,
    epilog="""\b
Example:
  cdiff-rt bench quality --pairs 20 --images judged/""",
)
@model_option
@backend_option
@setting("tier")
@own_sampling
@pairs(200)
@option("--images", type=PATH, group=OUTPUT, help="Also write all images into this folder.")
@json_option
def quality(json_file: Path | None, **options: Any) -> None:
    """Judge how well images follow their conditions."""
    from cdiff_rt.bench import quality, report

    check_folders(json_file)
    found = quality.examine(how=one_sampling(options), **options)
    conclude(found, report.quality_table, report.write_quality, json_file)


@bench.command(cls=GroupedCommand)
@model_option
@backend_option
@setting("tier")
@own_sampling
@pairs(5)
@json_option
def drift(json_file: Path | None, **options: Any) -> None:
    """Measure how far latents drift from exact ones."""
    from cdiff_rt.bench import drift, report

    check_folders(json_file)
    conclude(drift.measure(how=one_sampling(options), **options), report.drift_table, report.write_drift, json_file)


@bench.command(cls=GroupedCommand)
@model_option
@json_option
def budget(model: str, json_file: Path | None) -> None:
    """Count the work of a step on a GPU, without one."""
    from cdiff_rt.bench import budget, report

    check_folders(json_file)
    conclude(budget.count(model), report.budget_table, report.write_budget, json_file)


def one_sampling(options: dict[str, Any]) -> Any:
    """Takes it out of a command's options."""
    from cdiff_rt.sampling.tiers import sampling

    return sampling(*(options.pop(name) for name in ("tier", "solver", "steps")))


def compare(what: str, *, json_file: Path | None, csv_file: Path | None, plot: Path | None, **options: Any) -> None:
    """Times the cases of a suite, and says and writes what it found."""
    from cdiff_rt.bench.latency import compare_suite
    from cdiff_rt.sampling.tiers import sampling

    tiers, solver, steps = (options.pop(name) for name in ("tiers", "solver", "steps"))
    samplings = tuple(sampling(tier, solver, steps) for tier in tiers or (None,))
    earlier, model, suite = (options.pop(name) for name in ("compare", "model", "suite"))
    measure = lambda: compare_suite(model, suite, what, samplings=samplings, **options)  # type: ignore[arg-type]
    tell(measure, json_file=json_file, csv_file=csv_file, plot=plot, compare=earlier)


def tell(
    measure: Callable[[], Iterable[Any]],
    *,
    json_file: Path | None,
    csv_file: Path | None,
    plot: Path | None,
    compare: Path | None,
) -> None:
    """Prints each comparison as it comes, and writes all at the end. What cannot be written is refused before."""
    from cdiff_rt.bench import timings
    from cdiff_rt.bench.plot import check_suffix, write_plot

    check_folders(json_file, csv_file, plot)
    if plot:
        check_suffix(plot)
    old = timings.read_old(compare) if compare else None
    timed = []
    for comparison in measure():
        click.echo(timings.table(comparison) + "\n")
        if old:
            click.echo(timings.against(comparison, old) + "\n")
        timed.append(comparison)
    for file, write in ((json_file, timings.write_json), (csv_file, timings.write_csv), (plot, write_plot)):
        if file:
            write(timed, file)


def check_folders(*paths: Path | None) -> None:
    from cdiff_rt.outputs.files import check_folder

    for path in filter(None, paths):
        check_folder(path.parent)


def conclude(
    found: Any, table: Callable[[Any], str], write: Callable[[Any, Path], None], json_file: Path | None
) -> None:
    click.echo(table(found))
    if json_file:
        write(found, json_file)
