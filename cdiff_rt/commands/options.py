"""Options of the commands: those that are settings, those that several commands share, and help in groups."""

import secrets
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from cdiff_rt.notes import log
from cdiff_rt.settings import ABOUT, INFLUENCES, SETTINGS

CONDITIONS, SAMPLING, INFLUENCE = "Conditions", "Sampling", "Influence of the conditions"
OUTPUT, MODEL, MANY = "Output", "Model and backend", "Many images"
GROUPS = {"rounding": OUTPUT, "labels": CONDITIONS, "snap": CONDITIONS}  # of settings that are none of sampling's
GROUPS |= {"influence": INFLUENCE, "region": INFLUENCE}
METAVARS = {"seed": "N|random", "without": "NAME", "labels": "ORDER"}
METAVARS |= {"influence": "NAME=WEIGHT|PRESET", "region": "NAME=AREA[:RULE]"}
STORED = ("fp32", "bf16", "fp16")
PRECISIONS = (*STORED, "tf32")
ARRANGEMENTS = ("separate", "stacked", "whole-step")
SCALES = click.IntRange(1, 16)
NAMED: dict[str, Any] = {"metavar": "NAME=VALUE", "multiple": True}
Decorator = Callable[[Callable], Callable]


class GroupedOption(click.Option):
    """An option that --help lists under the title of its group."""

    def __init__(self, *args: Any, group: str = "Other", **more: Any) -> None:
        super().__init__(*args, **more)
        self.group = group


HELP_NAMES = {"help_option_names": ["-h", "--help"]}


class GroupedCommand(click.Command):
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{"context_settings": HELP_NAMES} | more)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:  # of an option without its value, which knows of no command
            error.ctx = error.ctx or ctx
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if line := parameter.get_help_record(ctx):
                groups.setdefault(getattr(parameter, "group", "Other"), []).append(line)
        for title, lines in groups.items():
            with formatter.section(title):
                formatter.write_dl(lines)


def option(group: str, *words: str, **more: Any) -> Decorator:
    """An option of a group by its names, and what it does; a default is told after that."""
    *names, does = words
    if not more.get("is_flag") and (default := more.get("default")) not in (None, "", ()):
        does += f" Default: {' '.join(map(str, default)) if isinstance(default, tuple) else default}."
    return click.option(*names, cls=GroupedOption, group=group, help=does, **more)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which --help lists them."""

    def decorate(command: Callable) -> Callable:
        return reduce(lambda made, each: each(made), reversed(options), command)

    return decorate


class Late(click.Choice):
    """A choice of what a table of the library holds, which is loaded when it is needed: `--help` must be quick."""

    def __init__(self, load: Callable[[], Iterable[str]]) -> None:
        self._load, self.case_sensitive = load, True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._load())


class SomePath(click.Path):
    """An empty one would be the current folder, which nobody asked for."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value, param, ctx) if value else self.fail("it is empty", param, ctx)


PATH = SomePath(path_type=Path)


class Seed(click.ParamType):
    """A number, or "random" for one that is drawn now and told."""

    name = "seed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "random":
            value = secrets.randbelow(2**32)
            log.info("seed %d", value)
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r:.80} is neither a whole number nor random", param, ctx)


def setting(name: str) -> Decorator:
    """The option of one setting; not given, it is None, and the library has its default."""
    about, default = ABOUT[name], SETTINGS[name].default
    kind: Any = Seed() if name == "seed" else Late(about.choices) if about.choices else about.value_type
    told = "the model's" if name in INFLUENCES else default
    does = about.does if told in (None, ()) else f"{about.does} Default: {told}."
    metavar = METAVARS.get(name)
    group = GROUPS.get(name, INFLUENCE if name in INFLUENCES else SAMPLING)
    if kind is bool:
        return option(group, f"--{name}", about.does, is_flag=True, default=None)
    return option(group, f"--{name}", does, type=kind, multiple=isinstance(default, tuple), metavar=metavar)


def settings(*leaving_out: str) -> Decorator:
    """The options of all settings but some."""
    return together(*(setting(name) for name in SETTINGS if name not in leaving_out))


