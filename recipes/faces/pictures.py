"""The example masks and the README's picture grid, made with the bundle that ships.

python -m recipes.faces.pictures examples --out examples
python -m recipes.faces.pictures grid --examples examples --out docs/grid.png
"""

import textwrap
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cdiff_rt.inputs.palette import PALETTE
from recipes.faces.painter import portrait

EXAMPLE_SEEDS = (9_000_020, 9_000_019, 9_000_008, 9_000_026, 9_000_012, 9_000_007)  # far from the training data
GRID_CAPTIONS = (
    "This man has no beard. He is in his twenties. He has black hair.",
    "This man has a long beard. He is in his forties. He has brown hair.",
    "This man has a beard of medium length. He is in his seventies. He has white hair.",
    "The woman is in her twenties. She has blond hair.",
    "The woman is in her seventies. She has gray hair.",
    "The woman is in her thirties. She has red hair. She is smiling.",
)
CELL, GAP, HEADER = 128, 6, 64  # pixels
LINE = 24  # characters of a caption


@click.group()
def main() -> None:
    """Pictures of the repository."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
def examples(out: Path) -> None:
    """Six painted masks, 512 pixels wide, as palette PNGs, each with a caption."""
    out.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(EXAMPLE_SEEDS, start=1):
        painted = portrait(seed, size=512)
        picture = Image.fromarray(painted.labels, mode="P")
        picture.putpalette([channel for colour in PALETTE for channel in colour])
        picture.save(out / f"{number}.png", optimize=True)
        (out / f"{number}.txt").write_text(painted.caption + "\n")


@main.command()
@click.option("--examples", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--model", default="faces-128", show_default=True)
def grid(folder: Path, out: Path, seed: int, model: str) -> None:
    """Masks by captions: each row one mask, each column one sentence, all with the same seed."""
    from cdiff_rt import Pipeline

    pipeline = Pipeline.from_pretrained(model)
    masks = sorted(folder.glob("*.png"))
    step = CELL + GAP
    sheet = Image.new("RGB", (step * (len(GRID_CAPTIONS) + 1), step * len(masks) + HEADER), "white")
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(GRID_CAPTIONS, start=1):
        lines = textwrap.fill(caption, LINE)
        draw.multiline_text((column * step, 4), lines, fill="black", font=ImageFont.load_default(9))
    for row, mask in enumerate(masks):
        top = HEADER + row * step
        small = Image.open(mask).convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST)
        sheet.paste(small, (0, top))
        for column, caption in enumerate(GRID_CAPTIONS, start=1):
            image = pipeline.generate(mask=mask, text=caption, seed=seed).images[0]
            sheet.paste(Image.fromarray(np.asarray(image)), (column * step, top))
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main()
