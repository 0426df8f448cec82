"""`cdiff-rt reproduce`: a picture, made again from what it says of itself."""

import sys
from pathlib import Path
from typing import Any

import click

from cdiff_rt.commands.options import CONDITIONS, MODEL, OUTPUT, PATH, GroupedCommand, experts_of, option
from cdiff_rt.commands.terminal import raise_first, say


@click.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt reproduce man.png
  cdiff-rt reproduce faces/*.png --search masks/
  cdiff-rt reproduce man.png --backend openvino --out man-again.png""",
)
@click.argument("pictures", nargs=-1, required=True, type=PATH, metavar="PICTURE...")
@option(
    CONDITIONS,
    "--search",
    "Look for masks, photos and bundles of experts below this folder too, by their hash; may be repeated.",
    type=PATH,
    multiple=True,
)
@option(OUTPUT, "--out", "Write the picture made again to this file.", type=PATH)
@option(OUTPUT, "--force", "Replace an existing file of the same name.", is_flag=True)
@option(MODEL, "--model", "Use the bundle in this folder. Default: the included model that the picture names.")
@option(
    MODEL,
    "--with",
    "with_experts",
    "Use the bundle in this folder for the expert of this name. Default: the one of its hash, looked for as masks are.",
    metavar="NAME=FOLDER",
    multiple=True,
)
@option(MODEL, "--backend", "Run on this library. Default: the one that made the picture.")
def reproduce(
    pictures: tuple[Path, ...],
    search: tuple[Path, ...],
    out: Path | None,
    force: bool,
    model: str | None,
    backend: str | None,
    **options: Any,
) -> None:
    """Make pictures again and compare them byte by byte.

    Ends with exit code 0 if all are the same, to the byte, or on another backend within 1 of 255 levels, and with 1 if one
    is another picture.
    """
    from cdiff_rt.errors import BadInput, BadRequest, CdiffError
    from cdiff_rt.outputs import files
    from cdiff_rt.outputs.generated import OVERWRITE
    from cdiff_rt.records.again import Again

    if out and len(pictures) > 1:
        raise click.UsageError("--out is one file: give one picture")
    if out and out.suffix.lower() != pictures[0].suffix.lower():
        raise BadRequest("out", out.name, f"give a {pictures[0].suffix} as the picture is")
    if out and out.exists() and not force:
        raise BadRequest("out", f"{out} exists", OVERWRITE)
    if out:
        files.check_names(out)
        files.check_folder(out.parent)
    worst, failed = 0, list[CdiffError]()
    with Again(search, model, backend, experts_of(options)) as again:
        for picture in pictures:
            try:
                made = again(picture)
            except BadInput as error:
                failed.append(error)
                continue
            if out:
                with files.all_or_nothing(out) as folder:
                    (folder / out.name).write_bytes(made.content)
            say(f"{picture}: {made}")
            worst = max(worst, 0 if made.holds else 1)
    raise_first(failed, len(pictures))
    sys.exit(worst)
