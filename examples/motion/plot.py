"""The picture of this example: a request in each column, a way of running the model in each row.

python -m examples.motion.plot --model motion --out examples/motion/motion.png
"""

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.loop import StepState
from examples.motion.evaluate import BOTH, POINTS_ONLY, STYLE_ONLY, sample
from examples.motion.gait import BONES, NAMES
from examples.motion.judge import WAYPOINTS_KEPT, judge, waypoint_distances
from examples.motion.motions import FRAMES, RATE, Motions, Requests, as_motions, draw
from examples.motion.train import BUNDLE

ROWS = {STYLE_ONLY: ("action word", "only"), POINTS_ONLY: ("way-points", "only"), BOTH: ("both,", "collaborative")}
SEED, SHOWN = 2, (1, 2, 4)  # requests of no table: march, sneak, hop
EVERY = 9  # frames between two skeletons

WIDTH, HEIGHT, GAP, LEFT, TOP, BOTTOM, HEAT = 400, 190, 12, 112, 74, 60, 54  # pixels
FINE = 3  # drawn so much larger, then reduced: Pillow draws lines with steps
SCALE, TILT, GROUND = (
    76.0,
    0.36,
    44,
)  # pixels of a metre, of a metre away from the eye; of the ground's middle from below
COLOURS = 256  # of the file's palette

INK, FAINT, PAPER = (38, 38, 38), (225, 225, 225), (255, 255, 255)
ORANGE, BLUE = (222, 110, 10), (20, 120, 215)  # the way-points' influence, and the word's
GREEN, RED = (20, 130, 60), (190, 40, 40)  # met, missed

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

    def ring(self, at: Point, radius: float, colour: Colour, *, filled: bool, flat: float = 1.0) -> None:
        x, y = self._fine(at)
        corners = (x - radius * FINE, y - flat * radius * FINE, x + radius * FINE, y + flat * radius * FINE)
        self._draw.ellipse(corners, colour if filled else None, colour, round(1.6 * FINE))

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


def draw_cell(sheet: Sheet, left: float, top: float, motions: Motions, asked: Requests) -> None:
    """One motion among its way-points, and what the judge says. The way from first to last goes to the right."""
    points = asked.points[0, :, :2] @ (1, 1j)
    middle = (points[0] + points[-1]) / 2
    turn = np.exp(-1j * np.angle(points[-1] - points[0]))

    def place(z: complex, up: float = 0.0) -> Point:
        across = (z - middle) * turn
        return left + WIDTH / 2 + SCALE * across.real, top + HEIGHT - GROUND - SCALE * (TILT * across.imag + up)

    verdict, met = judge(motions, asked), waypoint_distances(motions, asked)[0] <= WAYPOINTS_KEPT
    sheet.frame(left, top, WIDTH, HEIGHT)
    sheet.line([place(z) for z in motions.root[0]], (170, 170, 170), 1.2)
    for point, kept in zip(points, met, strict=True):
        sheet.ring(place(point), SCALE * 0.13, GREEN if kept else RED, filled=bool(kept), flat=TILT)
    places = motions.places()[0]
    for frame in range(0, FRAMES, EVERY):
        draw_skeleton(sheet, places[frame], place, frame / (FRAMES - 1))
    for said, kept, x, anchor in (
        (f"way-points {met.sum()}/4", met.all(), left + 6, "lm"),
        (NAMES[verdict.style[0]] if verdict.style_met[0] else f"no {NAMES[asked.styles[0]]}", verdict.style_met[0],
         left + WIDTH - 6, "rm"),
    ):  # fmt: skip
        sheet.text((x, top + 10), said, 11, GREEN if kept else RED, anchor)


def draw_skeleton(sheet: Sheet, joints: np.ndarray, place: Callable[..., Point], share: float) -> None:
    """Early ones are lighter."""
    at = [place(x + 1j * y, up) for x, y, up in joints]
    shade = (round(175 - 150 * share),) * 3
    for first, second in BONES:
        sheet.line([at[first], at[second]], shade, 1.5)
    sheet.ring(at[2], 3.4, shade, filled=True)


def draw_influence(sheet: Sheet, left: float, top: float, steps: list[StepState]) -> None:
    """The way-points' influence [steps, FRAMES]: first step at the top, first frame at the left."""
    share = np.stack([state.influence[1][0, 0] for state in steps])[..., None]
    colours = share * np.array(ORANGE) + (1 - share) * np.array(BLUE)
    sheet.paste(Image.fromarray(np.rint(colours).astype(np.uint8)), left, top, WIDTH, HEAT)


def picture(folder: Path) -> Sheet:
    pipeline = Pipeline.from_pretrained(folder / BUNDLE)
    requests, _ = draw(max(SHOWN) + 1, np.random.default_rng(SEED))
    heat_top = TOP + len(ROWS) * (HEIGHT + GAP)
    sheet = Sheet(LEFT + len(SHOWN) * (WIDTH + GAP), heat_top + HEAT + BOTTOM)
    sheet.text((12, 20), "A diffusion model that knows words, and one that knows way-points, make one motion", 18)
    for row, words in enumerate(ROWS.values()):
        for line, word in enumerate(words):
            sheet.text((12, TOP + row * (HEIGHT + GAP) + HEIGHT / 2 + 18 * line), word, 14)
    for line, word in enumerate(("influence", "first step at the top")):
        sheet.text((12, heat_top + 18 + 18 * line), word, 10 if line else 14)
    for column, i in enumerate(SHOWN):
        left, steps = LEFT + column * (WIDTH + GAP), list[StepState]()
        asked = Requests(requests.styles[[i]], requests.points[[i]])
        sheet.text(
            (left + WIDTH / 2, TOP - 14), f'"{NAMES[asked.styles[0]]}", by four points on the ground', 14, INK, "mm"
        )
        for row, way in enumerate(ROWS):
            latents = sample(folder, pipeline, requests, i, way, callback=steps.append if way == BOTH else None)
            draw_cell(sheet, left, TOP + row * (HEIGHT + GAP), as_motions(latents), asked)
        draw_influence(sheet, left, heat_top, steps)
        for number, t in enumerate(asked.points[0, :, 2]):
            at = left + WIDTH * t * RATE / (FRAMES - 1)
            sheet.line([(at, heat_top + HEAT), (at, heat_top + HEAT + 5)], INK, 1.4)
            sheet.text((at, heat_top + HEAT + 12), f"{number + 1}", 11, INK, "mm")
    draw_legend(sheet, LEFT, heat_top + HEAT + 40)
    return sheet


def draw_legend(sheet: Sheet, x: float, y: float) -> None:
    for offset, colour, filled, words in (
        (10, GREEN, True, "way-point passed in time"),
        (200, RED, False, "way-point missed"),
    ):
        sheet.ring((x + offset, y), 9, colour, filled=filled, flat=TILT)
        sheet.text((x + offset + 14, y), words, 12)
    for offset, colour, words in (
        (350, ORANGE, "the way-points' model decides"),
        (600, BLUE, "the word's model decides"),
    ):
        sheet.line([(x + offset, y), (x + offset + 20, y)], colour, 9)
        sheet.text((x + offset + 28, y), words, 12)
    sheet.text((x + 830, y), "1 to 4: frames of the way-points; 4 seconds from left to right", 12)


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(model: Path, out: Path) -> None:
    """Draw requests that are not in the table, the same for every way of running the model."""
    picture(model).save(out)


if __name__ == "__main__":
    main()
