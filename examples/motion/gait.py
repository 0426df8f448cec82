"""How a skeleton of 15 joints walks: angles as Fourier series of the phase, feet by inverse kinematics of two bones.

The phase is locked to the distance walked, so a foot on the ground stays where it is. Lengths are metres, angles radians;
the body's own axes are forward, left, up. N motions of T frames are computed at a time.
"""

from dataclasses import dataclass

import numpy as np

JOINTS = ("pelvis", "neck", "head", *(f"{side} {joint}" for side in ("left", "right") for joint in (
    "shoulder", "elbow", "hand", "hip", "knee", "ankle")))  # fmt: skip
BONES = ((0, 1), (1, 2), *((a + side, b + side) for side in (0, 6) for a, b in (
    (3, 4), (4, 5), (6, 7), (7, 8))), (1, 3), (1, 9), (0, 6), (0, 12))  # fmt: skip
FOOT_JOINTS = (JOINTS.index("left ankle"), JOINTS.index("right ankle"))
SPINE, HEAD, SHOULDER, UPPER_ARM, FOREARM = 0.5, 0.2, 0.19, 0.28, 0.26  # of a body of build 1
HIP, THIGH, SHIN, ANKLE = 0.1, 0.43, 0.43, 0.08  # the last is an ankle's height above the ground, in every build
REACH = 0.995  # of a leg's length, the most that a leg is stretched

Series = tuple[float, ...]  # mean, then amplitude and phase of each harmonic


@dataclass(frozen=True)
class Style:
    speed: float  # its own
    stride: float  # of two steps at that speed
    follows: float  # share of a stride by which the right side comes behind the left
    duty: tuple[float, float]  # share of a stride that each foot is on the ground
    lift: tuple[float, float]  # height of each foot in the air
    height: Series  # of the pelvis
    lean: Series  # of the back, forward
    roll: Series  # of the back, to the left
    twist: Series  # of the shoulders, to the left
    arm: Series  # of the left one, forward
    elbow: Series
    width: float = 0.1  # of each foot from the path


PI = np.pi
STYLES = {
    "walk": Style(1.1, 1.3, 0.5, (0.6, 0.6), (0.12, 0.12), (0.86, 0, 0, 0.02, -1.2 * PI), (0.05,), (0.0,),
                  (0.0, -0.12, 0), (0.0, -0.45, 0), (0.3, -0.15, 0)),
    "march": Style(1.0, 1.2, 0.5, (0.55, 0.55), (0.36, 0.36), (0.89, 0, 0, 0.015, -1.1 * PI), (-0.06,), (0.0,),
                   (0.0, -0.05, 0), (0.1, -0.9, 0), (0.08,)),
    "sneak": Style(0.55, 0.95, 0.5, (0.68, 0.68), (0.2, 0.2), (0.68, 0, 0, 0.03, -1.36 * PI), (0.6, 0, 0, 0.05, 0),
                   (0.0, 0.04, 0), (0.0, 0.15, 0), (0.75, -0.2, 0), (1.5, -0.15, 0)),
    "limp": Style(0.7, 0.95, 0.4, (0.72, 0.5), (0.1, 0.04), (0.83, 0.035, -0.7 * PI), (0.15, 0.1, -1.7 * PI),
                  (0.08, 0.14, -1.7 * PI), (0.0, -0.1, 0), (0.1, -0.3, 0), (0.45,)),
    "hop": Style(0.95, 0.75, 0.0, (0.45, 0.45), (0.17, 0.17), (0.82, 0.09, -1.45 * PI), (0.2, 0.12, -0.45 * PI), (0.0,),
                 (0.0,), (0.35, 0.7, -1.2 * PI), (1.0, 0.3, -1.2 * PI), 0.08),
    "skip": Style(1.4, 1.5, 0.5, (0.38, 0.38), (0.3, 0.3), (0.86, 0, 0, 0.07, -2.4 * PI), (0.1, 0, 0, 0.06, 0), (0.0,),
                  (0.0, -0.25, 0), (0.25, -0.8, 0), (1.1, -0.3, 0)),
}  # fmt: skip
NAMES = tuple(STYLES)


@dataclass(frozen=True)
class Gaits:
    """Of N motions in one style."""

    style: Style
    build: np.ndarray  # [N], of all lengths
    stride: np.ndarray  # [N], metres
    vigour: np.ndarray  # [N], of all swings
    phase: np.ndarray  # [N], share of a stride at distance 0


