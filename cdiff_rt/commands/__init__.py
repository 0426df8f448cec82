"""The commands: a file for each, with its options and what of them contradicts each other."""

import logging
import os

import click

from cdiff_rt.commands.bench import bench
from cdiff_rt.commands.compose import compose
from cdiff_rt.commands.doctor import doctor
from cdiff_rt.commands.edit import edit
from cdiff_rt.commands.export import export
from cdiff_rt.commands.generate import generate
from cdiff_rt.commands.options import HELP_NAMES
from cdiff_rt.commands.palette import palette
from cdiff_rt.commands.reproduce import reproduce
from cdiff_rt.commands.serve import serve
from cdiff_rt.commands.show import show
from cdiff_rt.commands.terminal import Commands, OneLine
from cdiff_rt.notes import log
from cdiff_rt.version import __version__

# Of numpy, which multiplies no matrices here, and would start a thread for each processor of the machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@click.group(cls=Commands, context_settings=HELP_NAMES)
@click.version_option(__version__, prog_name="cdiff-rt")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
@click.option("--quiet", "-q", is_flag=True, help="Print only warnings, errors and results.")
def main(debug: bool, quiet: bool) -> None:
    """Make and edit faces that follow a mask and a sentence."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    log.handlers[:] = [handler]
    log.setLevel(logging.WARNING if quiet else logging.INFO)


for command in (generate, edit, serve, show, reproduce, palette, export, compose, bench, doctor):
    main.add_command(command)
