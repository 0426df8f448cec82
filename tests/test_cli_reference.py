"""docs/cli.md is what `--help` says of every command. After a change: `python -m tests.test_cli_reference`."""

from collections.abc import Iterator
from pathlib import Path

import click

from cdiff_rt.commands import main

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
INTRODUCTION = """\
# The command line

This page is what `cdiff-rt COMMAND --help` prints. `python -m cdiff_rt` is the same command, and so is
`python cli.py` in a checkout.
"""
WIDTH = 100


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    for part, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {part}")


def reference() -> str:
    sections = [INTRODUCTION]
    for name, command in commands(main, "cdiff-rt"):
        context = click.Context(command, info_name=name, terminal_width=WIDTH, help_option_names=["-h", "--help"])
        sections.append(f"## `{name}`\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(sections)


def test_the_page_is_what_help_says():
    assert PAGE.read_text() == reference()


def test_every_option_says_what_it_does_in_a_sentence():
    parameters = [(name, each) for name, command in commands(main, "cdiff-rt") for each in command.params]
    told = [(name, each) for name, each in parameters if isinstance(each, click.Option)]
    assert len(told) > 80
    for name, option in told:
        text = getattr(option, "help", None)
        assert text and text[0].isupper() and text.endswith("."), f"{name} {option.name}: {text!r}"


if __name__ == "__main__":
    PAGE.write_text(reference())
