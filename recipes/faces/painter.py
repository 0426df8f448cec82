"""A painter of synthetic portraits: image, label map of 19 classes, attributes and caption."""

from dataclasses import dataclass

import numpy as np

from recipes.faces.aging import (
    AGING,
    paint_age_spots,
    paint_baby_fat,
    paint_blush,
    paint_cheek_wrinkles,
    paint_eye_wrinkles,
    paint_forehead_lines,
    paint_neck_cords,
)
from recipes.faces.canvas import SIDES, Array, Canvas, channels, smooth_step
from recipes.faces.captions import AGES, BEARDS, HAIR_COLORS, Attributes, caption, sample_attributes, words
from recipes.faces.features import paint_brow, paint_eye, paint_mouth, paint_nose
from recipes.faces.hair import hair_color, paint_back_hair, paint_beard, paint_front_hair
from recipes.faces.head import Face, build_face, ear_center, eye_centers, paint_ears, paint_neck, paint_skin
from recipes.faces.look import Look, draw_look

__all__ = [
    "AGES", "BEARDS", "HAIR_COLORS", "Attributes", "Portrait",
    "caption", "paint", "portrait", "sample_attributes", "words",
]  # fmt: skip


@dataclass(frozen=True)
class Portrait:
    image: Array
    labels: Array
    attributes: Attributes
    caption: str


def paint_background(canvas: Canvas) -> None:
    look = canvas.look
    along = canvas.screen_x * np.cos(look.background_angle) + canvas.screen_y * np.sin(look.background_angle)
    share = smooth_step(-1.3, 1.3, along)
    canvas.image[:] = channels(look.background_from) * (1 - share) + channels(look.background_to) * share


def paint_clothes(canvas: Canvas) -> None:
    look = canvas.look
    window = canvas.window(0, look.shoulder_y + 0.25, 1.3, 0.5)
    x, y = canvas.x[window], canvas.y[window]
    shoulder = look.shoulder_y + look.shoulder_slope * np.clip(np.abs(x) - look.neck_width, 0, None) - 0.04
    dip = (y - look.shoulder_y + 0.06) / (look.neckline_depth + 0.06)
    neckline = np.hypot(x / look.neckline_width, dip) - 1
    mask = canvas.inside(shoulder - y) * canvas.inside(-0.2 * neckline)
    hem = np.exp(-((neckline / 0.15) ** 2))
    tone = 0.55 + 0.4 * np.clip(1 - np.abs(x - 0.4 * look.light_x), 0, 1) - 0.15 * hem
    canvas.put(mask, channels(look.cloth) * tone, "cloth", window)


def paint_necklace(canvas: Canvas) -> None:
    look = canvas.look
    ring = np.hypot(canvas.x, (canvas.y - look.chin_y + 0.12) * 0.9) - look.neck_width * 1.02
    mask = canvas.inside(np.abs(ring) - 0.016) * (canvas.y > look.chin_y - 0.02)
    shine = 0.75 + 0.25 * np.cos(60 * canvas.x)
    canvas.put(mask, channels((0.9, 0.78, 0.4)) * shine, "neck_l")


def paint_earrings(canvas: Canvas) -> None:
    for side in SIDES:
        x, y = ear_center(canvas.look, side)
        window = canvas.window(x, y + 0.2, 0.06, 0.08)
        reach = np.hypot(canvas.x[window] - x - side * 0.025, (canvas.y[window] - y - 0.2) * 0.75)
        tone = 1.1 - 9 * np.clip(reach, 0, 0.05)
        canvas.put(canvas.inside(reach - 0.038), channels((0.95, 0.85, 0.5)) * tone, "ear_r", window)


def paint_glasses(canvas: Canvas) -> None:
    look = canvas.look
    y0 = look.eye_y + 0.02
    window = canvas.window(0.0, y0, 0.62, 0.2)
    x, y = canvas.x[window], canvas.y[window] - y0
    power = look.glasses_squareness
    rims = np.zeros_like(x)
    lenses = np.zeros(x.shape, bool)
    (_, left_x), (_, right_x) = eye_centers(look)
    for eye_x in (left_x, right_x):
        reach = np.abs((x - eye_x) / look.glasses_width) ** power + np.abs(y / look.glasses_height) ** power
        distance = (reach ** (1 / power) - 1) * look.glasses_height
        rims = np.maximum(rims, canvas.inside(np.abs(distance) - look.glasses_rim))
        lenses |= distance < look.glasses_rim
    between = (x > left_x) & (x < right_x)
    beside = (x < left_x) | (x > right_x)
    face_width = look.cheekbone * look.head_width
    bars = (np.abs(y + 0.03) < look.glasses_rim) & ~lenses & (between | (beside & (np.abs(x) < face_width)))
    canvas.put(lenses * 0.07, (1.0, 1.0, 1.0), None, window)
    canvas.put(np.maximum(rims, bars), look.glasses_color, None, window)
    canvas.mark(lenses | bars, "eye_g", window)


