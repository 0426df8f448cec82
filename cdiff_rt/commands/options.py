"""Options of the commands: those that are settings, those that several commands share, and help in groups."""

import secrets
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from cdiff_rt.notes import log
from cdiff_rt.settings import INFLUENCES, OUTPUT, SETTINGS, About

CONDITIONS, MODEL, MANY = "Conditions", "Model and backend", "Many images"
PATH = click.Path(path_type=Path)
PRECISIONS = ("fp32", "bf16", "fp16")
Decorator = Callable[[Callable], Callable]


class GroupedOption(click.Option):
    """An option that --help lists under the title of its group."""

    def __init__(self, *args: Any, group: str = "Other", **more: Any) -> None:
        super().__init__(*args, **more)
        self.group = group


class GroupedCommand(click.Command):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if line := parameter.get_help_record(ctx):
                groups.setdefault(getattr(parameter, "group", "Other"), []).append(line)
        for title, lines in groups.items():
            with formatter.section(title):
                formatter.write_dl(lines)


def option(*names: str, **more: Any) -> Decorator:
    return click.option(*names, cls=GroupedOption, **more)


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


class Seed(click.ParamType):
    """A number, or "random" for one that is drawn now and told."""

    name = "number|random"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "random":
            value = secrets.randbelow(2**32)
            log.info("seed %d", value)
        return click.INT.convert(value, param, ctx)


def setting(name: str) -> Decorator:
    """The option of one setting; not given, it is None, and the library has its default."""
    about: About = SETTINGS[name].metadata["about"]
    default, several = SETTINGS[name].default, isinstance(SETTINGS[name].default, tuple)
    kind: Any = Seed() if name == "seed" else Late(about.choices) if about.choices else about.value_type
    help_ = about.help
    if name in INFLUENCES:
        help_ += " Default: the model's."
    elif default not in (None, ()):
        help_ += f" Default: {default}."
    more = {"metavar": "NAME", "multiple": True} if several else {}
    return option(f"--{name}", type=kind, help=help_, group=about.group, **more)


def settings(*leaving_out: str) -> Decorator:
    """The options of all settings but some."""
    return together(*(setting(name) for name in SETTINGS if name not in leaving_out))


def chosen_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the settings that were given out of a command's options."""
    found = {name: options.pop(name) for name in SETTINGS if name in options}
    return {name: value for name, value in found.items() if value not in (None, ())}


condition_options = together(
    option("--mask", type=PATH, group=CONDITIONS, help="Follow this label map, a PNG (docs/masks.md)."),
    option("--text", group=CONDITIONS, help="Follow this sentence, of age, beard, hair, glasses and smile."),
    option(
        "--condition",
        "others",
        metavar="NAME=VALUE",
        multiple=True,
        group=CONDITIONS,
        help="Give a condition by the name of a model's modality.",
    ),
)
output_options = together(
    option(
        "--out",
        type=PATH,
        default="out",
        show_default=True,
        group=OUTPUT,
        help="Write to this .png file, or into this folder under the next free name.",
    ),
    option("--force", is_flag=True, group=OUTPUT, help="Overwrite files that exist."),
    option("--save-influence", is_flag=True, group=OUTPUT, help="Also write each condition's influence at each step."),
    option("--save-latent", is_flag=True, group=OUTPUT, help="Also write the latent, as .npz."),
    option(
        "--scale",
        type=click.IntRange(1, 16),
        default=1,
        show_default=True,
        group=OUTPUT,
        help="Enlarge the pictures that are written beside an image this many times.",
    ),
)
model_option = option(
    "--model",
    default="faces-128",
    show_default=True,
    group=MODEL,
    help="Run this model: the name of an embedded one, or a bundle's folder.",
)
backend_option = option(
    "--backend",
    default="onnxruntime",
    show_default=True,
    group=MODEL,
    help="Compute by this backend; auto takes the fastest that works here. `cdiff-rt doctor` lists them.",
)
json_option = option("--json", "json_file", type=PATH, group=OUTPUT, help="Also write all figures to this file.")


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
