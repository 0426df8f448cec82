"""The random part of a portrait: pose, proportions, colours and light, drawn before anything is painted."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes.faces.captions import Attributes

Color = tuple[float, float, float]

SKIN_TONES = (
    (0.97, 0.81, 0.71),
    (0.94, 0.75, 0.62),
    (0.88, 0.67, 0.52),
    (0.83, 0.63, 0.49),
    (0.72, 0.53, 0.42),
    (0.60, 0.44, 0.35),
    (0.50, 0.36, 0.28),
)
IRIS_COLORS = (
    (0.28, 0.16, 0.08),
    (0.17, 0.10, 0.06),
    (0.25, 0.42, 0.64),
    (0.30, 0.44, 0.26),
    (0.40, 0.45, 0.48),
)


@dataclass(frozen=True)
class Look:
    """Everything random about one portrait; lengths are in units of half the image."""

    tilt: float
    scale: float
    shift_x: float
    shift_y: float
    yaw: float
    head_top: float
    chin_y: float
    head_width: float
    jaw_width: float
    jaw_y: float
    chin_width: float
    cheekbone: float
    eye_x: float
    eye_y: float
    eye_width: float
    eye_height: float
    eye_slant: float
    gaze: float
    iris: Color
    brow_y: float
    brow_thickness: float
    brow_slant: float
    nose_length: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    lip_height: float
    lipstick: float
    eye_shadow: float
    hair_volume: float
    hair_end: float
    hair_flare: float
    hair_cover: float
    hair_part: float
    hair_line: float
    hair_wave: float
    hair_wave_rate: float
    hair_phase: float
    hair_tint: float
    fringe_y: float
    fringe_slope: float
    ears_free: bool
    skin: Color
    light_x: float
    ambient: float
    background_from: Color
    background_to: Color
    background_angle: float
    cloth: Color
    shoulder_y: float
    shoulder_slope: float
    neck_width: float
    neckline_width: float
    neckline_depth: float
    glasses_width: float
    glasses_height: float
    glasses_squareness: float
    glasses_rim: float
    glasses_color: Color
    spots: tuple[float, ...]


HAIR_ENDS = {"bald": (0.0, 0.1), "short": (0.0, 0.12), "medium": (0.52, 0.86), "long": (1.3, 1.6)}
HAIR_VOLUMES = {"bald": (0.0, 0.01), "short": (0.03, 0.09), "medium": (0.06, 0.13), "long": (0.06, 0.14)}


def blend(first: Color, second: Color, amount: float) -> Color:
    red, green, blue = (a * (1 - amount) + b * amount for a, b in zip(first, second, strict=True))
    return red, green, blue


def skin_tone(position: float) -> Color:
    """A tone between light (0) and dark (1)."""
    step = position * (len(SKIN_TONES) - 1)
    index = min(int(step), len(SKIN_TONES) - 2)
    return blend(SKIN_TONES[index], SKIN_TONES[index + 1], step - index)


def draw_proportions(male: bool, rng: np.random.Generator) -> dict[str, Any]:
    def uniform(low: float, high: float, man: float = 0.0) -> float:
        return float(rng.uniform(low, high)) + (man if male else 0.0)

    return {
        "head_top": uniform(-0.88, -0.81),
        "chin_y": uniform(0.77, 0.84, 0.02),
        "head_width": uniform(0.91, 1.03, 0.05),
        "jaw_width": uniform(0.33, 0.38, 0.085),
        "jaw_y": uniform(0.46, 0.53, 0.02),
        "chin_width": uniform(0.09, 0.14, 0.13),
        "cheekbone": uniform(0.49, 0.52, 0.0),
        "eye_x": uniform(0.215, 0.24),
        "eye_y": uniform(-0.075, -0.045),
        "eye_width": uniform(0.122, 0.142, -0.017),
        "eye_height": uniform(0.054, 0.072, -0.017),
        "eye_slant": uniform(-0.010, 0.022, -0.006),
        "gaze": uniform(-0.014, 0.014),
        "brow_y": uniform(-0.165, -0.135, 0.045),
        "brow_thickness": uniform(0.018, 0.027, 0.03),
        "brow_slant": uniform(-0.02, 0.03, -0.01),
        "nose_length": uniform(0.28, 0.33, 0.03),
        "nose_width": uniform(0.095, 0.12, 0.045),
        "mouth_y": uniform(0.435, 0.475),
        "mouth_width": uniform(0.165, 0.2, 0.024),
        "lip_height": uniform(0.044, 0.062, -0.026),
        "lipstick": uniform(0.1, 0.85) * (not male),
        "eye_shadow": uniform(0.0, 1.0) * (not male),
        "neck_width": uniform(0.25, 0.285, 0.065),
    }


def draw_hair(style: str, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "hair_volume": float(rng.uniform(*HAIR_VOLUMES[style])),
        "hair_end": float(rng.uniform(*HAIR_ENDS[style])),
        "hair_flare": float(rng.uniform(-0.03, 0.12)),
        "hair_cover": float(rng.uniform(0.40, 0.50)),
        "hair_part": float(rng.choice((-1, 1)) * rng.uniform(0.0, 0.22)),
        "hair_line": float(rng.uniform(-0.60, -0.52)),
        "hair_wave": float(max(0.0, rng.uniform(-0.02, 0.04))),
        "hair_wave_rate": float(rng.uniform(7, 13)),
        "hair_phase": float(rng.uniform(0, 40)),
        "hair_tint": float(rng.uniform(-1, 1)),
        "fringe_y": float(rng.uniform(-0.42, -0.32)),
        "fringe_slope": float(rng.uniform(-0.25, 0.25)),
        "ears_free": bool(rng.random() < 0.25),
    }


def draw_scene(rng: np.random.Generator) -> dict[str, Any]:
    def color(low: float, high: float) -> Color:
        red, green, blue = rng.uniform(low, high, 3)
        return float(red), float(green), float(blue)

    gray = rng.uniform(0.15, 0.9)
    frame = color(0.1, 0.6)
    dark_frame = rng.random() < 0.7
    return {
        "light_x": float(0.62 * np.sin(rng.uniform(-0.75, 0.75))),
        "ambient": float(rng.uniform(0.34, 0.44)),
        "background_from": blend(color(0.1, 0.85), (gray,) * 3, 0.6),
        "background_to": blend(color(0.1, 0.85), (gray + rng.uniform(-0.15, 0.15),) * 3, 0.6),
        "background_angle": float(rng.uniform(0, 2 * np.pi)),
        "cloth": blend(color(0.05, 0.9), (0.1, 0.1, 0.1), rng.uniform(0, 0.6)),
        "shoulder_y": float(rng.uniform(0.84, 0.95)),
        "shoulder_slope": float(rng.uniform(0.15, 0.4)),
        "neckline_width": float(rng.uniform(0.24, 0.38)),
        "neckline_depth": float(rng.uniform(0.03, 0.14)),
        "glasses_width": float(rng.uniform(0.175, 0.2)),
        "glasses_height": float(rng.uniform(0.115, 0.15)),
        "glasses_squareness": float(rng.uniform(2.2, 5)),
        "glasses_rim": float(rng.uniform(0.010, 0.016)),
        "glasses_color": (0.15, 0.14, 0.14) if dark_frame else frame,
    }


def draw_look(attributes: Attributes, rng: np.random.Generator) -> Look:
    """Draw one look; only what the label map shows (sex, hair length) shifts the ranges."""
    darkness = float(rng.uniform(0, 0.93) if rng.random() < 0.75 else rng.uniform(0, 0.45))
    iris_choice = len(IRIS_COLORS) if darkness < 0.6 else 2
    return Look(
        tilt=float(np.deg2rad(rng.normal(0, 3))),
        scale=float(rng.uniform(0.95, 1.06)),
        shift_x=float(rng.normal(0, 0.025)),
        shift_y=float(rng.normal(0, 0.02)),
        yaw=float(np.clip(rng.normal(0, 0.38), -0.9, 0.9)),
        iris=IRIS_COLORS[int(rng.random() * iris_choice)],
        skin=skin_tone(darkness),
        spots=tuple(float(value) for value in rng.uniform(-1, 1, 10)),
        **draw_proportions(attributes.male, rng),
        **draw_hair(attributes.hair, rng),
        **draw_scene(rng),
    )
