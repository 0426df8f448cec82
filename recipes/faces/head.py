"""The turned head: its outline, the light on it, skin, ears and neck."""

from dataclasses import dataclass

import numpy as np

from recipes.faces.canvas import (
    PERSON_SIDE,
    SIDES,
    Array,
    Canvas,
    Outline,
    Point,
    Points,
    Window,
    channels,
    closed_outline,
    smooth_step,
    spot,
)
from recipes.faces.captions import Attributes
from recipes.faces.look import Color, Look

LIGHT_Y, LIGHT_Z = -0.42, 0.75


@dataclass(frozen=True)
class Face:
    """Where the parts of a turned head lie, and the fields every part is lit with."""

    outline: Outline
    inside: Array
    relative: Array
    diffuse: Array
    gloss: Array
    skin: Array

    def lit(self, color: Color | Array, window: Window, ambient: float) -> Array:
        light = ambient + (1.12 - ambient) * self.diffuse[window]
        return channels(color) * light


def turned(look: Look, x: float, depth: float) -> float:
    """Where a feature lands when the head turns: what stands out moves further."""
    return x + look.yaw * 0.13 * depth


def eye_centers(look: Look) -> tuple[tuple[int, float], ...]:
    return tuple((side, turned(look, side * look.eye_x, 0.45)) for side in SIDES)


def nose_tip(look: Look) -> Point:
    return turned(look, 0.0, 1.0), look.eye_y + look.nose_length


def head_side(look: Look, side: int) -> Points:
    """Crown, forehead, temple, cheekbone, jaw corner and chin of one half of the head."""
    narrowing = look.head_width * (1 - 0.07 * side * look.yaw)
    points = (
        (0.0, look.head_top),
        (0.26, look.head_top + 0.05),
        (0.42, look.head_top + 0.27),
        (0.485, -0.28),
        (0.487, -0.12),
        (look.cheekbone, 0.1),
        (look.cheekbone - 0.035, 0.29),
        (look.jaw_width, look.jaw_y + 0.04),
        (look.chin_width + 0.07, look.chin_y - 0.09),
        (look.chin_width * 0.75, look.chin_y),
        (0.0, look.chin_y + 0.015),
    )
    turn = [0.045 * look.yaw * float(np.clip(y + 0.3, 0, 1)) for _, y in points]
    return [(side * x * narrowing + shift, y) for (x, y), shift in zip(points, turn, strict=True)]


def head_outline(look: Look) -> Outline:
    return closed_outline(head_side(look, 1), head_side(look, -1), (0.0, 0.08))


def relief(canvas: Canvas, male: bool, smile: float) -> Array:
    """The height of the face above its rim: skull, brows, sockets, nose, cheeks, lips and chin."""
    look = canvas.look
    half_height = (look.chin_y - look.head_top) / 2
    # An ellipse instead of the outline: the outline's corners would show as creases of light.
    across = np.abs(canvas.x - 0.02 * look.yaw) / (0.55 * look.head_width)
    down = np.abs(canvas.y - look.chin_y + half_height) / (1.05 * half_height)
    height = 0.60 * np.sqrt(np.clip(1 - across**2.2 - down**2.4, 1e-3, 1))
    tip_x, tip_y = nose_tip(look)
    mouth_x, chin_x = turned(look, 0, 0.62), turned(look, 0, 0.5)
    lift = 0.04 * max(smile, 0)
    bumps = [
        (tip_x, tip_y - 0.02, 0.06, 0.055, 0.075),
        (mouth_x, look.mouth_y, look.mouth_width * 1.1, 0.12, 0.04),
        (mouth_x, look.mouth_y + 0.125, 0.11, 0.035, -0.025),
        (chin_x, look.chin_y - 0.13, 0.12, 0.08, 0.05 if male else 0.035),
    ]
    for side, eye_x in eye_centers(look):
        bumps += [
            (eye_x, look.eye_y - 0.01, 0.14, 0.085, -0.065),
            (eye_x, look.eye_y, 0.09, 0.06, 0.03),
            (eye_x, look.eye_y + look.brow_y + 0.02, 0.16, 0.05, 0.03 if male else 0.012),
            (turned(look, side * 0.31, 0.3), 0.2 - lift, 0.14, 0.12, 0.045 + 0.6 * lift),
            (tip_x + side * look.nose_width * 0.75, tip_y + 0.01, 0.04, 0.042, 0.05),
        ]
    for x, y, width, tall, amount in bumps:
        window, bump = spot(canvas, x, y, width, tall)
        height[window] += amount * bump
    add_nose_bridge(canvas, height)
    return height


