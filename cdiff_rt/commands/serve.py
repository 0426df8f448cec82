"""`cdiff-rt serve`: images by HTTP, for clients that speak OpenAI's."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from cdiff_rt.commands.options import (
    PATH,
    GroupedCommand,
    backend_option,
    device_option,
    experts_of,
    model_option,
    option,
    precision_option,
    threads_option,
    with_option,
)
from cdiff_rt.errors import BadInput, BadRequest

SERVER, LIMITS = "Server", "Limits"
TOKEN = "CDIFF_RT_TOKEN"
SHORTEST_TOKEN = 16


@click.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt serve
  cdiff-rt serve --host 0.0.0.0 --token-file token.txt --allow-host faces.example.org""",
)
@option(
    SERVER, "--host", "Listen on this address; any other than this machine's own needs a token.", default="127.0.0.1"
)
@option(SERVER, "--port", "Listen on this port; 0 is any free one.", type=click.IntRange(0, 65535), default=8000)
@option(
    SERVER,
    "--token-file",
    f"Ask every client for the token in this file. Default: that in the environment variable {TOKEN}, if there is one.",
    type=PATH,
)
@option(
    SERVER, "--allow-host", "hosts", "Answer by this host name too; may be repeated.", multiple=True, metavar="NAME"
)
@option(SERVER, "--log-prompts", "Write sentences to the log.", is_flag=True)
@option(LIMITS, "--queue", "Let so many requests wait; others get 503.", type=click.IntRange(1, 10_000), default=32)
@option(LIMITS, "--keep", "Keep a job's result for so many seconds.", type=click.FloatRange(1, 86400), default=600.0)
@option(
    LIMITS,
    "--largest-body",
    "Take requests of so many megabytes.",
    type=click.IntRange(1, 1024),
    default=16,
    metavar="MB",
)
@model_option
@with_option
@backend_option
@precision_option
@threads_option
@device_option
def serve(
    host: str,
    port: int,
    token_file: Path | None,
    hosts: tuple[str, ...],
    log_prompts: bool,
    queue: int,
    keep: float,
    largest_body: int,
    model: str,
    **how: Any,
) -> None:
    """Make and edit images by HTTP, one request after the other.

    Clients of OpenAI's images work as they are (docs/serving.md).
    """
    from cdiff_rt.extras import needed

    with needed("serve", "serve"):
        from cdiff_rt.serve.guard import Rules, is_loopback
        from cdiff_rt.serve.limits import MEGABYTE, Limits
        from cdiff_rt.serve.server import serve as run
    from cdiff_rt.pipeline import Pipeline

    token = _token(token_file)
    if not token and not is_loopback(host):
        remedy = f"give --token-file or {TOKEN}, or listen on 127.0.0.1"
        raise BadRequest("host", f"{host} can be reached by others, and there is no token", remedy)
    everywhere = host in ("0.0.0.0", "::") and not hosts
    rules = Rules({host, *hosts}, everywhere, token)
    limits = Limits(queue, keep, largest_body * MEGABYTE)
    opened = partial(Pipeline.from_pretrained, model, with_experts=experts_of(how), **how)
    sys.exit(run(opened, host=host, port=port, rules=rules, limits=limits, log_prompts=log_prompts))


def _token(file: Path | None) -> str | None:
    """Raises BadInput for one that is easily guessed, or that no header can hold."""
    from cdiff_rt.inputs.images import read_file

    where = f"token {file}" if file else TOKEN
    given = read_file(file, "token").decode(errors="replace").strip() if file else os.environ.get(TOKEN)
    if given is None:
        return None
    if len(given) < SHORTEST_TOKEN or not given.isascii() or not given.isprintable() or " " in given:
        remedy = "take one of `python -c 'import secrets; print(secrets.token_urlsafe())'`"
        raise BadInput(where, f"{len(given)} characters", f"{remedy}: at least {SHORTEST_TOKEN}, in ASCII, no spaces")
    return given
