"""Pairs of painted portraits, one person before and after a change: what an edit should and should not alter.

Both are painted from one look, so pose, skin, light, background and clothes are the same, pixel by pixel; only some
attributes differ, and with them mask and sentence.

python -m recipes.faces.edits measure --count 100 --json edits.json

edits every pair's first portrait towards the second's mask and sentence, beside the baselines, and prints the table.

python -m recipes.faces.edits borders --count 100

does so with `keep`, and looks at the pixels near the borders of what is kept.

python -m recipes.faces.edits picture --out docs/edit.jpg
"""

import json
import logging
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cdiff_rt.bench.edits import Case, compare, compare_borders, plain, table
from cdiff_rt.bench.machine import machine
from cdiff_rt.bench.report import heading
from cdiff_rt.exam import UNASKED, Exam
from cdiff_rt.inputs.palette import PALETTE
from cdiff_rt.pipeline import Pipeline
from recipes.faces.canvas import Array
from recipes.faces.captions import AGES, BEARDS, HAIR_COLORS, Attributes, caption, sample_attributes
from recipes.faces.judge import ATTRIBUTES, UNSEEN, asked, seen
from recipes.faces.painter import Portrait, paint

FIRST_SEED = 9_200_000  # far from the training data
LENGTHS = ("short", "medium", "long")
SMILE, NO_SMILE = 0.9, 0.0
GREATEST_NUMBER = 2  # of changes
ATTEMPTS = 200  # sentences to draw until one names every change that a sentence can name
UNNAMED = ("bangs",)  # what no sentence names
SHOWN = (1, 3, 8, 9, 2)  # pairs of the picture
TITLES = ("input", "target mask", "target sentence", "edit", "from scratch")
TILE, GAP, TITLE, LETTERS = 128, 4, 20, 22  # pixels, but the letters of a line
NOTICEABLE, MARGIN = 8, 3  # levels of 255; pixels


@dataclass(frozen=True)
class Pair:
    before: Portrait
    after: Portrait
    changed: tuple[str, ...]  # attributes

    @property
    def stays(self) -> Array:
        """[H, W] bool: the pixels that the change leaves alone, farther than `MARGIN` from those that it doesn't."""
        moved = (np.abs(self.before.image.astype(int) - self.after.image) > NOTICEABLE).any(-1)
        padded, side = np.pad(moved, MARGIN), 2 * MARGIN + 1
        return np.logical_not(np.lib.stride_tricks.sliding_window_view(padded, (side, side)).any((2, 3)))


def other(values: tuple[str, ...] | range, now: object, rng: np.random.Generator) -> object:
    left = [value for value in values if value != now]
    return left[int(rng.integers(len(left)))]


def possible(attributes: Attributes, rng: np.random.Generator) -> dict[str, dict[str, object]]:
    """name of a change -> the fields that it sets. Who the person is, a man or a woman, stays."""
    bald, covered = attributes.hair == "bald", attributes.hat
    options: dict[str, dict[str, object]] = {
        "age": {"age": int(rng.choice([age for age in range(len(AGES)) if abs(age - attributes.age) >= 2]))},
        "glasses": {"glasses": not attributes.glasses},
        "smile": {"smile": NO_SMILE if attributes.smile > 0.5 else SMILE},
    }
    if attributes.male:
        options["beard"] = {"beard": other(range(len(BEARDS)), attributes.beard, rng)}
    if not bald:
        options["hair colour"] = {"hair_color": other(HAIR_COLORS, attributes.hair_color, rng)}
    if not bald and not covered:
        options["hair length"] = {"hair": other(LENGTHS, attributes.hair, rng)}
        options["bangs"] = {"bangs": not attributes.bangs}
    return options


def sentence(attributes: Attributes, names: tuple[str, ...], rng: np.random.Generator) -> str | None:
    """One that names all of `names` which a sentence can name, if there is one: none says that glasses are gone."""
    for _ in range(ATTEMPTS):
        text = caption(attributes, rng)
        if set(names) - set(UNNAMED) <= set(asked(attributes, text)):
            return text
    return None


def pair(seed: int, size: int = 128) -> Pair:
    """The pair of a seed: one or two changes, which the sentence names or the mask shows."""
    rng = np.random.default_rng(seed)
    before = sample_attributes(rng)
    options = possible(before, rng)
    count = int(rng.integers(1, GREATEST_NUMBER + 1))
    changed = tuple(sorted(rng.choice(sorted(options), size=count, replace=False).tolist()))
    after = replace(before, **{field: value for name in changed for field, value in options[name].items()})  # type: ignore[arg-type]
    named = tuple(name for name in changed if shows_in_words(after, name))
    portraits = []
    for attributes in (before, after):
        image, labels = paint(attributes, np.random.default_rng((seed, 1)), size)  # the same look both times
        text = sentence(attributes, named if attributes is after else (), rng) or caption(attributes, rng)
        portraits.append(Portrait(image, labels, attributes, text))
    first, second = portraits
    return Pair(first, second, changed)