def chosen_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the settings that were given out of a command's options."""
    found = {name: options.pop(name) for name in SETTINGS if name in options}
    return {name: value for name, value in found.items() if value not in (None, ())}


condition_options = together(
    option(
        CONDITIONS, "--mask", "Follow this segmentation mask, a PNG of labels or colours (docs/masks.md).", type=PATH
    ),
    option(CONDITIONS, "--text", "Follow this English sentence about age, beard, hair, glasses and smile."),
    option(
        CONDITIONS, "--condition", "others", "Give a condition by its name, e.g. mask=m.png; may be repeated.", **NAMED
    ),
)
output_options = together(
    option(
        OUTPUT,
        "--out",
        "Write to this .png file, or to seed0-000.png and so on in this folder.",
        type=PATH,
        default="out",
    ),
    option(OUTPUT, "--force", "Replace existing files of the same names.", is_flag=True),
    option(
        OUTPUT,
        "--save-influence",
        "Write pictures and data of each condition's influence to NAME.influence/.",
        is_flag=True,
    ),
    option(OUTPUT, "--save-latent", "Write the latent (the model's internal image) to NAME.npz.", is_flag=True),
    option(
        OUTPUT,
        "--embed-inputs",
        "Store mask and photo inside the image's file, so that `cdiff-rt reproduce` needs no other.",
        is_flag=True,
    ),
    option(
        OUTPUT, "--scale", "Enlarge the pictures that the --save options write by this factor.", type=SCALES, default=1
    ),
)
model_option = option(
    MODEL, "--model", "Use this model: the name of an included one, or the folder of a bundle.", default="faces-128"
)
with_option = option(
    MODEL,
    "--with",
    "with_experts",
    "Let the expert of this bundle take part under this name of its condition; may be repeated (docs/own-models.md).",
    metavar="NAME=FOLDER",
    multiple=True,
)
backend_option = option(
    MODEL,
    "--backend",
    "Run on this library (see `cdiff-rt doctor`), or auto for the fastest that works.",
    default="onnxruntime",
)
precision_option = option(
    MODEL,
    "--precision",
    "Compute in this number format, if the backend supports it. Default: the backend's own.",
    type=click.Choice(PRECISIONS),
)
device_option = option(
    MODEL, "--device", "Run on this GPU, counted from 0 as PyTorch does.", type=click.IntRange(0), default=0
)
threads_option = option(
    MODEL,
    "--threads",
    "Use this many CPU threads. Default: one for each available processor, up to 32.",
    type=click.IntRange(1, 1024),
)
json_option = option(OUTPUT, "--json", "json_file", "Write all results to this JSON file.", type=PATH)


def given(names: Iterable[str]) -> str | None:
    """The first of these parameters that stands on the command line, as it is written there."""
    context = click.get_current_context()
    written = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    found = (n for n in names if context.get_parameter_source(n) is click.core.ParameterSource.COMMANDLINE)
    return next((written[name] for name in found), None)


def conditions_of(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Takes the conditions by name out of a command's options; others are written NAME=VALUE."""
    given_by_name = {name: options.pop(f"{prefix}{name}") for name in ("mask", "text")}
    return all_conditions(given_by_name, options.pop(f"{prefix}others"), f"--{prefix.strip('_') or 'condition'}")


def experts_of(options: dict[str, Any]) -> dict[str, str]:
    """Takes the bundles whose experts take part out of a command's options, by name."""
    return all_conditions({}, options.pop("with_experts"), "--with")


def all_conditions(named: dict[str, Any], others: tuple[str, ...], written: str) -> dict[str, Any]:
    """The conditions by name; `others` are NAME=VALUE each, behind the option `written` so."""
    conditions = {name: value for name, value in named.items() if value is not None}
    for other in others:
        name, equals, value = other.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"{written} {other!r:.80}: write NAME=VALUE")
        if name in conditions:
            raise click.UsageError(f"{written} {name}: it is given twice")
        conditions[name] = value
    return conditions
