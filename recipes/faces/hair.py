"""Hair and beards of the synthetic portraits."""

from dataclasses import dataclass

import numpy as np

from recipes.faces.canvas import (
    Array,
    Canvas,
    Outline,
    Points,
    channels,
    closed_outline,
    smooth_step,
    strands,
)
from recipes.faces.captions import Attributes
from recipes.faces.look import Look

PIGMENTS = {
    "black": (0.075, 0.065, 0.065),
    "brown": (0.30, 0.175, 0.10),
    "blond": (0.80, 0.61, 0.31),
    "red": (0.52, 0.20, 0.075),
    "gray": (0.50, 0.50, 0.52),
    "white": (0.88, 0.87, 0.86),
}
GRAY_TEMPLES = (0.0, 0.0, 0.0, 0.08, 0.7, 0.55, 0.6)
THINNING = (0.0, 0.0, 0.0, 0.0, 0.1, 0.35, 0.75)
MAX_FRINGE_Y = -0.18


@dataclass(frozen=True)
class Beard:
    """How far a beard stands off the face, how deep it hangs and how much skin it hides."""

    thickness: float
    length: float
    opacity: float


BEARD_SHAPES = (
    Beard(0.0, 0.0, 0.0),
    Beard(0.0, 0.0, 0.52),
    Beard(0.006, 0.012, 0.84),
    Beard(0.035, 0.12, 0.95),
    Beard(0.025, 0.42, 0.97),
)


def hair_color(look: Look, attributes: Attributes) -> Array:
    pigment = np.array(PIGMENTS[attributes.hair_color])
    return pigment * (1 + 0.12 * look.hair_tint)


def hair_side(look: Look, style: str, side: int) -> Points:
    """The outer edge of the hair on one side, from the crown down."""
    volume, end = look.hair_volume, look.hair_end
    width = look.cheekbone * look.head_width * (1 - 0.03 * side * look.yaw)
    crown = [
        (0.0, look.head_top - 0.75 * volume),
        (0.28, look.head_top + 0.035 - 0.8 * volume),
        (width * 0.9 + 0.5 * volume, look.head_top + 0.27),
        (width + 0.8 * volume, -0.3),
    ]
    if style == "short":
        lower = [(width + 0.4 * volume, -0.05), (width + 0.01, end), (0.3, end + 0.06), (0.0, end + 0.08)]
    elif style == "medium":
        bell = width + volume + 0.5 * look.hair_flare
        lower = [(width + volume, 0.0), (bell, 0.35), (bell + 0.03, end)]
        lower += [(0.3, end + 0.09), (0.0, end + 0.09)]
    else:
        bell = width + volume + look.hair_flare
        lower = [(width + volume, 0.05), (bell, 0.5), (bell + 0.05, 1.0), (bell, end), (0.0, end)]
    return [(side * x, y) for x, y in (*crown, *lower)]


def hair_outline(look: Look, style: str) -> Outline:
    wiggle = 0.010 if style == "short" else 0.014
    right, left = (hair_side(look, style, side) for side in (1, -1))
    return closed_outline(right, left, (0.0, 0.08), wiggle, look.hair_phase, smoothing=61)


def opening_side(look: Look, attributes: Attributes, side: int) -> Points:
    """The edge between hair and face on one side: hairline or fringe, temple, and down the cheek."""
    part = look.hair_part
    width = look.cheekbone * look.head_width * (1 - 0.07 * side * look.yaw)
    shift = 0.02 * look.yaw
    if attributes.bangs:
        fringe = [min(look.fringe_y + look.fringe_slope * side * x, MAX_FRINGE_Y) for x in (0.0, 0.2, 0.36)]
        top = [(0.0, fringe[0]), (0.2 * side, fringe[1]), (0.36 * side, fringe[2])]
    elif attributes.hair == "short":
        top = [(0.0, look.hair_line), (0.24 * side, look.hair_line - 0.01 - 0.1 * side * part)]
        top += [(0.38 * side, look.hair_line + 0.16)]
    else:
        bow = 0.5 * part + 0.24 * side
        top = [(part, look.hair_line - 0.05), (bow, look.hair_line + 0.06), (0.385 * side, -0.32)]
    if attributes.hair == "short":
        bottom = [(0.87 * width, -0.12), (0.90 * width, 0.04), (width + 0.1, 0.12), (0.6, 0.6), (0.0, 1.2)]
    else:
        cover = min(look.hair_cover, 0.95 * width)
        bottom = [(cover, -0.1), (cover, 0.25), (cover - 0.02, 0.5)]
        bottom += [(cover - 0.05, 0.9), (0.3, 1.5), (0.0, 1.6)]
    return [(x + shift, y) for x, y in top] + [(side * x + shift, y) for x, y in bottom]


def face_opening(look: Look, attributes: Attributes) -> Outline:
    wiggle = 0.016 if attributes.hair == "short" or attributes.bangs else 0.008
    right, left = (opening_side(look, attributes, side) for side in (1, -1))
    return closed_outline(right, left, (0.04 * look.yaw, 0.08), wiggle, look.hair_phase + 3, smoothing=31)


