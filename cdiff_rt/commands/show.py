"""`cdiff-rt show`: how a picture was made."""

from pathlib import Path

import click

from cdiff_rt.commands.options import OUTPUT, PATH, GroupedCommand, option
from cdiff_rt.commands.terminal import raise_first, say


@click.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt show man.png
  cdiff-rt show faces/*.png --json""",
)
@click.argument("pictures", nargs=-1, required=True, type=PATH, metavar="PICTURE...")
@option(OUTPUT, "--json", "as_json", "Print each record as it stands in the file, one a line.", is_flag=True)
def show(pictures: tuple[Path, ...], as_json: bool) -> None:
    """Say how pictures were made, and by which command.

    Reads the record in a .png or .npz: request, hashes of the inputs, model, versions, and a command that makes it again.
    """
    from cdiff_rt.errors import BadInput, CdiffError
    from cdiff_rt.outputs.formats import RECORD
    from cdiff_rt.records.read import read_record
    from cdiff_rt.records.show import lines

    failed: list[CdiffError] = []
    for place, picture in enumerate(pictures):
        try:
            record = read_record(picture)
            if as_json and not record.parameters:
                raise BadInput(f"picture {record.name}", "it has no record of cdiff-rt's own", "leave out --json")
            text = record.texts[RECORD] if as_json else "\n".join(lines(record))
        except BadInput as error:
            failed.append(error)
            continue
        say(text if as_json or not place else f"\n{text}")
    raise_first(failed, len(pictures))
