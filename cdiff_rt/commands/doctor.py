"""`cdiff-rt doctor`: what works here."""

import sys

import click

from cdiff_rt.commands.options import GroupedCommand
from cdiff_rt.commands.terminal import say


@click.command(cls=GroupedCommand)
def doctor() -> None:
    """Say what works here, and why the rest doesn't.

    Lists the libraries that are installed, the models that came with cdiff-rt, and every backend.
    """
    from cdiff_rt.doctor import examine

    lines, healthy = examine()
    for line in lines:
        say(line)
    if not healthy:
        sys.exit(5)
