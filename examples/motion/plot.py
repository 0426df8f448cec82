"""The picture of this example: a request in each column, a way of running the model in each row.

python -m examples.motion.plot --bundle motion/bundle --out examples/motion/motion.png
"""

from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.loop import StepState
from examples.motion.evaluate import BOTH, ENDPOINTS, STYLE, sample
from examples.motion.judge import held_out, judge
from examples.motion.paths import NAMES, Requests

ROWS = (ENDPOINTS, STYLE, BOTH)
SAMPLES = 4  # paths in a cell
REQUESTS = range(250, 250 + len(NAMES))  # behind those of the table, one of each style; not chosen

CELL, SAYS, GAP, LEFT, TOP, BOTTOM, HEAT = 190, 18, 10, 120, 88, 60, 96  # pixels
FINE = 3  # drawn so much larger, then reduced: Pillow draws lines with steps
REACH = 2.1  # a cell shows -REACH to REACH
COLOURS = 96  # of the file's palette

INK, FAINT, PAPER = (38, 38, 38), (225, 225, 225), (255, 255, 255)
ORANGE, BLUE = (222, 110, 10), (20, 120, 215)  # the endpoints' influence, and the style's
GREEN, RED = (20, 130, 60), (190, 40, 40)  # met, missed
SHADES = ((70, 70, 70), (115, 85, 160), (0, 130, 130), (170, 95, 60))  # of a cell's paths

Point = tuple[float, float]
Colour = tuple[int, int, int]


class Sheet:
    """A drawing in the picture's own pixels that becomes FINE times smaller at the end."""

    def __init__(self, width: int, height: int) -> None:
        self._image = Image.new("RGB", (width * FINE, height * FINE), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, at: Point, text: str, size: int = 12, colour: Colour = INK, anchor: str = "lm") -> None:
        self._draw.text(self._fine(at), text, colour, ImageFont.load_default(size * FINE), anchor)

    def line(self, points: list[Point], colour: Colour, width: float) -> None:
        self._draw.line([self._fine(point) for point in points], colour, round(width * FINE), "curve")

    def ring(self, at: Point, radius: float, colour: Colour, *, filled: bool) -> None:
        inside = colour if filled else PAPER
        self._draw.circle(self._fine(at), radius * FINE, inside, colour, round(1.6 * FINE))

    def frame(self, left: float, top: float, width: float, height: float) -> None:
        corners = (*self._fine((left, top)), *self._fine((left + width, top + height)))
        self._draw.rectangle(corners, outline=FAINT, width=FINE)

    def paste(self, picture: Image.Image, left: float, top: float, width: float, height: float) -> None:
        size = round(width * FINE), round(height * FINE)
        self._image.paste(picture.resize(size, Image.Resampling.BILINEAR), (round(left * FINE), round(top * FINE)))

    def save(self, path: Path) -> None:
        small = self._image.reduce(FINE)
        small.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)

    @staticmethod
    def _fine(at: Point) -> Point:
        return at[0] * FINE, at[1] * FINE


def draw_cell(sheet: Sheet, left: float, top: float, paths: np.ndarray, requests: Requests, i: int) -> None:
    """The paths [SAMPLES, POINTS] for request i, what was asked, and what the judge says."""

    def place(z: complex) -> Point:
        scale = CELL / (2 * REACH)
        return left + CELL / 2 + z.real * scale, top + CELL / 2 - z.imag * scale

    asked = Requests(requests.ends[[i] * SAMPLES], requests.styles[[i] * SAMPLES])
    verdict = judge(paths, asked)
    sheet.frame(left, top, CELL, CELL)
    for path, colour in zip(paths, SHADES, strict=True):
        sheet.line([place(z) for z in path], colour, 1.4)
        sheet.ring(place(path[0]), 2, colour, filled=True)
    start, goal = requests.ends[i]
    sheet.ring(place(start), 6, INK, filled=False)
    sheet.ring(place(goal), 6, INK, filled=False)
    sheet.ring(place(goal), 2.6, INK, filled=True)
    for name, met, x, anchor in (
        ("endpoints", verdict.endpoints_met, left, "lm"),
        ("style", verdict.style_met, left + CELL, "rm"),
    ):
        sheet.text((x, top + CELL + SAYS / 2), f"{name} {met.sum()}/{SAMPLES}", 11, GREEN if met.all() else RED, anchor)


