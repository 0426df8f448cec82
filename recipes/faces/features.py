"""Nose, mouth, eyes and brows."""

import numpy as np

from recipes.faces.aging import Aging
from recipes.faces.canvas import PERSON_SIDE, SIDES, Array, Canvas, Window, channels, smooth_step, spot
from recipes.faces.head import Face, nose_tip, turned
from recipes.faces.look import Look


def paint_nose(canvas: Canvas) -> None:
    look = canvas.look
    tip_x, tip_y = nose_tip(look)
    for side in SIDES:
        window, nostril = spot(canvas, tip_x + side * look.nose_width * 0.42, tip_y + 0.055, 0.028, 0.018)
        canvas.darken(0.6 * nostril, window)
    window, shadow = spot(canvas, tip_x, tip_y + 0.08, look.nose_width * 0.95, 0.024)
    canvas.darken(0.22 * shadow, window)
    window = canvas.window(turned(look, 0, 0.75), look.eye_y + 0.17, 0.25, 0.27)
    x, y = canvas.x[window], canvas.y[window]
    down = (y - look.eye_y) / (tip_y + 0.07 - look.eye_y)
    axis = turned(look, 0, 0.5) + (tip_x - turned(look, 0, 0.5)) * np.clip(down, 0, 1)
    wings = look.nose_width
    half_width = np.interp(down, (0, 0.45, 0.8, 1), (0.04, 0.055, wings * 1.1, wings * 0.8))
    canvas.mark((np.abs(x - axis) < half_width) & (down > 0) & (down < 1), "nose", window)


def lip_color(look: Look, skin: Array) -> Array:
    natural = skin * ((0.88, 0.58, 0.56) if look.lipstick else (0.93, 0.76, 0.73))
    painted = np.array((0.68 + 0.08 * look.spots[0], 0.16, 0.24))
    return natural * (1 - look.lipstick) + painted * look.lipstick


def paint_mouth(canvas: Canvas, face: Face, smile: float, aging: Aging) -> None:
    """Lips around a line that bends with the smile, and teeth when the smile opens them."""
    look = canvas.look
    happy = max(smile, 0)
    x0, y0 = turned(look, 0, 0.62), look.mouth_y
    half_width = look.mouth_width * (1 + 0.22 * happy)
    window = canvas.window(x0, y0, half_width + 0.06, 0.2)
    y = canvas.y[window]
    across = (canvas.x[window] - x0) / half_width
    arch = np.sqrt(np.clip(1 - across**2, 0, 1))
    line = y0 - 0.075 * smile * (across**2 - 0.25)
    gap = max(0.0, smile - 0.35) * 0.12 * arch
    bow = 0.78 + 0.22 * np.clip(np.abs(across) * 5, 0, 1) - 0.25 * np.abs(across)
    upper, lower = line - 0.4 * gap, line + 0.6 * gap
    upper_edge, lower_edge = upper - look.lip_height * arch * bow, lower + 1.25 * look.lip_height * arch**0.9
    inside = np.abs(across) < 1

    def between(top: Array, bottom: Array) -> Array:
        return canvas.inside(top - y) * canvas.inside(y - bottom) * inside

    color = lip_color(look, face.skin) * (1 - 0.12 * aging.sagging)
    if smile > 0.42:
        teeth = (0.95 - 0.3 * across**2) * smooth_step(-0.5, 0.4, (y - upper) / np.maximum(gap, 0.01))
        canvas.put(between(upper, lower), channels((1.0, 0.98, 0.93)) * teeth, "mouth", window)
    canvas.put(between(upper_edge, upper), face.lit(color * 0.84, window, look.ambient), "u_lip", window)
    sheen = 1 + 0.25 * np.exp(-(((y - lower - 0.5 * look.lip_height) / 0.02) ** 2) - (across / 0.5) ** 2)
    canvas.put(between(lower, lower_edge), face.lit(color, window, look.ambient) * sheen, "l_lip", window)
    shut = np.exp(-(((y - line) / 0.012) ** 2)) * (gap < 0.01) * inside
    canvas.darken(0.55 * shut, window)


