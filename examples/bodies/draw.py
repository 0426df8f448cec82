"""The picture of this example: a request in each row; each expert alone, then both, turned, and who decided where.

python -m examples.bodies.draw --out bodies --picture examples/bodies/bodies.png
"""

from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cdiff_rt import StepState
from examples.bodies.evaluate import BOTH, BUILDS, MEAN, POSES, WEIGHED, Model
from examples.bodies.experts import JOINTS, LENGTHS
from examples.bodies.judge import held_out
from examples.bodies.people import People, faces, sentence
from examples.bodies.volumes import BLOCK, ORIGIN, SIDE, pixels, surface

REQUESTS = (242, 245, 250, 255)  # behind those of the table, two slim and two stout; not chosen by their results
CELL, HEAD, LEFT, FOOT, FINE = 150, 64, 10, 34, 2  # pixels; surfaces are drawn FINE times larger, then reduced
SCALE = 0.435 * CELL * FINE  # pixels to a metre
TURNS = (25, 115, 205, 295)  # degrees, of the turntable
LIGHT = np.array([-0.4, -0.75, 0.55]) / np.linalg.norm([-0.4, -0.75, 0.55])
GREY, ORANGE, BLUE = (0.72, 0.72, 0.74), (0.93, 0.5, 0.12), (0.16, 0.5, 0.88)  # the pose's expert, the words'
INK, PAPER, COLOURS = (38, 38, 38), (255, 255, 255), 128
BEFORE, BEHIND = ("asked for", POSES, BUILDS, MEAN), ("", "", "", "a true person")  # columns, around those of the way


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """[..., 3], about the vertical axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def on_paper(points: np.ndarray) -> np.ndarray:
    """[..., 3] seen from the front -> [..., 2] pixels."""
    return np.stack([points[..., 0], -points[..., 2] - 0.03], -1) * SCALE + CELL * FINE / 2


def render(vertices: np.ndarray, corners: np.ndarray, colours: np.ndarray, degrees: float) -> Image.Image:
    """A mesh [V, 3], [F, 3] of colours [V, 3], lit from the upper left: the nearest surface in each pixel."""
    size, at = CELL * FINE, turned(vertices, degrees)
    a, b, c = at[corners].swapaxes(0, 1)
    normal = np.cross(b - a, c - a)
    shade = 0.45 + 0.55 * np.abs(normal @ LIGHT) / np.linalg.norm(normal, axis=1).clip(min=1e-9)
    flat = on_paper(at)[corners]
    face, x, y = pixels(flat, (size, size))
    (ax, ay), (bx, by), (cx, cy) = flat[face].transpose(1, 2, 0)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    with np.errstate(divide="ignore", invalid="ignore"):
        s = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
        t = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
    hit = (area != 0) & (s >= 0) & (t >= 0) & (s + t <= 1)
    weights, face, x, y = np.stack([1 - s - t, s, t], 1)[hit], face[hit], x[hit], y[hit]
    far = (at[corners[face], 1] * weights).sum(1)
    colour = (colours[corners[face]] * weights[..., None]).sum(1) * shade[face, None]
    order = np.argsort(-far)  # the nearest is painted last
    picture = np.ones((size, size, 3))
    picture[y[order], x[order]] = colour[order]
    return Image.fromarray(np.rint(picture.clip(0, 1) * 255).astype(np.uint8)).reduce(FINE)


def stick(pose: np.ndarray) -> Image.Image:
    """The condition: eight directions, as long as a dancer's limbs."""
    size = CELL * FINE
    image = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(image)

    def line(*points: np.ndarray, width: int = 5 * FINE, colour: tuple[int, ...] = INK) -> None:
        draw.line([tuple(on_paper(turned(point, TURNS[0]))) for point in points], colour, width, "curve")

    joints = np.array(JOINTS)
    neck, middle = np.array([0, 0, 0.5]), joints[2:].mean(0)
    line(joints[0], neck, joints[1])
    line(neck + [0, 0, 0.08], middle)
    line(joints[2], middle, joints[3])
    for number, joint in enumerate(joints):
        ends = joint + np.cumsum(pose[2 * number :][:2] * np.array(LENGTHS)[2 * number :][:2, None], 0)
        line(joint, *ends, colour=tuple(int(255 * part) for part in ORANGE))
    draw.circle(tuple(on_paper(turned(np.array([0, 0, 0.7]), TURNS[0]))), 0.11 * SCALE, PAPER, INK, 5 * FINE)
    return image.reduce(FINE)


def shown(body: np.ndarray, degrees: float, share: np.ndarray | None = None) -> Image.Image:
    """A volume's surface; with `share` [x, y, z] of the pose's expert in each block, coloured by who decided."""
    from scipy.ndimage import map_coordinates

    vertices, corners = surface(body)
    colours = np.broadcast_to(GREY, vertices.shape)
    if share is not None:
        at = ((vertices - ORIGIN) / SIDE / BLOCK - 0.5).T
        part = map_coordinates(share, at, order=1, mode="nearest")[:, None]
        colours = part * ORANGE + (1 - part) * np.array(BLUE)
    return render(vertices, corners, colours, degrees)


def cells(model: Model, asked: People, i: int, way: str) -> list[Image.Image]:
    """A row."""
    steps = list[StepState]()
    alone = [shown(model.body(asked, i, each), TURNS[0]) for each in (POSES, BUILDS, MEAN)]
    body = model.body(asked, i, way, steps.append)
    share = np.mean([step.influence[0][0, 0] for step in steps], axis=0)
    both = [shown(body, degrees, share) for degrees in TURNS]
    truth = asked.vertices[i]
    return [stick(asked.poses[i]), *alone, *both, render(truth, faces(), np.broadcast_to(GREY, truth.shape), TURNS[0])]


def draw(model: Model, way: str) -> Image.Image:
    columns = (*BEFORE, way, *BEHIND)
    asked = held_out(max(REQUESTS) + 1)
    image = Image.new("RGB", (2 * LEFT + len(columns) * CELL, HEAD + len(REQUESTS) * (CELL + 18) + FOOT), PAPER)
    pen = ImageDraw.Draw(image)

    def text(x: float, y: float, words: str, size: int = 13, anchor: str = "mm") -> None:
        pen.text((x, y), words, INK, ImageFont.load_default(size), anchor)

    text(LEFT, 18, "An expert of poses that knows no builds, and one of builds that knows no poses", 18, "lm")
    for column, name in enumerate(columns):
        text(LEFT + (column + 0.5) * CELL, HEAD - 16, name)
    text(LEFT + 6.5 * CELL, HEAD - 16, "turned, coloured by who decided")
    for row, i in enumerate(REQUESTS):
        top = HEAD + row * (CELL + 18)
        for column, cell in enumerate(cells(model, asked, i, way)):
            image.paste(cell, (LEFT + column * CELL, top))
        text(LEFT + CELL / 2, top + CELL + 4, sentence(asked.kinds[i]))
    for x, colour, words in ((4.2, ORANGE, "the pose's expert decided"), (5.9, BLUE, "the words' expert decided")):
        x, y = LEFT + x * CELL, image.height - FOOT / 2
        pen.rectangle((x, y - 6, x + 22, y + 6), tuple(int(255 * part) for part in colour))
        text(x + 30, y, words, 13, "lm")
    return image


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="Of training."
)
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--way", type=click.Choice([WEIGHED, BOTH]), default=BOTH, show_default=True)
def main(out: Path, picture: Path, way: str) -> None:
    """Draw requests that are not in the table."""
    drawn = draw(Model.open(out), way)
    drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    main()