def paint_hat(canvas: Canvas) -> None:
    look = canvas.look
    brim = -0.36 + 0.08 * (canvas.x / 0.5) ** 2
    half = 0.55 * look.head_width + 0.6 * look.hair_volume
    top = look.head_top - 0.1
    rise = np.clip((canvas.y - brim) / (top - brim), 0, None)
    distance = ((np.abs(canvas.x) / half) ** 2.4 + rise**2.4) ** (1 / 2.4) - 1
    mask = canvas.inside(distance * 0.5) * canvas.inside(canvas.y - brim)
    tone = 1.05 - 0.5 * np.clip(distance + 1, 0, 1) ** 3 + 0.3 * look.light_x * canvas.x
    band = 1 - 0.3 * smooth_step(brim - 0.15, brim - 0.13, canvas.y)
    canvas.put(mask, channels(look.cloth[::-1]) * tone * band + 0.04, "hat")


def paint_face(canvas: Canvas, face: Face, attributes: Attributes) -> None:
    aging = AGING[attributes.age]
    paint_skin(canvas, face)
    paint_blush(canvas, face, aging)
    paint_baby_fat(canvas, face, aging)
    paint_forehead_lines(canvas, face, aging)
    paint_eye_wrinkles(canvas, face, aging)
    paint_cheek_wrinkles(canvas, face, aging, attributes.smile)
    paint_age_spots(canvas, aging)
    paint_nose(canvas)
    paint_beard(canvas, face.outline, attributes)
    paint_mouth(canvas, face, attributes.smile, aging)
    brow_color = np.minimum(hair_color(canvas.look, attributes) * 0.7, 0.6)
    for side, eye_x in eye_centers(canvas.look):
        paint_eye(canvas, side, eye_x, attributes.male, aging)
        paint_brow(canvas, side, eye_x, brow_color, attributes.male)


def ears_show(look: Look, attributes: Attributes) -> bool:
    return attributes.hair in ("bald", "short") or look.ears_free


def paint(
    attributes: Attributes, rng: np.random.Generator, size: int = 128, supersample: int = 2
) -> tuple[Array, Array]:
    """Paint the image (uint8 [size, size, 3]) and the label map (uint8 [size, size])."""
    look = draw_look(attributes, rng)
    canvas = Canvas(look, size * supersample)
    face = build_face(canvas, attributes)
    paint_background(canvas)
    paint_back_hair(canvas, attributes)
    paint_neck(canvas, face)
    paint_neck_cords(canvas, AGING[attributes.age])
    paint_clothes(canvas)
    if attributes.necklace:
        paint_necklace(canvas)
    if ears_show(look, attributes):
        paint_ears(canvas, face)
    paint_face(canvas, face, attributes)
    if attributes.glasses:
        paint_glasses(canvas)
    paint_front_hair(canvas, attributes, face.relative)
    if attributes.hat:
        paint_hat(canvas)
    if attributes.earrings and ears_show(look, attributes):
        paint_earrings(canvas)
    return finish(canvas, size, supersample)


def finish(canvas: Canvas, size: int, supersample: int) -> tuple[Array, Array]:
    """Average the image and pick the labels down to the final size."""
    blocks = canvas.image.reshape(3, size, supersample, size, supersample).mean((2, 4))
    image = (np.clip(blocks, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    middle = slice(supersample // 2, None, supersample)
    return np.ascontiguousarray(image), np.ascontiguousarray(canvas.labels[middle, middle])


def portrait(seed: int, size: int = 128) -> Portrait:
    """The portrait of a seed: the same seed gives the same bytes."""
    rng = np.random.default_rng(seed)
    attributes = sample_attributes(rng)
    image, labels = paint(attributes, rng, size)
    return Portrait(image, labels, attributes, caption(attributes, rng))
