"""Contact sheets: rows of small pictures with names and titles."""

import math

from PIL import Image, ImageDraw, ImageFont

TILE, LINE = 96, 20  # pixels: a picture's side, a title's height
PAPER, INK = (255, 255, 255), (40, 40, 40)
Colour = tuple[int, int, int]


def contact_sheet(
    titles: list[str], rows: dict[str, list[Image.Image]], colours: dict[str, Colour], scale: int = 1
) -> Image.Image:
    """A column for each title; a row's name is written in its colour. Pictures are TILE pixels wide, `scale` times."""
    font, side = ImageFont.load_default(12), TILE * scale
    left, pitch = 12 + max(math.ceil(font.getlength(name)) for name in rows), side + 2
    sheet = Image.new("RGB", (left + pitch * len(titles), LINE + pitch * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((left + column * pitch, 1), title, INK, font)
    for row, (name, tiles) in enumerate(rows.items()):
        top = LINE + row * pitch
        draw.text((6, top + side / 2), name, colours.get(name, INK), font, "lm")
        for column, tile in enumerate(tiles):
            sheet.paste(tile.resize((side, side)), (left + column * pitch, top))
    return sheet
