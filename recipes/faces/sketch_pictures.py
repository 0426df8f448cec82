"""Sketches of the examples' faces, and the picture of what sketch, mask and sentence make alone and together.

python -m recipes.faces.sketch_pictures --bundle examples/faces-sketch/bundle --out examples/faces-sketch
"""

import textwrap
from itertools import combinations
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cdiff_rt.inputs.modalities import Condition
from cdiff_rt.inputs.palette import PALETTE
from cdiff_rt.pipeline import Pipeline
from recipes.faces.config import IMAGE_SIZE
from recipes.faces.painter import portrait
from recipes.faces.pictures import CELL, EXAMPLE_SEEDS, GAP
from recipes.faces.sketches import clean, edges, features

SENTENCES = {  # of the examples by their numbers
    1: "He has a long beard. He is in his sixties. He has red hair.",
    4: "The woman has blond hair. She is in her twenties.",
    6: "The woman has gray hair. She is in her seventies.",
}
HEADER, LINE, SEED = 20, 20, 0


def sketch_of(number: int) -> np.ndarray:
    """The lines of an example's face, [128, 128] uint8."""
    image = torch.from_numpy(portrait(EXAMPLE_SEEDS[number - 1], IMAGE_SIZE).image).permute(2, 0, 1)[None]
    return (255 * clean(features(edges(image.float() / 127.5 - 1)))[0, 0]).byte().numpy()


def written(sentence: str) -> Image.Image:
    cell = Image.new("RGB", (CELL, CELL), "white")
    text = textwrap.fill(sentence, LINE)
    ImageDraw.Draw(cell).multiline_text((4, 30), text, fill="black", font=ImageFont.load_default(11))
    return cell


def row(pipeline: Pipeline, number: int, mask: Path) -> dict[str, Image.Image]:
    """What is asked for, then what every choice of it makes, by what stands above it."""
    labels = np.array(Image.open(mask))
    given: dict[str, Condition] = {"sketch": sketch_of(number), "mask": labels, "text": SENTENCES[number]}
    small = np.array(PALETTE, np.uint8)[labels[:: len(labels) // CELL, :: len(labels) // CELL]]
    found = {
        "sketch": Image.fromarray(sketch_of(number)),
        "mask": Image.fromarray(small),
        "sentence": written(SENTENCES[number]),
    }
    for count in (1, 2, 3):
        for names in combinations(given, count):
            made = pipeline.generate(conditions={name: given[name] for name in names}, seed=SEED)
            above = " + ".join(names) if count < 3 else "all three"
            found[f"{above}{' only' if count == 1 else ''}"] = Image.fromarray(made.images[0])
    return found


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--examples", type=click.Path(path_type=Path, exists=True, file_okay=False), default="examples")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(bundle: Path, examples: Path, out: Path) -> None:
    """Write sketches of examples into OUT, and the picture sketch.png."""
    pipeline = Pipeline.from_pretrained("faces-128", with_experts={"sketch": bundle})
    rows = [row(pipeline, number, examples / f"{number}.png") for number in SENTENCES]
    step = CELL + GAP
    sheet = Image.new("RGB", (step * len(rows[0]) - GAP, HEADER + step * len(rows) - GAP), "white")
    for column, above in enumerate(rows[0]):
        ImageDraw.Draw(sheet).text((column * step, 3), above, fill="black", font=ImageFont.load_default(12))
        for line, cells in enumerate(rows):
            sheet.paste(cells[above], (column * step, HEADER + line * step))
    sheet.save(out / "sketch.png", optimize=True)
    for number in SENTENCES:
        Image.fromarray(sketch_of(number)).save(out / f"{number}.png", optimize=True)


if __name__ == "__main__":
    main()
