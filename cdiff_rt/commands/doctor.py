"""`cdiff-rt doctor`: what works here."""

import sys

import click


@click.command()
def doctor() -> None:
    """Say what is installed, which backends work, and why others don't."""
    from cdiff_rt.doctor import examine

    lines, healthy = examine()
    for line in lines:
        click.echo(line)
    if not healthy:
        sys.exit(5)
