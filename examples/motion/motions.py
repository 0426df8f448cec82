"""The data: motions of four seconds. An expert's own know what it is told; pairs, which know both, are for their influence.

- Of the action word: along a corridor, always the same way, and at the pace that is usual in the style.
- Of the way-points: winding paths and any pace, in all styles, of which nothing is said.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from examples.motion.gait import JOINTS, NAMES, STYLES, Gaits, Paths, joints, stride_at

FRAMES, RATE = 64, 16  # of a motion; of a second
TIMES = np.arange(FRAMES) / RATE
WINDOWS = ((0, 6), (17, 26), (37, 46), (57, 63))  # frames, from which the times of the way-points are drawn
ROOM, ROOT_SCALE, HEADING_SCALE = 0.6, 0.9, 0.7  # metres: half the side of the square where middles lie; of latents
BUILD, TEMPO, VIGOUR = (0.88, 1.12), (0.94, 1.06), (0.85, 1.15)
USUAL, ANY = (0.92, 1.08), (0.75, 1.3)  # pace, as a multiple of the style's own
WINDING, UNSTEADY = 0.8, 0.25  # radians of the first wave of a heading; share of a pace
CORRIDOR = 0.25  # radians of its headings to both sides; as a share of the room its width
BEFORE, STEP, POINTS = -3.0, 0.05, 300  # of the distances at which a path is known
CHANNELS = 4 + 1 + 3 * (len(JOINTS) - 1)  # root x, y; heading; height of the pelvis; the other joints
WALKED, MOVING, RESTS = slice(0, 2), slice(0, 4), slice(4, None)


@dataclass(frozen=True)
class Requests:
    """What is asked of N motions."""

    styles: np.ndarray  # [N] int, places in NAMES
    points: np.ndarray  # [N, 4, 3] float32: x, y in metres, t in seconds

    def __len__(self) -> int:
        return len(self.styles)

    def words(self) -> np.ndarray:
        """[N, 1, styles] float32: one number for each word."""
        return np.eye(len(NAMES), dtype=np.float32)[self.styles][:, None]


@dataclass(frozen=True)
class Motions:
    """In metres."""

    root: np.ndarray  # [N, T] complex, the point of the ground below the pelvis
    heading: np.ndarray  # [N, T]
    body: np.ndarray  # [N, T, 15, 3], forward, left, up from there

    def places(self) -> np.ndarray:
        """[N, T, 15, 3] x, y, up of all joints."""
        flat = (self.body[..., 0] + 1j * self.body[..., 1]) * np.exp(1j * self.heading)[..., None] + self.root[
            ..., None
        ]
        return np.stack([flat.real, flat.imag, self.body[..., 2]], axis=-1)


def draw(count: int, rng: np.random.Generator, *, corridor: bool = False) -> tuple[Requests, Motions]:
    """Motions, and what they are an answer to; styles in turn, so that each is asked for equally often."""
    styles = np.arange(count) % len(NAMES)
    body = np.empty((count, FRAMES, len(JOINTS), 3))
    root, heading = np.empty((count, FRAMES), complex), np.empty((count, FRAMES))
    for number, style in enumerate(STYLES.values()):
        rows = np.flatnonzero(styles == number)
        build, tempo, vigour = (rng.uniform(*bounds, len(rows)) for bounds in (BUILD, TEMPO, VIGOUR))
        speed = style.speed * rng.uniform(*(USUAL if corridor else ANY), len(rows))
        distance = _walked(speed, 0.0 if corridor else UNSTEADY, rng)
        paths = _paths(distance[:, FRAMES // 2], rng, corridor=corridor)
        gaits = Gaits(style, build, stride_at(style, speed, build, tempo), vigour, rng.uniform(0, 1, len(rows)))
        body[rows] = joints(gaits, paths, distance)
        root[rows], heading[rows] = paths.at(distance)
    frames = np.stack([rng.integers(low, high + 1, count) for low, high in WINDOWS], axis=1)
    at = root[np.arange(count)[:, None], frames]
    points = np.stack([at.real, at.imag, frames / RATE], axis=2).astype(np.float32)
    return Requests(styles, points), Motions(root, heading, body)


def _walked(speed: np.ndarray, unsteady: float, rng: np.random.Generator) -> np.ndarray:
    """[N] -> [N, T] metres."""
    swing = unsteady * rng.uniform(0, 1, len(speed))[:, None]
    wave = 2 * np.pi * (TIMES / TIMES[-1] + rng.uniform(0, 1, (len(speed), 1)))
    pace = speed[:, None] * (1 + swing * np.sin(wave))
    steps = (pace[:, 1:] + pace[:, :-1]) / 2 / RATE
    return np.concatenate([np.zeros((len(speed), 1)), steps.cumsum(1)], axis=1)


def _paths(middle: np.ndarray, rng: np.random.Generator, *, corridor: bool) -> Paths:
    """Headings are three waves, or always nearly the same; the middle of a motion lies in the room."""
    along, count = BEFORE + STEP * np.arange(POINTS), len(middle)
    most = CORRIDOR if corridor else np.pi
    heading = np.repeat(rng.uniform(-most, most, (count, 1)), POINTS, axis=1)
    for wave in () if corridor else (1, 2, 3):
        size, phase = rng.normal(0, WINDING / wave, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
        heading = heading + size * np.sin(2 * np.pi * wave * along / 8 + phase)
    places = np.cumsum(np.exp(1j * heading), axis=1) * STEP
    paths = Paths(BEFORE, STEP, places, heading)
    centre = ROOM * (CORRIDOR if corridor else 1.0) * rng.uniform(-1, 1, (count, 2)) @ (1, 1j)
    return Paths(BEFORE, STEP, places + (centre - paths.at(middle[:, None])[0][:, 0])[:, None], heading)


# --- latents ----------------------------------------------------------------------------------------------------------


def as_latents(motions: Motions) -> np.ndarray:
    """[N, CHANNELS, T] float32."""
    mean, deviation = _usual()
    turned = np.exp(1j * motions.heading) / HEADING_SCALE
    root = motions.root / ROOT_SCALE
    moving = np.stack([root.real, root.imag, turned.real, turned.imag], axis=1)
    body = (_channels(motions.body) - mean) / deviation
    return np.concatenate([moving, body], axis=1).astype(np.float32)


def as_motions(latents: np.ndarray) -> Motions:
    mean, deviation = _usual()
    values = latents.astype(float)
    body = np.moveaxis(values[:, RESTS] * deviation + mean, 1, 2)
    joint = np.zeros((len(body), FRAMES, len(JOINTS), 3))
    joint[:, :, 0, 2] = body[..., 0]
    joint[:, :, 1:] = body[..., 1:].reshape(len(body), FRAMES, -1, 3)
    root = ROOT_SCALE * (values[:, 0] + 1j * values[:, 1])
    return Motions(root, np.angle(values[:, 2] + 1j * values[:, 3]), joint)


def _channels(body: np.ndarray) -> np.ndarray:
    """[N, T, 15, 3] -> [N, 43, T]: the pelvis is above its own point."""
    rest = body[:, :, 1:].reshape(len(body), FRAMES, -1)
    return np.moveaxis(np.concatenate([body[:, :, 0, 2:], rest], axis=2), 2, 1)


@lru_cache(1)
def _usual() -> tuple[np.ndarray, np.ndarray]:
    """The mean and deviation [43, 1] of each channel of the body."""
    seen = _channels(draw(600, np.random.default_rng(0))[1].body)
    return seen.mean((0, 2))[:, None], seen.std((0, 2))[:, None].clip(0.02)
