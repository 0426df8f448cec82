"""`cdiff-rt bench`: one subcommand for each thing that is measured."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from cdiff_rt.commands.options import (
    HELP_NAMES,
    OUTPUT,
    PATH,
    PRECISIONS,
    SAMPLING,
    GroupedCommand,
    Late,
    backend_option,
    experts_of,
    json_option,
    model_option,
    option,
    setting,
    together,
    with_option,
)
from cdiff_rt.commands.terminal import say
from cdiff_rt.settings import tier_names

CASES, RUNS = "What is compared", "How it is measured"
PAIRS, REPEATS, STEPS = click.IntRange(min=2), click.IntRange(min=3), click.IntRange(min=2)
KINDS, SUITES = click.Choice(PRECISIONS), click.Choice(("cpu", "gpu"))

one_run = together(model_option, backend_option, setting("tier"), setting("solver"), setting("steps"))
repeats_option = option(
    RUNS, "--repeats", "Time at least this many runs of each case, and at least 3 seconds.", type=REPEATS, default=10
)
cases = together(
    option(
        CASES,
        "--backend",
        "backends",
        "Time only this backend; may be repeated. Default: all that work here.",
        multiple=True,
    ),
    option(
        CASES,
        "--precision",
        "precisions",
        "Time only this precision; may be repeated. Default: all that the backends have.",
        type=KINDS,
        multiple=True,
    ),
    option(
        CASES,
        "--batch",
        "batches",
        "Make this many images at a time; may be repeated. Default: 1.",
        type=int,
        multiple=True,
    ),
    option(
        SAMPLING,
        "--tier",
        "tiers",
        "Time this tier; may be repeated. Default: exact.",
        type=Late(tier_names),
        multiple=True,
    ),
    setting("solver"),
    setting("steps"),
    repeats_option,
    option(RUNS, "--after", "Also run this many steps and compare the latents with the first case's.", type=STEPS),
    option(RUNS, "--pairwise", "Load only two cases at a time, to save memory.", is_flag=True),
)
figures = together(
    json_option,
    option(OUTPUT, "--csv", "csv_file", "Also write a row per case to this file.", type=PATH),
    option(OUTPUT, "--plot", "Also draw the times into this .svg file.", type=PATH),
    option(OUTPUT, "--compare", "earlier", "Also compare with this earlier --json file.", type=PATH),
)


def pairs(default: int) -> Callable[[Callable], Callable]:
    return option(
        RUNS, "--pairs", "Use this many test pairs of mask and sentence, 2 to 200.", type=PAIRS, default=default
    )


@click.group(context_settings=HELP_NAMES)
def bench() -> None:
    """Measure speed, quality, or accuracy."""


@bench.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt bench time --repeats 20 --json bench.json --plot bench.svg
  cdiff-rt bench time --backend onnxruntime --backend openvino --tier exact --tier fast --batch 1 --batch 4""",
)
@model_option
@with_option
@option(CASES, "--suite", "Compare the backends of the CPU, or those of a GPU.", type=SUITES, default="cpu")
@cases
@figures
def time(**options: Any) -> None:
    """Time whole images; the backends take turns."""
    compare("image", **options)


@bench.command(
    cls=GroupedCommand,
    epilog="""\b
Example:
  cdiff-rt bench step --model synthetic-512/ --after 10 --compare before.json""",
)
@model_option
@with_option
@cases
@figures
def step(**options: Any) -> None:
    """Time one step: experts, fusion and update."""
    compare("step", suite="cpu", **options)


@bench.command(cls=GroupedCommand)
@model_option
@repeats_option
@figures
def start(model: str, repeats: int, **files: Any) -> None:
    """Time `generate` in a new process."""
    from cdiff_rt.bench import startup

    tell(lambda keep: [startup.measure(model, repeats)], **files)


@bench.command(
    cls=GroupedCommand,
    epilog="""\b
Example:
  cdiff-rt bench quality --pairs 20 --images judged/""",
)
@one_run
@pairs(200)
@option(OUTPUT, "--images", "Save every image into this folder, which must not exist yet.", type=PATH)
@json_option
def quality(json_file: Path | None, **options: Any) -> None:
    """Judge how well images follow their conditions."""
    from cdiff_rt.bench import quality, report

    how = sampling_of(options)
    conclude(lambda: quality.examine(how=how, **options), report.quality_table, report.write_quality, json_file)


