"""Masks and sentences that contradict each other: two portraits of one look, the mask of one and the words of the other.

The area of a contradiction is where the two portraits differ in it, and a little more, as a brush would paint it.

python -m recipes.faces.conflicts measure

makes images of 100 such pairs in several ways, lets the judge see who had his way where, and prints the tables.

python -m recipes.faces.conflicts level

says which disagreement the model's note should begin at, from other pairs.

python -m recipes.faces.conflicts picture --out docs/controls.jpg
"""

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cdiff_rt.bench.conflicts import Case, Way, auc_interval, compare, images, ways
from cdiff_rt.bench.edits import plain, table
from cdiff_rt.bench.machine import machine
from cdiff_rt.bench.report import heading
from cdiff_rt.exam import UNASKED, Exam
from cdiff_rt.inputs.palette import PALETTE
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.conflict import LEVELS
from cdiff_rt.sampling.tiers import sampling
from recipes.faces.canvas import Array
from recipes.faces.captions import Attributes, caption, sample_attributes
from recipes.faces.edits import tile_of
from recipes.faces.judge import ATTRIBUTES, asked, seen
from recipes.faces.painter import Portrait, paint

FIRST_SEED = 9_400_000  # far from the training data
ATTEMPTS = 400  # sentences to draw until one names what is contradicted
NOTICEABLE, BRUSH = 20, 8  # levels of 255; pixels that a brush paints beyond
RARELY = 0.05  # of the images of conditions that agree: how often a note may be wrong
OTHERS = 1000  # the first pair of those that the level is taken from
TILE, GAP, TITLE = 128, 4, 20  # pixels
SHOWN = (15, 1, 2, 4)  # pairs of the picture


@dataclass(frozen=True)
class Kind:
    """What is contradicted, by the judge's name of it: which fields of a portrait the mask and the sentence have."""

    about: str
    drawn: dict[str, Any]
    told: dict[str, Any]
    contested: str  # the field that the judge's answer tells
    inside: tuple[str, ...] = ()  # what else shows in the area alone, by the judge's names
    labelled: bool = True  # whether label maps show it
    both: dict[str, Any] = field(default_factory=dict)


KINDS = (
    Kind("hair length", {"hair": "long"}, {"hair": "short"}, "hair", ("hair colour",)),
    Kind("hair length", {"hair": "short"}, {"hair": "long"}, "hair", ("hair colour",)),
    Kind("glasses", {"glasses": False}, {"glasses": True}, "glasses"),
    Kind("smile", {"smile": 0.0}, {"smile": 0.9}, "smile", labelled=False),
    Kind(
        "beard", {"male": False, "beard": 0}, {"male": True, "beard": 4}, "beard", labelled=False, both={"hair": "long"}
    ),
)


@dataclass(frozen=True)
class Pair:
    """Their captions are the same: that of `told`."""

    kind: Kind
    drawn: Portrait
    told: Portrait
    area: Array  # [H, W] bool


def pair(number: int, size: int = 128) -> Pair:
    """The kinds take turns."""
    kind, rng = KINDS[number % len(KINDS)], np.random.default_rng((FIRST_SEED, number))
    person = replace(sample_attributes(rng), hat=False, glasses=False, smile=0.0, **kind.both)
    drawn, told = replace(person, **kind.drawn), replace(person, **kind.told)
    text = sentence(told, kind.about, rng)

    def painted(attributes: Attributes) -> Portrait:
        return Portrait(*paint(attributes, np.random.default_rng((FIRST_SEED, number, 1)), size), attributes, text)

    first, second = painted(drawn), painted(told)
    without = painted(replace(told, **{kind.contested: getattr(drawn, kind.contested)}))
    moved = (np.abs(second.image.astype(int) - without.image) > NOTICEABLE).any(-1)
    return Pair(kind, first, second, brushed(second.labels != without.labels if kind.labelled else moved))


def sentence(attributes: Attributes, about: str, rng: np.random.Generator) -> str:
    """One that names what is contradicted."""
    texts = (caption(attributes, rng) for _ in range(ATTEMPTS))
    return next(text for text in texts if about in asked(attributes, text))


def brushed(where: Array) -> Array:
    side = 2 * BRUSH + 1
    return np.asarray(np.lib.stride_tricks.sliding_window_view(np.pad(where, BRUSH), (side, side)).any((2, 3)))


def case_of(pair: Pair, *, agrees: bool = False) -> Case:
    """As the benchmark wants it; if it `agrees`, with the mask of the portrait that the sentence is about."""
    shown, about = pair.told if agrees else pair.drawn, list(ATTRIBUTES).index(pair.kind.about)
    told = asked(pair.told.attributes, pair.told.caption)
    named = np.array([values.index(told[name]) if name in told else UNASKED for name, values in ATTRIBUTES.items()])
    inside = [name in (pair.kind.about, *pair.kind.inside) for name in ATTRIBUTES]
    return Case(
        {"mask": shown.labels, "text": pair.told.caption},
        shown.labels,
        named,
        about,
        seen(shown.attributes)[about],
        pair.area,
        np.where(inside, UNASKED, named),
    )