def wavy(canvas: Canvas, attributes: Attributes) -> Array:
    """Horizontal positions swayed by the waves of the hair."""
    look = canvas.look
    if attributes.hair == "short":
        return canvas.x
    sway = np.sin(look.hair_wave_rate * canvas.y + look.hair_phase + 1.3 * np.sign(canvas.x))
    return canvas.x + look.hair_wave * smooth_step(-0.5, 0.1, canvas.y) * sway


def strand_pattern(canvas: Canvas, attributes: Attributes, x: Array, relative: Array) -> Array:
    """Light and dark locks: combed back, fanned into a fringe, or falling from the parting."""
    look = canvas.look
    below_root = 0.75 - canvas.y if attributes.hair == "short" else canvas.y + 1.5
    fan = np.arctan2(x - 0.5 * look.hair_part, below_root)
    fan_locks = strands(0.42 * fan + 0.05 * relative + look.hair_phase)
    if attributes.hair == "short":
        return fan_locks
    side = x > look.hair_part
    falling_locks = strands(0.34 * relative + 0.03 * canvas.y + 1.7 * side + look.hair_phase)
    if not attributes.bangs:
        return falling_locks
    share = smooth_step(-0.1, -0.4, canvas.y) * smooth_step(0.95, 0.75, relative)
    return falling_locks * (1 - share) + fan_locks * share


def hair_shade(canvas: Canvas, relative: Array, locks: Array) -> tuple[Array, Array]:
    """Brightness of the hair as a dome with locks, and the band of gloss around the crown."""
    look, x, y = canvas.look, canvas.x, canvas.y
    bent = np.clip(relative, 0, 1) ** 2
    towards_lamp = 1.1 * look.light_x * x - 0.35 * np.clip(y, -1, 0.5)
    facing = 0.55 + 0.45 * np.sqrt(1.0001 - bent) + bent * towards_lamp
    shade = (look.ambient + 0.62 * facing) * (1 + 0.2 * locks)
    band = np.exp(-(((relative - 0.82) / 0.09) ** 2)) * smooth_step(0.1, -0.45, y)
    return shade, band * np.clip(0.6 + 0.4 * locks, 0, 1.4)


def grayed(canvas: Canvas, attributes: Attributes, locks: Array) -> Array:
    """The hair colour over the image, with gray temples or gray locks from the fifties on."""
    color = channels(hair_color(canvas.look, attributes))
    amount = GRAY_TEMPLES[attributes.age]
    if amount == 0 or attributes.hair_color in ("gray", "white"):
        return color
    at_temples = smooth_step(0.3, 0.46, np.abs(canvas.x)) * smooth_step(-0.6, -0.4, canvas.y)
    if attributes.hair == "short":
        share = amount * at_temples
    else:
        streaks = np.clip(0.5 + 0.5 * locks, 0, 1) * smooth_step(-0.75, -0.5, canvas.y)
        share = amount * (0.45 * streaks + 0.25 * at_temples * smooth_step(0.9, 0.0, canvas.y))
    return color * (1 - share) + 0.62 * share


def painted_hair(canvas: Canvas, attributes: Attributes, relative: Array, x: Array) -> tuple[Array, Array]:
    locks = strand_pattern(canvas, attributes, x, relative)
    shade, band = hair_shade(canvas, relative, locks)
    color = grayed(canvas, attributes, locks)
    return np.minimum(color * shade + (color * 0.45 + 0.05) * band, 1), locks


def paint_back_hair(canvas: Canvas, attributes: Attributes) -> None:
    """The shaded hair behind neck and shoulders."""
    if attributes.hair not in ("medium", "long"):
        return
    x = wavy(canvas, attributes)
    relative, distance = hair_outline(canvas.look, attributes.hair).measure(x, canvas.y)
    color = channels(hair_color(canvas.look, attributes))
    tone = 0.42 + 0.35 * smooth_step(0.6, 1.0, relative)
    canvas.put(canvas.inside(distance, softness=2), color * tone, "hair")


def thinness(canvas: Canvas, attributes: Attributes, beyond: Array, locks: Array, head: Array) -> Array:
    """How much scalp shows through near the hairline of old people."""
    amount = THINNING[attributes.age] * (1.0 if attributes.male else 0.45) * (not attributes.bangs)
    near_hairline = smooth_step(0.24, 0.02, beyond) * smooth_step(-0.2, -0.4, canvas.y)
    return amount * near_hairline * np.clip(0.75 - 0.35 * locks, 0, 1) * (head < 1)


