"""Masks as somebody draws them with a mouse, none of them painted by the recipe: [256, 256] labels."""

import numpy as np
from PIL import Image, ImageDraw

from cdiff_rt.inputs.palette import CLASSES

LABEL = {name: index for index, name in enumerate(CLASSES)}


class Sheet:
    """A drawing in labels; coordinates are pixels of 256."""

    def __init__(self) -> None:
        self.image = Image.new("L", (256, 256))
        self.pen = ImageDraw.Draw(self.image)

    def blob(self, name: str, x: float, y: float, wide: float, high: float) -> None:
        self.pen.ellipse((x - wide, y - high, x + wide, y + high), fill=LABEL[name])

    def box(self, name: str, left: float, top: float, right: float, bottom: float) -> None:
        self.pen.rectangle((left, top, right, bottom), fill=LABEL[name])

    def shape(self, name: str, *points: tuple[float, float]) -> None:
        self.pen.polygon(points, fill=LABEL[name])

    def stroke(self, name: str, width: int, *points: tuple[float, float]) -> None:
        self.pen.line(points, fill=LABEL[name], width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            self.blob(name, x, y, width / 2, width / 2)

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(self.image)


def thick_brush() -> np.ndarray:
    """Everything with one fat brush; no ears, no brows."""
    sheet = Sheet()
    sheet.stroke("cloth", 40, (20, 250), (128, 232), (236, 250))
    sheet.stroke("neck", 56, (128, 190), (128, 222))
    sheet.blob("hair", 126, 96, 76, 84)
    sheet.blob("skin", 129, 132, 56, 78)
    sheet.stroke("r_eye", 13, (94, 122), (106, 122))
    sheet.stroke("l_eye", 13, (152, 122), (165, 123))
    sheet.stroke("nose", 15, (130, 130), (129, 160))
    sheet.stroke("u_lip", 9, (110, 182), (148, 181))
    sheet.stroke("l_lip", 9, (112, 191), (147, 190))
    return sheet.labels


def straight_edges() -> np.ndarray:
    """Boxes and polygons."""
    sheet = Sheet()
    sheet.box("cloth", 30, 224, 226, 255)
    sheet.box("neck", 100, 190, 156, 230)
    sheet.shape("hair", (66, 130), (66, 40), (96, 18), (160, 18), (190, 40), (190, 130))
    sheet.shape("skin", (76, 76), (180, 76), (180, 160), (150, 208), (106, 208), (76, 160))
    for side, x in (("r", 100), ("l", 156)):
        sheet.box(f"{side}_brow", x - 15, 99, x + 15, 105)
        sheet.box(f"{side}_eye", x - 13, 115, x + 13, 125)
    sheet.shape("nose", (124, 120), (132, 120), (142, 160), (114, 160))
    sheet.box("u_lip", 106, 178, 150, 184)
    sheet.box("l_lip", 106, 185, 150, 193)
    return sheet.labels


def sparse() -> np.ndarray:
    """A head, hair, eyes and a mouth, and nothing else."""
    sheet = Sheet()
    sheet.blob("hair", 128, 84, 72, 68)
    sheet.blob("skin", 128, 136, 58, 80)
    sheet.blob("r_eye", 101, 122, 11, 6)
    sheet.blob("l_eye", 157, 122, 11, 6)
    sheet.stroke("l_lip", 10, (108, 186), (150, 186))
    return sheet.labels


def shaky_long_hair() -> np.ndarray:
    """Long hair with glasses, outlines drawn by a shaking hand."""
    sheet, shake = Sheet(), np.random.default_rng(5)
    sheet.stroke("cloth", 44, (10, 252), (246, 250))

    def outline(x: float, y: float, wide: float, high: float) -> list[tuple[float, float]]:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        reach = 1 + 0.035 * shake.standard_normal(40)
        return list(zip(x + wide * reach * np.cos(angles), y + high * reach * np.sin(angles), strict=True))

    sheet.shape("hair", *outline(128, 138, 88, 126))
    sheet.stroke("neck", 52, (128, 196), (130, 226))
    sheet.shape("skin", *outline(128, 132, 56, 78))
    sheet.blob("eye_g", 98, 123, 25, 18)
    sheet.blob("eye_g", 158, 122, 25, 18)
    sheet.stroke("eye_g", 5, (98, 118), (158, 118))
    sheet.stroke("nose", 14, (128, 132), (127, 160))
    sheet.stroke("mouth", 6, (112, 183), (146, 182))
    sheet.stroke("l_lip", 8, (110, 191), (148, 189))
    return sheet.labels


FREEHAND = {drawing.__name__: drawing for drawing in (thick_brush, straight_edges, sparse, shaky_long_hair)}