@bench.command(cls=GroupedCommand)
@model_option
@backend_option
@option(
    SAMPLING,
    "--tier",
    "Measure this tier. Default: fast, if neither --solver nor --steps is given.",
    type=Late(tier_names),
)
@setting("solver")
@setting("steps")
@pairs(5)
@json_option
def drift(json_file: Path | None, **options: Any) -> None:
    """Measure how far a tier strays from exact.

    A second row tells how far the exact tier strays from itself with other noise.
    """
    from cdiff_rt.bench import drift, report

    if not any(options[name] for name in ("tier", "solver", "steps")):
        options["tier"] = "fast"  # for exact would be held against itself
    how = sampling_of(options)
    conclude(lambda: drift.measure(how=how, **options), report.drift_table, report.write_drift, json_file)


@bench.command(cls=GroupedCommand)
@model_option
@option(RUNS, "--gpu", "Tell how long a step takes at least on this GPU, such as A100.", default="H100")
@json_option
def budget(model: str, gpu: str, json_file: Path | None) -> None:
    """Count kernels and bytes of one step on a GPU, without one.

    MODEL may also be a published size, 512 or 256, of which no engine is built.
    """
    from cdiff_rt.bench import budget, report

    conclude(lambda: budget.count(model, gpu), report.budget_table, report.write_budget, json_file)


def sampling_of(options: dict[str, Any]) -> Any:
    """Takes it out of a command's options."""
    from cdiff_rt.sampling.tiers import sampling

    return sampling(*(options.pop(name) for name in ("tier", "solver", "steps")))


def compare(what: str, **options: Any) -> None:
    """Times the cases of a suite, and says and writes what it found."""
    from cdiff_rt.bench.latency import compare_suite

    files = {name: options.pop(name) for name in ("json_file", "csv_file", "plot", "earlier")}
    own = {name: options.pop(name) for name in ("solver", "steps")}
    samplings = tuple(sampling_of({"tier": tier, **own}) for tier in options.pop("tiers") or (None,))
    model, suite = options.pop("model"), options.pop("suite")
    options |= {"samplings": samplings, "with_experts": experts_of(options)}
    tell(lambda keep: compare_suite(model, suite, what, keep=keep, **options), **files)  # type: ignore[arg-type]


def tell(
    measure: Callable[[Callable[[Any], None]], Iterable[Any]],
    json_file: Path | None,
    csv_file: Path | None,
    plot: Path | None,
    earlier: Path | None,
) -> None:
    """Prints each comparison as it comes. JSON is written case by case, for a run may not come to its end, and all
    other files at the end. What cannot be written is refused before."""
    from cdiff_rt.bench import timings
    from cdiff_rt.bench.plot import check_suffix, write_plot

    check_folders(json_file, csv_file, plot)
    if plot:
        check_suffix(plot)
    old = timings.read_old(earlier) if earlier else None
    timed: list[Any] = []

    def keep(unfinished: Any) -> None:
        if json_file:
            timings.write_json([*timed, unfinished], json_file)

    try:
        for comparison in measure(keep):
            keep(comparison)
            timed.append(comparison)
            say(timings.table(comparison) + "\n")
            if old:
                say(timings.against(comparison, old) + "\n")
    finally:
        for file, write in ((csv_file, timings.write_csv), (plot, write_plot)):
            if file and timed:
                write(timed, file)


def conclude(
    measure: Callable[[], Any], table: Callable[[Any], str], write: Callable[[Any, Path], None], json_file: Path | None
) -> None:
    """Prints what was found, and writes it on request."""
    check_folders(json_file)
    found = measure()
    say(table(found))
    if json_file:
        write(found, json_file)


def check_folders(*paths: Path | None) -> None:
    from cdiff_rt.errors import BadRequest
    from cdiff_rt.outputs.files import check_folder

    for path in filter(None, paths):
        check_folder(path.parent)
        if path.is_dir():
            raise BadRequest("out", f"{path} is a folder", "give the name of a file")