def shows_in_words(attributes: Attributes, name: str) -> bool:
    """Sentences say that somebody has glasses or smiles, not that somebody doesn't; the mask shows both."""
    return {"glasses": attributes.glasses, "smile": attributes.smile > 0.5, "bangs": False}.get(name, True)


def case_of(pair: Pair) -> Case:
    """As the benchmark wants it."""
    before, after = (np.array(seen(portrait.attributes)) for portrait in (pair.before, pair.after))
    visible = (before != UNSEEN) & (after != UNSEEN)
    told = asked(pair.after.attributes, pair.after.caption)
    named = [values.index(told[name]) if name in told else UNASKED for name, values in ATTRIBUTES.items()]
    conditions = [{"mask": portrait.labels, "text": portrait.caption} for portrait in (pair.before, pair.after)]
    return Case(
        photo=pair.before.image,
        before=conditions[0],
        after=conditions[1],
        labels=pair.after.labels,
        named=np.array(named),
        changed=np.where(visible & (before != after), after, UNASKED),
        unchanged=np.where(visible & (before == after), after, UNASKED),
        stays=pair.stays,
        becomes=pair.after.image,
    )


@click.group()
def main() -> None:
    """Edits of painted portraits."""


@main.command()
@click.option("--count", default=100, show_default=True, type=click.IntRange(min=2), help="How many pairs.")
@click.option("--first-seed", default=FIRST_SEED, show_default=True, help="Pair i has the seed first-seed + i.")
@click.option("--model", default="faces-128", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also every image's scores.")
def measure(count: int, first_seed: int, model: str, json_file: Path | None) -> None:
    """Edit COUNT painted portraits in every way, let the judge see the results, and print the table."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("cdiff_rt.bench").setLevel(logging.INFO)
    cases = [case_of(pair(seed)) for seed in range(first_seed, first_seed + count)]
    rows = compare(Pipeline.from_pretrained(model), Exam.of(model), cases)
    click.echo(heading(machine(), {"model": model, "pairs": count, "first seed": first_seed}) + "\n")
    click.echo(table(rows))
    if json_file:
        json_file.write_text(json.dumps(plain(rows), indent=1) + "\n")


@main.command()
@click.option("--count", default=100, show_default=True, type=click.IntRange(min=2), help="How many pairs.")
@click.option("--first-seed", default=FIRST_SEED, show_default=True, help="Pair i has the seed first-seed + i.")
@click.option("--keep", default="background", show_default=True, help="Labels to keep.")
def borders(count: int, first_seed: int, keep: str) -> None:
    """Edit portraits whose hair changes, keep some labels, and print what is left over at their borders."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    pairs = [pair(seed) for seed in range(first_seed, first_seed + count)]
    cases = [case_of(of) for of in pairs if any(name.startswith("hair") for name in of.changed)]
    rows = compare_borders(Pipeline.from_pretrained(), Exam.of("faces-128"), cases, keep)
    click.echo(heading(machine(), {"pairs": len(cases), "of": count, "first seed": first_seed, "keep": keep}) + "\n")
    click.echo(table(rows))


def tile_of(text: str) -> Image.Image:
    """A sentence as a picture."""
    tile = Image.new("RGB", (TILE, TILE), "white")
    lines = textwrap.fill(text, LETTERS)
    ImageDraw.Draw(tile).multiline_text((4, TILE // 2), lines, "black", ImageFont.load_default(9), "lm")
    return tile


@main.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--model", default="faces-128", show_default=True)
def picture(out: Path, model: str) -> None:
    """A row for each of some pairs: input, target mask, sentence, edit, and what the same conditions give without it."""
    pipeline, colours = Pipeline.from_pretrained(model), np.array(PALETTE, np.uint8)
    sheet = Image.new("RGB", (len(TITLES) * (TILE + GAP), len(SHOWN) * (TILE + GAP) + TITLE), "white")
    for column, title in enumerate(TITLES):
        ImageDraw.Draw(sheet).text((column * (TILE + GAP), 3), title, "black", ImageFont.load_default(12))
    for row, number in enumerate(SHOWN):
        case = case_of(pair(FIRST_SEED + number))
        edited = pipeline.edit(case.photo, source=case.before, **case.after).images[0]
        scratch = pipeline.generate(**case.after).images[0]
        shown = [Image.fromarray(image) for image in (case.photo, colours[case.labels], edited, scratch)]
        for column, tile in enumerate([*shown[:2], tile_of(case.after["text"]), *shown[2:]]):
            sheet.paste(tile.resize((TILE, TILE)), (column * (TILE + GAP), TITLE + row * (TILE + GAP)))
    sheet.save(out, quality=90, subsampling=0)


if __name__ == "__main__":
    main()