def draw_influence(sheet: Sheet, left: float, top: float, influence: np.ndarray) -> None:
    """The endpoints' influence [steps, POINTS]: first step at the top, start at the left."""
    share = influence[..., None]
    colours = share * np.array(ORANGE) + (1 - share) * np.array(BLUE)
    sheet.paste(Image.fromarray(np.rint(colours).astype(np.uint8)), left, top, CELL, HEAT)


def mean_influence(steps: list[StepState]) -> np.ndarray:
    """[steps, POINTS]: the first modality's, mean over the batch."""
    return np.stack([state.influence[0].mean(axis=0)[0] for state in steps])


def draw(pipeline: Pipeline, requests: Requests) -> Sheet:
    pitch, height = CELL + GAP, CELL + SAYS + GAP
    heat_top = TOP + len(ROWS) * height
    sheet = Sheet(LEFT + len(REQUESTS) * pitch, heat_top + HEAT + BOTTOM)
    sheet.text((12, 22), "Two uni-modal diffusion models of motion, composed", 20)
    sheet.text((12, 46), f"Each cell: {SAMPLES} paths for one request, seed 0.", 12)
    for row, way in enumerate(ROWS):
        for line, word in enumerate(way.split()):
            sheet.text((12, TOP + row * height + CELL / 2 + 18 * line), word, 15)
    for line, word in enumerate(("influence", "of each branch", "first step", "at the top")):
        sheet.text((12, heat_top + 20 + 18 * line), word, 15 if not line else 12)
    for column, i in enumerate(REQUESTS):
        left, steps = LEFT + column * pitch, list[StepState]()
        sheet.text((left + CELL / 2, TOP - 12), NAMES[requests.styles[i]], 15, INK, "mm")
        for row, way in enumerate(ROWS):
            callback = steps.append if way == BOTH else None
            paths = sample(pipeline, requests, i, way, first=i * SAMPLES, batch=SAMPLES, callback=callback)
            draw_cell(sheet, left, TOP + row * height, paths, requests, i)
        draw_influence(sheet, left, heat_top, mean_influence(steps))
    draw_legend(sheet, heat_top + HEAT + 14)
    return sheet


def draw_legend(sheet: Sheet, top: float) -> None:
    """Start and goal below every influence; one line that explains all signs."""
    for column in range(len(REQUESTS)):
        left = LEFT + column * (CELL + GAP)
        sheet.text((left, top - 4), "start", 11)
        sheet.text((left + CELL, top - 4), "goal", 11, INK, "rm")
    x, y = LEFT + 8, top + 24
    sheet.ring((x, y), 6, INK, filled=False)
    sheet.text((x + 12, y), "start asked for", 12)
    sheet.ring((x + 130, y), 6, INK, filled=False)
    sheet.ring((x + 130, y), 2.6, INK, filled=True)
    sheet.text((x + 142, y), "goal asked for", 12)
    for offset, colour, words in (
        (260, ORANGE, "the endpoints' branch decides"),
        (480, BLUE, "the style's branch decides"),
    ):
        sheet.line([(x + offset, y), (x + offset + 20, y)], colour, 9)
        sheet.text((x + offset + 28, y), words, 12)


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(bundle: Path, out: Path) -> None:
    """Draw requests that are not in the table, the same for every way of running the model."""
    requests, _ = held_out(REQUESTS.stop)
    draw(Pipeline.from_pretrained(bundle), requests).save(out)


if __name__ == "__main__":
    main()