def paint_front_hair(canvas: Canvas, attributes: Attributes, head: Array) -> None:
    """The hair over the head: all within its outline except the opening for the face."""
    if attributes.hair == "bald":
        return
    look = canvas.look
    x = wavy(canvas, attributes)
    relative, distance = hair_outline(look, attributes.hair).measure(x, canvas.y)
    _, beyond = face_opening(look, attributes).measure(x, canvas.y)
    color, locks = painted_hair(canvas, attributes, relative, x)
    shadow = smooth_step(-0.13, 0.0, beyond) * (distance < 0) * (head < 1)
    canvas.darken((0.34 if attributes.bangs or attributes.hair != "short" else 0.15) * shadow)
    root = 1 - (0.30 if attributes.hair == "short" else 0.42) * smooth_step(0.11, 0.0, beyond)
    within = canvas.inside(distance, softness=2)
    mask = within * canvas.inside(-beyond, softness=4)
    soft = within * smooth_step(-0.015, 0.06, beyond + 0.012 * locks)
    visible = (soft if attributes.hair == "short" else mask) * (1 - thinness(canvas, attributes, beyond, locks, head))
    canvas.put(visible, color * root)
    canvas.mark(mask > 0.5, "hair")
    if not attributes.bangs:
        paint_parting(canvas, attributes, mask)


def paint_parting(canvas: Canvas, attributes: Attributes, mask: Array) -> None:
    look = canvas.look
    window = canvas.window(look.hair_part, look.hair_line - 0.12, 0.08, 0.2)
    line = np.exp(-(((canvas.x[window] - look.hair_part) / 0.022) ** 2)) * mask[window]
    canvas.darken((0.15 if attributes.hair == "short" else 0.35) * line, window, tint=(1.0, 1.0, 1.0))


def beard_outline(look: Look, beard: Beard, head: Outline) -> Outline:
    """The head's outline grown by the beard, drawn out downwards when it is long."""
    directions = np.linspace(-np.pi, np.pi, len(head.radii), endpoint=False)
    downward = np.clip(-np.cos(directions), 0, 1)
    growth = beard.thickness * smooth_step(0.0, 0.5, downward) + beard.length * downward**4
    ragged = 0.1 * (beard.thickness + 0.25 * beard.length) * strands(0.35 * directions + look.hair_phase + 6)
    return Outline(head.center, (head.radii + growth + ragged * downward).astype(np.float32))


def beard_mask(canvas: Canvas, beard: Beard, outline: Outline, smile: float) -> Array:
    """Cheeks below a line from ear to mouth corner, chin and moustache, without the lips."""
    look, y = canvas.look, canvas.y
    mouth_x = look.yaw * 0.13 * 0.62
    x = canvas.x - mouth_x
    _, distance = outline.measure(canvas.x, y)
    outward = np.clip((np.abs(x) - 0.16) / 0.34, 0, 1.2)
    cheek_line = look.mouth_y - 0.06 - 0.42 * outward**1.6
    below_nose = smooth_step(0.1, 0.17, np.abs(x) + (y > look.mouth_y))
    cheeks = smooth_step(-0.035, 0.045, y - cheek_line) * below_nose
    moustache = smooth_step(0.05, 0.025, np.abs(y - look.mouth_y + 0.085 - 0.9 * x**2)) * (
        smooth_step(look.mouth_width + 0.09, look.mouth_width + 0.02, np.abs(x))
    )
    lips = np.hypot(x / (look.mouth_width * (1 + 0.2 * max(smile, 0))), (y - look.mouth_y - 0.025) / 0.075)
    hair = np.maximum(cheeks * smooth_step(0.9, 1.15, lips), moustache)
    return hair * canvas.inside(distance, softness=5) * smooth_step(-0.06, 0.06, y)


def paint_beard(canvas: Canvas, head: Outline, attributes: Attributes) -> None:
    """A beard covers the picture only: the label map keeps the face beneath it."""
    if attributes.beard == 0:
        return
    look, beard = canvas.look, BEARD_SHAPES[attributes.beard]
    outline = beard_outline(look, beard, head)
    mask = beard_mask(canvas, beard, outline, attributes.smile)
    relative, _ = outline.measure(canvas.x, canvas.y)
    fan = np.arctan2(canvas.x - 0.08 * look.yaw, canvas.y + 0.35)
    locks = strands(0.5 * fan + 0.04 * np.sin(7 * canvas.y) + look.hair_phase)
    color = hair_color(look, attributes)
    if attributes.hair_color not in ("gray", "white"):
        aging_gray = 0.35 * GRAY_TEMPLES[attributes.age]
        color = color * 0.76 * (1 - aging_gray) + 0.5 * aging_gray
    if attributes.beard == 1:
        color = 0.5 * color + 0.5 * 0.3 * np.mean(look.skin)
    light = look.ambient + 0.62 * np.clip(1.1 - 1.3 * (canvas.x - 0.5 * look.light_x) ** 2, 0, 1.2)
    edge = 1 - 0.35 * smooth_step(0.8, 1.0, relative)
    tone = light * edge * (1 + (0.08 if attributes.beard == 1 else 0.2) * locks)
    canvas.put(mask * beard.opacity, channels(color) * tone)