def cases_of(numbers: range) -> tuple[list[Case], list[Case]]:
    """Those that contradict each other, and those that agree."""
    pairs = [pair(number) for number in numbers]
    return [case_of(each) for each in pairs], [case_of(each, agrees=True) for each in pairs]


WAYS = ways("mask", "text")
DECISIONS: dict[str, Way] = {
    "mask-first": lambda case: {"influence": "mask-first"},
    "as is": lambda case: {},
    "text-first": lambda case: {"influence": "text-first"},
    "plain mean": lambda case: {"decay": "none", "factor": 1.0, "sharpness": 0.0},
    "text where brushed": WAYS["text only in the area, mask only elsewhere"],
}


@click.group()
def main() -> None:
    """Conditions that contradict each other."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("cdiff_rt.bench").setLevel(logging.INFO)


count_option = click.option(
    "--count", default=100, show_default=True, type=click.IntRange(min=10), help="How many pairs."
)
model_option = click.option("--model", default="faces-128", show_default=True)
tier_option = click.option("--tier", default="turbo", show_default=True)


@main.command()
@count_option
@model_option
@tier_option
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also every image's scores.")
def measure(count: int, model: str, tier: str, json_file: Path | None) -> None:
    """Make images of COUNT pairs that contradict each other in every way, and print who had his way where."""
    pipeline, exam = Pipeline.from_pretrained(model), Exam.of(model)
    found = compare(pipeline, exam, *cases_of(range(count)), sampling(tier))
    click.echo(heading(machine(), {"model": model, "tier": tier, "pairs": count}) + "\n")
    click.echo(table(found.rows) + "\n")
    for name, (mean, low, high) in found.aucs().items():
        click.echo(
            f"disagreement tells that a condition is not followed, {name}: AUC {mean:.3f} [{low:.3f}, {high:.3f}]"
        )
    above = LEVELS.get(pipeline.bundle.manifest_hash, np.inf)
    for name, values in found.conflicts.items():
        shares = [f"{kind.about} {(values[i :: len(KINDS)] > above).mean():.2f}" for i, kind in enumerate(KINDS)]
        click.echo(f"{name}: noted in {(values > above).mean():.2f}, of these {', '.join(shares)}")
    if json_file:
        rows = found.rows | {f"disagreement, {name}": {"": values} for name, values in found.conflicts.items()}
        json_file.write_text(json.dumps(plain(rows), indent=1) + "\n")


@main.command()
@count_option
@model_option
@tier_option
def level(count: int, model: str, tier: str) -> None:
    """Print the disagreement that few images of conditions that agree exceed, of COUNT pairs that `measure` does not see."""
    pipeline = Pipeline.from_pretrained(model)
    numbers = range(OTHERS, OTHERS + count)
    contrary, agreeing = (images(pipeline, cases, sampling(tier), lambda case: {})[1] for cases in cases_of(numbers))
    level = np.quantile(agreeing, 1 - RARELY)
    contradicts = np.repeat([False, True], (len(agreeing), len(contrary)))
    mean, low, high = auc_interval(np.concatenate([agreeing, contrary]), contradicts)
    click.echo(f"{pipeline.bundle.manifest_hash}: {level:.3f}; above it are {(contrary > level).mean():.2f} of those")
    click.echo(
        f"that contradict each other; they and the others are told apart with AUC {mean:.3f} [{low:.3f}, {high:.3f}]"
    )


@main.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@model_option
def picture(out: Path, model: str) -> None:
    """A row for each of some pairs: mask, sentence with the area, and five decisions of who leads."""
    pipeline, colours = Pipeline.from_pretrained(model), np.array(PALETTE, np.uint8)
    titles = ("mask", "sentence", *DECISIONS)
    sheet = Image.new("RGB", (len(titles) * (TILE + GAP), len(SHOWN) * (TILE + GAP) + TITLE), "white")
    for column, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((column * (TILE + GAP), 3), title, "black", ImageFont.load_default(12))
    for row, number in enumerate(SHOWN):
        case = case_of(pair(number))
        made = [images(pipeline, [case], sampling("exact"), way)[0][0] for way in DECISIONS.values()]
        tiles = [Image.fromarray(colours[case.labels]), tile_of(case.conditions["text"]), *map(Image.fromarray, made)]
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (column * (TILE + GAP), TITLE + row * (TILE + GAP)))
    sheet.save(out, quality=90, subsampling=0)


if __name__ == "__main__":
    main()