def add_nose_bridge(canvas: Canvas, height: Array) -> None:
    look = canvas.look
    tip_x, tip_y = nose_tip(look)
    window = canvas.window(turned(look, 0, 0.75), look.eye_y + 0.1, 0.25, 0.36)
    x, y = canvas.x[window], canvas.y[window]
    down = np.clip((y - look.eye_y) / (tip_y - look.eye_y), 0, 1)
    axis = turned(look, 0, 0.5) + (tip_x - turned(look, 0, 0.5)) * down
    ridge = np.exp(-(((x - axis) / (0.038 + 0.03 * down)) ** 2)) * (0.025 + 0.12 * down**1.3)
    height[window] += (
        ridge * smooth_step(look.eye_y - 0.12, look.eye_y + 0.08, y) * smooth_step(tip_y + 0.075, tip_y, y)
    )


def light_field(canvas: Canvas, height: Array) -> tuple[Array, Array]:
    """Diffuse light and gloss of a height field under the look's lamp."""
    lamp = np.array([canvas.look.light_x, LIGHT_Y, LIGHT_Z])
    light_x, light_y, light_z = (float(part) for part in lamp / np.linalg.norm(lamp))
    slope_y, slope_x = np.gradient(height, np.float32(canvas.pixel))
    towards = -slope_x * light_x - slope_y * light_y
    steepness = np.sqrt(slope_x**2 + slope_y**2 + 1)
    diffuse = np.clip((towards + light_z) / steepness * 0.75 + 0.25, 0, 1)
    half_way = (towards + 1 + light_z) / steepness / np.sqrt(2 + 2 * light_z)
    return diffuse, np.clip(half_way, 0, 1) ** 24


def skin_color(look: Look, age: int) -> Array:
    """The skin's own colour; it grows paler and less saturated in old age."""
    base = np.array(look.skin)
    fade = (0, 0, 0, 0.03, 0.08, 0.16, 0.24)[age]
    return base * (1 - fade) + fade * base.mean() * np.array((1.04, 1.0, 0.92))


def build_face(canvas: Canvas, attributes: Attributes) -> Face:
    outline = head_outline(canvas.look)
    relative, distance = outline.measure(canvas.x, canvas.y)
    height = relief(canvas, attributes.male, attributes.smile)
    diffuse, gloss = light_field(canvas, height)
    rim_shadow = 1 - 0.32 * np.exp(-((distance / 0.06) ** 2))
    skin = skin_color(canvas.look, attributes.age)
    return Face(outline, canvas.inside(distance), relative, diffuse * rim_shadow, gloss, skin)


def paint_skin(canvas: Canvas, face: Face) -> None:
    look = canvas.look
    light = look.ambient + (1.12 - look.ambient) * face.diffuse
    shine = 0.14 * (0.6 + 0.4 * face.skin.mean())
    warmth = channels((1.03, 1.0, 0.98))
    canvas.put(face.inside, channels(face.skin) * warmth * light + shine * face.gloss, "skin")


def paint_neck(canvas: Canvas, face: Face) -> None:
    look = canvas.look
    window = canvas.window(0, look.chin_y + 0.25, 0.9, 0.6)
    x, y = canvas.x[window], canvas.y[window]
    half_width = look.neck_width + 0.5 * np.clip(y - look.shoulder_y + 0.12, 0, None) ** 1.3
    mask = canvas.inside(np.abs(x - 0.02 * look.yaw) - half_width) * (y > look.chin_y - 0.35)
    below_chin = smooth_step(look.chin_y + 0.26, look.chin_y - 0.02, y)
    roundness = np.clip(1 - 0.5 * (x / half_width) ** 2 + 0.5 * look.light_x * x / half_width, 0.2, 1.1)
    tone = (look.ambient + 0.55 * roundness) * (1 - 0.5 * below_chin)
    canvas.put(mask, channels(face.skin * (1.0, 0.95, 0.93)) * tone, "neck", window)


def ear_center(look: Look, side: int) -> Point:
    width = look.cheekbone * look.head_width * (1 - 0.07 * side * look.yaw)
    return side * (width - 0.005) + 0.015 * look.yaw, 0.05


def paint_ears(canvas: Canvas, face: Face) -> None:
    look = canvas.look
    for side in SIDES:
        x, y = ear_center(look, side)
        visible = 1 - 0.8 * float(np.clip(side * look.yaw, 0, 1))
        window = canvas.window(x, y, 0.13, 0.18)
        across, down = (canvas.x[window] - x) / (0.075 * visible), (canvas.y[window] - y) / 0.14
        reach = np.hypot(across - 0.12 * side * down, down)
        tone = look.ambient + 0.5 * np.clip(0.35 + 0.45 * reach + 0.4 * look.light_x * side, 0, 1)
        mask = canvas.inside((reach - 1) * 0.08)
        canvas.put(mask, channels(face.skin * (1.0, 0.9, 0.87)) * tone, f"{PERSON_SIDE[side]}_ear", window)
