"""The signs of age on a face; none of them leaves a trace in the label map."""

from dataclasses import dataclass

from recipes.faces.canvas import SIDES, Canvas, Point, groove, spot
from recipes.faces.head import Face, eye_centers, nose_tip, turned


@dataclass(frozen=True)
class Aging:
    """How strongly each sign of age shows, between 0 and 1."""

    blush: float
    folds: float
    eye_lines: float
    forehead: float
    eye_bags: float
    sagging: float
    spots: float
    droop: float


AGING = (
    Aging(1.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.0, 0.0),
    Aging(0.35, 0.06, 0.00, 0.00, 0.06, 0.00, 0.0, 0.0),
    Aging(0.15, 0.50, 0.42, 0.08, 0.36, 0.00, 0.0, 0.1),
    Aging(0.12, 0.60, 0.54, 0.52, 0.60, 0.15, 0.0, 0.3),
    Aging(0.10, 0.74, 0.72, 0.72, 0.74, 0.42, 0.2, 0.5),
    Aging(0.05, 0.84, 0.84, 0.80, 0.85, 0.72, 0.5, 0.7),
    Aging(0.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.0, 1.0),
)


def paint_blush(canvas: Canvas, face: Face, aging: Aging) -> None:
    look = canvas.look
    for side in SIDES:
        window, flush = spot(canvas, turned(look, side * 0.3, 0.3), 0.2, 0.14, 0.11)
        strength = (0.10 + 0.32 * aging.blush) * (0.4 + 0.6 * face.skin.mean())
        canvas.darken(strength * flush * face.inside[window], window, tint=(0.0, 0.55, 0.5))


def paint_baby_fat(canvas: Canvas, face: Face, aging: Aging) -> None:
    """Full cheeks over a jaw that falls into shadow make a young face look rounder."""
    look = canvas.look
    youth = max(aging.blush - 0.4, 0) / 0.6
    for side in SIDES:
        window, cheek = spot(canvas, turned(look, side * 0.27, 0.3), 0.34, 0.13, 0.13)
        canvas.lighten(0.12 * youth * cheek * face.inside[window], window)
        window, corner = spot(canvas, side * look.jaw_width * look.head_width, look.jaw_y + 0.15, 0.09, 0.13)
        canvas.darken(0.3 * youth * corner * face.inside[window], window)


def wrinkle(canvas: Canvas, face: Face, start: Point, end: Point, bend: float, width: float, depth: float) -> None:
    """A dark furrow with the light edge of the fold beneath it."""
    if depth <= 0:
        return
    window, line = groove(canvas, start, end, bend, width)
    canvas.darken(depth * line * face.inside[window], window, tint=(0.85, 1.0, 1.05))
    offset = 1.7 * width
    window, edge = groove(canvas, (start[0], start[1] + offset), (end[0], end[1] + offset), bend, width)
    canvas.lighten(0.3 * depth * edge * face.inside[window], window)


def paint_forehead_lines(canvas: Canvas, face: Face, aging: Aging) -> None:
    look = canvas.look
    brow = look.eye_y + look.brow_y
    middle = turned(look, 0, 0.4)
    for row, (half_width, strength) in enumerate(((0.27, 1.0), (0.3, 0.9), (0.24, 0.7))):
        y = brow - 0.105 - 0.082 * row + 0.01 * look.spots[row]
        depth = 0.34 * aging.forehead * strength
        wrinkle(canvas, face, (middle - half_width, y), (middle + half_width, y), 0.02, 0.017, depth)
    for side in SIDES:
        top = (turned(look, side * 0.045, 0.6), brow - 0.06)
        bottom = (turned(look, side * 0.04, 0.6), brow + 0.06)
        wrinkle(canvas, face, top, bottom, 0.0, 0.013, 0.32 * max(aging.forehead - 0.4, 0) / 0.6)


def paint_eye_wrinkles(canvas: Canvas, face: Face, aging: Aging) -> None:
    look = canvas.look
    for side, eye_x in eye_centers(look):
        corner = eye_x + side * look.eye_width * 1.08
        for slope in (-0.055, 0.01, 0.075):
            start, end = (corner, look.eye_y + slope * 0.3), (corner + side * 0.09, look.eye_y + slope * 1.4)
            wrinkle(canvas, face, start, end, 0.0, 0.013, 0.36 * aging.eye_lines)
        bag = look.eye_y + look.eye_height * 1.25
        start, end = (eye_x - look.eye_width, bag), (eye_x + look.eye_width, bag)
        wrinkle(canvas, face, start, end, 0.05, 0.02, 0.36 * aging.eye_bags)
        window, shadow = spot(canvas, eye_x, bag, 0.11, 0.032)
        canvas.darken((0.08 + 0.16 * aging.eye_bags) * shadow, window, tint=(0.8, 1.0, 0.85))


def paint_cheek_wrinkles(canvas: Canvas, face: Face, aging: Aging, smile: float) -> None:
    look = canvas.look
    tip_x, tip_y = nose_tip(look)
    mouth_x, mouth_y = turned(look, 0, 0.62), look.mouth_y
    for side in SIDES:
        wing = (tip_x + side * (look.nose_width + 0.03), tip_y + 0.01)
        corner = (mouth_x + side * (look.mouth_width + 0.07), mouth_y + 0.03)
        depth = 0.44 * aging.folds + 0.1 * max(smile, 0)
        wrinkle(canvas, face, wing, corner, side * 0.02, 0.021, depth)
        below = (mouth_x + side * (look.mouth_width + 0.035), mouth_y + 0.06)
        jowl = (mouth_x + side * (look.mouth_width + 0.07), mouth_y + 0.24)
        wrinkle(canvas, face, below, jowl, side * 0.01, 0.026, 0.3 * aging.sagging)
        lobe, cheek = (turned(look, side * 0.37, 0.2), 0.2), (turned(look, side * 0.33, 0.3), 0.5)
        wrinkle(canvas, face, lobe, cheek, -side * 0.02, 0.02, 0.24 * max(aging.sagging - 0.7, 0) / 0.3)
        hollow_x = turned(look, side * 0.35, 0.25)
        window, hollow = spot(canvas, hollow_x, 0.34, 0.07, 0.13)
        canvas.darken(0.14 * aging.sagging * hollow * face.inside[window], window)
        window, pouch = spot(canvas, turned(look, side * 0.3, 0.3), look.jaw_y + 0.06, 0.08, 0.07)
        canvas.lighten(0.14 * aging.sagging * pouch * face.inside[window], window)


def paint_neck_cords(canvas: Canvas, aging: Aging) -> None:
    look = canvas.look
    for side in SIDES:
        start, end = (side * 0.06, look.chin_y + 0.02), (side * 0.1, look.chin_y + 0.17)
        cord, line = groove(canvas, start, end, 0.01, 0.022)
        canvas.darken(0.25 * aging.sagging * line, cord)


def paint_age_spots(canvas: Canvas, aging: Aging) -> None:
    spots = canvas.look.spots
    for across, down in zip(spots[:5], spots[5:], strict=True):
        window, blotch = spot(canvas, 0.36 * across, -0.1 + 0.4 * down, 0.035, 0.028)
        canvas.darken(0.2 * aging.spots * blotch, window, tint=(0.6, 0.9, 1.0))