def eye_color(canvas: Canvas, window: Window, eye_x: float, across: Array, down: Array, youth: float) -> Array:
    """White, iris, pupil and the spark of the lamp."""
    look = canvas.look
    radius = (0.85 + youth) * look.eye_height
    offset = canvas.x[window] - eye_x - look.gaze
    reach = np.hypot(offset, down + 0.004) / radius
    lid_shadow = 0.75 + 0.25 * smooth_step(-0.06, 0.0, down)
    white = channels((0.93, 0.91, 0.89)) * (1 - 0.28 * across**2) * lid_shadow
    ring = 0.75 + 0.7 * smooth_step(-0.2, 0.9, down / radius) - 0.5 * smooth_step(0.8, 1.0, reach)
    iris = channels(look.iris) * (ring * smooth_step(0.36, 0.46, reach))
    share = smooth_step(1.05, 0.95, reach)
    color = white * (1 - share) + iris * share
    spark = np.hypot(offset - 0.016 * np.sign(look.light_x), down + 0.02) < 0.0135
    return np.where(spark, 0.97, color)


def paint_eye(canvas: Canvas, side: int, eye_x: float, male: bool, aging: Aging) -> None:
    look = canvas.look
    half_width = look.eye_width * (1 - 0.1 * max(side * look.yaw, 0))
    window = canvas.window(eye_x, look.eye_y, half_width + 0.05, 0.15)
    across = (canvas.x[window] - eye_x) / half_width
    down = canvas.y[window] - look.eye_y + look.eye_slant * across * side
    arch = np.clip(1 - across**2, 0, 1)
    upper, lower = -look.eye_height * arch**0.7, 0.68 * look.eye_height * arch**0.85
    mask = canvas.inside(upper - down) * canvas.inside(down - lower) * (np.abs(across) < 1)
    color = eye_color(canvas, window, eye_x, across, down, youth=0.12 * aging.blush)
    canvas.put(mask, color, f"{PERSON_SIDE[side]}_eye", window)
    # With age the lid sinks over the eye in the picture only: the label keeps the open shape.
    lid_y = upper + 0.3 * aging.droop * look.eye_height * smooth_step(-0.8, 0.8, across * side)
    hood = np.exp(-(((down - lid_y + 0.012) / 0.022) ** 2)) * (aging.droop > 0.4)
    canvas.darken(0.3 * aging.droop * hood * (np.abs(across) < 1.1), window)
    lashes = np.exp(-(((down - lid_y) / (0.013 if male else 0.018)) ** 2)) * (np.abs(across) < 1.08)
    canvas.darken((0.45 if male else 0.85) * lashes, window, tint=(1.0, 1.0, 1.0))
    crease = np.exp(-(((down - upper + 0.036) / 0.012) ** 2)) * arch**0.5
    shade = np.exp(-(((down - upper + 0.03) / 0.035) ** 2)) * arch * (down < upper)
    canvas.darken(0.25 * crease + 0.4 * look.eye_shadow * shade, window, tint=(0.7, 1.0, 0.85))
    canvas.darken(0.25 * np.exp(-(((down - lower) / 0.009) ** 2)) * (arch > 0), window)


def paint_brow(canvas: Canvas, side: int, eye_x: float, color: Array, male: bool) -> None:
    look = canvas.look
    y0 = look.eye_y + look.brow_y
    window = canvas.window(eye_x, y0, 0.24, 0.12)
    across = (canvas.x[window] - eye_x - side * 0.012) / (look.eye_width * 1.22) * side
    middle = y0 - look.brow_slant * across + 0.035 * across**2 - 0.012
    thickness = look.brow_thickness * (1.05 - 0.5 * across) * np.clip(1.1 - np.abs(across), 0, 1) ** 0.35
    distance = np.abs(canvas.y[window] - middle) - thickness
    short_of_end = np.abs(across) < 1.05
    mask = canvas.inside(distance, softness=4) * short_of_end * (1.0 if male else 0.72)
    canvas.put(mask, color, None, window)
    canvas.mark((distance < 0) & short_of_end, f"{PERSON_SIDE[side]}_brow", window)