@dataclass(frozen=True)
class Paths:
    """Of N motions over the ground, known at equal distances, also before the start and behind the end."""

    first: float  # the distance of the first point from the start
    step: float
    places: np.ndarray  # [N, P] complex
    headings: np.ndarray  # [N, P]

    def at(self, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[N, ...] -> places, complex, and headings there."""
        where = ((distance - self.first) / self.step).clip(0, self.places.shape[1] - 1.001)
        low, rows = where.astype(int), np.arange(len(where)).reshape(-1, *(1,) * (where.ndim - 1))
        mix = lambda values: values[rows, low] + (where - low) * (values[rows, low + 1] - values[rows, low])
        return mix(self.places), mix(self.headings)


def stride_at(style: Style, speed: np.ndarray, build: np.ndarray, tempo: np.ndarray) -> np.ndarray:
    """Who goes faster takes longer steps, and more of them."""
    return style.stride * build * tempo * np.sqrt(speed / style.speed)


def joints(gaits: Gaits, paths: Paths, distance: np.ndarray) -> np.ndarray:
    """distance [N, T] walked -> [N, T, 15, 3] in the body's axes, from the point of the ground below the pelvis."""
    root, heading = paths.at(distance)
    cycle = distance / gaits.stride[:, None] + gaits.phase[:, None]
    style, build = gaits.style, gaits.build[:, None]
    turn = lambda series, late=0.0: _series(series, 2 * PI * (cycle - late), gaits.vigour[:, None])
    lean, roll, twist = turn(style.lean), turn(style.roll), turn(style.twist)
    feet = [_foot(gaits, paths, cycle, side, root, heading) for side in (0, 1)]
    hips = [_vector(0 * cycle, sign * HIP * build, 0 * cycle) for sign in (1, -1)]
    heights = [turn(style.height) * build, *(_reached(*leg, build) for leg in zip(feet, hips, strict=True))]
    height = np.min(heights, axis=0)
    pelvis = _vector(0 * cycle, 0 * cycle, height)
    up = _vector(np.sin(lean), np.sin(roll), np.cos(lean) * np.cos(roll))
    neck = pelvis + SPINE * build[..., None] * up
    head = neck + HEAD * build[..., None] * (up + _vector(0.25, 0, 0.3)) / 1.2
    found = [pelvis, neck, head]
    for side, sign in enumerate((1, -1)):
        late = side * style.follows
        across = _vector(-np.sin(twist), np.cos(twist), roll * 0)
        shoulder = neck + sign * SHOULDER * build[..., None] * across - _vector(0, 0, 0.04)
        found += _arm(shoulder, turn(style.arm, late), turn(style.elbow, late), sign, build)
        hip = pelvis + hips[side]
        found += [hip, _knee(hip, feet[side], build), feet[side]]
    return np.stack(found, axis=2)


def _series(series: Series, angle: np.ndarray, vigour: np.ndarray) -> np.ndarray:
    swings = (a * np.cos(k * angle + p) for k, (a, p) in enumerate(zip(series[1::2], series[2::2], strict=True), 1))
    return series[0] + vigour * sum(swings, start=0 * angle)


def _vector(*values: np.ndarray | float) -> np.ndarray:
    return np.stack(np.broadcast_arrays(*values), axis=-1)


def _foot(
    gaits: Gaits, paths: Paths, cycle: np.ndarray, side: int, root: np.ndarray, heading: np.ndarray
) -> np.ndarray:
    """[N, T, 3]: on the ground where the body is above it in the middle of its stance; through the air to the next place."""
    style, sign = gaits.style, (1, -1)[side]
    duty, own = style.duty[side], cycle - side * style.follows
    number = np.floor(own)
    air = ((own - number - duty) / (1 - duty)).clip(0, 1)
    place = [_print(gaits, paths, number + side * style.follows + duty / 2 + k, sign) for k in (0, 1)]
    share = air - np.sin(2 * PI * air) / (2 * PI)
    relative = (place[0] + share * (place[1] - place[0]) - root) * np.exp(-1j * heading)
    lift = style.lift[side] * (gaits.build * gaits.vigour)[:, None] * np.sin(PI * air)
    return _vector(relative.real, relative.imag, ANKLE + lift)


def _print(gaits: Gaits, paths: Paths, cycle: np.ndarray, sign: int) -> np.ndarray:
    """Where a foot is put down for the body that is at `cycle`; complex."""
    place, heading = paths.at((cycle - gaits.phase[:, None]) * gaits.stride[:, None])
    return place + sign * gaits.style.width * gaits.build[:, None] * 1j * np.exp(1j * heading)


def _reached(foot: np.ndarray, hip: np.ndarray, build: np.ndarray) -> np.ndarray:
    """The greatest height of a pelvis from which a leg reaches the foot."""
    flat = ((foot - hip)[..., :2] ** 2).sum(-1)
    return foot[..., 2] + np.sqrt(((REACH * (THIGH + SHIN) * build) ** 2 - flat).clip(0.01))


def _knee(hip: np.ndarray, ankle: np.ndarray, build: np.ndarray) -> np.ndarray:
    """Of a leg of two bones, bent forward."""
    line = ankle - hip
    length = np.linalg.norm(line, axis=-1, keepdims=True).clip(1e-6)
    line, thigh, shin = line / length, THIGH * build[..., None], SHIN * build[..., None]
    along = (thigh**2 - shin**2 + length**2) / (2 * length)
    forward = _vector(1.0, 0.0, 0.0) - line[..., :1] * line
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True).clip(1e-6)
    return hip + along * line + np.sqrt((thigh**2 - along**2).clip(0)) * forward


def _arm(shoulder: np.ndarray, swing: np.ndarray, bend: np.ndarray, sign: int, build: np.ndarray) -> list[np.ndarray]:
    """Shoulder, elbow and hand."""
    bone = lambda length, angle, out: length * build[..., None] * _vector(np.sin(angle), sign * out, -np.cos(angle))
    elbow = shoulder + bone(UPPER_ARM, swing, 0.15)
    return [shoulder, elbow, elbow + bone(FOREARM, swing + bend, 0.0)]
