"""`cdiff-rt palette`: the colours of masks, for paint programs."""

from pathlib import Path

import click

from cdiff_rt.commands.options import OUTPUT, PATH, GroupedCommand, option


@click.command(cls=GroupedCommand)
@option(OUTPUT, "--out", "Write the files into this folder.", type=PATH, default="palette")
@option(OUTPUT, "--force", "Replace existing files of the same names.", is_flag=True)
def palette(out: Path, force: bool) -> None:
    """Write palettes and a template for painting masks.

    Writes the colours as a picture (faces.png) and as palettes for paint programs (faces.gpl, faces.aco), a mask to
    begin with (template.png), and a script for GIMP (gimp-mask.scm); see docs/masks.md.
    """
    from cdiff_rt.errors import BadRequest
    from cdiff_rt.inputs.palette_files import FILES
    from cdiff_rt.outputs import files

    files.check_folder(out)
    if (existing := next((out / name for name in FILES if (out / name).exists()), None)) and not force:
        raise BadRequest("out", f"{existing} exists", "choose another folder, or overwrite it with --force")
    with files.all_or_nothing(out / max(FILES)) as folder:
        for name, content in FILES.items():
            (folder / name).write_bytes(content())
    for name in FILES:
        click.echo(click.format_filename(out / name))
