"""The data: paths in the plane, which go from a start to a goal and draw a figure on the way.

path(s) = start + (goal - start) s + size figure(s),  s in 0..1

A point x + iy is a complex number. Figures begin a quarter of the way from the start and end a quarter before the goal.
Five of them have names: the styles. Those of `draw_wanderings` have none and never occur twice.
"""

from dataclasses import dataclass

import numpy as np

POINTS = 32
ALONG = np.linspace(0.0, 1.0, POINTS)
WITHIN = (2 * ALONG - 0.5).clip(0, 1)  # how much of its figure a path has drawn
TREMBLE = 0.01  # standard deviation of each coordinate of each point, so that no two paths are equal
DISTANCES = (0.8, 2.0)  # the least and the largest of start and goal
CENTRE = 0.5  # the point between them lies in a square of this half width
WAVES, WANDER = 8, 0.3  # sines that a nameless figure is made of, and the standard deviation of the first one's weight


@dataclass(frozen=True)
class Style:
    figure: np.ndarray  # [POINTS] complex
    smallest: float
    largest: float


STYLES = {
    "hop": Style(1j * np.sin(np.pi * WITHIN), 0.45, 0.65),
    "dip": Style(-1j * np.sin(np.pi * WITHIN), 0.45, 0.65),
    "wave": Style(1j * np.sin(2 * np.pi * WITHIN), 0.4, 0.6),
    "zigzag": Style(2j / np.pi * np.arcsin(np.sin(4 * np.pi * WITHIN)), 0.35, 0.5),
    "loop": Style(1j * (1 - np.exp(2j * np.pi * WITHIN)), 0.28, 0.4),
}
NAMES = tuple(STYLES)


@dataclass(frozen=True)
class Requests:
    """What is asked of N paths."""

    ends: np.ndarray  # [N, 2] complex: start and goal
    styles: np.ndarray  # [N] int64, places in NAMES

    def __len__(self) -> int:
        return len(self.styles)


def draw_requests(count: int, rng: np.random.Generator) -> Requests:
    """Starts and goals anywhere; the styles in turn, so that each is asked for equally often."""
    centre = rng.uniform(-CENTRE, CENTRE, (count, 2)) @ (1, 1j)
    half = rng.uniform(*DISTANCES, count) / 2 * np.exp(1j * rng.uniform(0, 2 * np.pi, count))
    return Requests(np.stack([centre - half, centre + half], axis=1), np.arange(count) % len(NAMES))


def draw_paths(requests: Requests, rng: np.random.Generator) -> np.ndarray:
    """[N, POINTS] complex: a path for each request, of random size and tremble."""
    styles = [STYLES[NAMES[style]] for style in requests.styles]
    size = rng.uniform([style.smallest for style in styles], [style.largest for style in styles])
    return _trembling(line(requests.ends) + size[:, None] * np.stack([style.figure for style in styles]), rng)


def draw_wanderings(requests: Requests, rng: np.random.Generator) -> np.ndarray:
    """The same from start to goal, but with a random figure; it knows nothing of styles."""
    k = np.arange(1, WAVES + 1)
    weights = WANDER / np.sqrt(k) * (rng.standard_normal((len(requests), WAVES, 2)) @ (1, 1j))
    return _trembling(line(requests.ends) + weights @ np.sin(np.pi * k[:, None] * WITHIN), rng)


def line(ends: np.ndarray) -> np.ndarray:
    """[N, 2] complex -> [N, POINTS]: straight from start to goal."""
    return ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * ALONG


def _trembling(paths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return paths + TREMBLE * rng.standard_normal((*paths.shape, 2)) @ (1, 1j)


def as_latents(paths: np.ndarray) -> np.ndarray:
    """[N, POINTS] complex -> [N, 2, POINTS] float32: x and y along the path."""
    return np.stack([paths.real, paths.imag], axis=1).astype(np.float32)


def as_paths(latents: np.ndarray) -> np.ndarray:
    """[N, 2, POINTS] -> [N, POINTS] complex."""
    return latents[:, 0] + 1j * latents[:, 1].astype(float)


def as_numbers(ends: np.ndarray) -> np.ndarray:
    """[N, 2] complex -> [N, 2, 2] float32: x and y of the start, then of the goal."""
    return np.stack([ends.real, ends.imag], axis=2).astype(np.float32)
