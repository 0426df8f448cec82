"""What the painter draws with: an image with its label map, soft masks and closed outlines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdiff_rt.inputs.palette import CLASSES
from recipes.faces.look import Color, Look

Array = np.ndarray
Window = tuple[slice, slice]
Point = tuple[float, float]
Points = Sequence[Point]

LABEL = {name: index for index, name in enumerate(CLASSES)}
EVERYWHERE = (slice(None), slice(None))
OUTLINE_STEPS = 1024
SIDES = (-1, 1)
# The person's right is on the left of the image.
PERSON_SIDE = {-1: "r", 1: "l"}


def smooth_step(low: float | Array, high: float | Array, value: Array) -> Array:
    """Zero at low, one at high, smooth between; low may exceed high."""
    share = np.clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def channels(color: Color | Array) -> Array:
    """A colour (or an image of colours) that broadcasts over an image with channels first."""
    array = np.asarray(color, np.float32)
    return array[:, None, None] if array.ndim == 1 else array


def smooth_noise_table(seed: int, wavelength: int, length: int = 8192) -> Array:
    """Periodic one-dimensional noise of unit deviation without detail below the wavelength."""
    noise = np.random.default_rng(seed).standard_normal(length)
    kernel = np.zeros(length)
    kernel[:wavelength] = np.hanning(wavelength)
    smooth = np.fft.irfft(np.fft.rfft(noise) * np.fft.rfft(kernel), length)
    return (smooth / smooth.std()).astype(np.float32)


STRAND_NOISE = 0.6 * smooth_noise_table(8, 32) + 0.6 * smooth_noise_table(9, 100)


def strands(position: Array) -> Array:
    """Lock-like noise along one coordinate: a lock is about 0.05 wide."""
    return STRAND_NOISE[(position * 800).astype(np.int32) & (len(STRAND_NOISE) - 1)]


@dataclass(frozen=True)
class Outline:
    """A closed star-shaped curve: a radius for every direction from its centre."""

    center: Point
    radii: Array

    def measure(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Radius relative to the curve (1 on it) and distance beyond it, for every point."""
        across, down = x - self.center[0], y - self.center[1]
        angle = np.arctan2(across, -down)
        index = (angle * (OUTLINE_STEPS / (2 * np.pi)) + OUTLINE_STEPS / 2).astype(np.int32)
        radius = self.radii[index % OUTLINE_STEPS]
        reach = np.hypot(across, down)
        return reach / radius, reach - radius


def closed_outline(
    right: Points,
    left: Points,
    center: Point,
    wiggle: float = 0.0,
    phase: float = 0.0,
    smoothing: int = 45,
) -> Outline:
    """A rounded outline through points given from top to bottom for both halves of the image."""
    corners = np.array([*right, *reversed(left)])
    steps = np.linspace(0, len(corners) - 1, len(corners) * 24)
    path = np.stack([np.interp(steps, np.arange(len(corners)), corners[:, axis]) for axis in (0, 1)])
    across, down = path[0] - center[0], path[1] - center[1]
    directions = np.arange(OUTLINE_STEPS) * (2 * np.pi / OUTLINE_STEPS) - np.pi
    radii = np.interp(directions, np.arctan2(across, -down), np.hypot(across, down), period=2 * np.pi)
    kernel = np.hanning(smoothing) / np.hanning(smoothing).sum()
    radii = np.convolve(np.pad(radii, smoothing // 2, mode="wrap"), kernel, "valid")
    radii = radii + wiggle * strands(0.13 * directions + phase)
    return Outline(center, radii.astype(np.float32))


class Canvas:
    """An image and its label map over the coordinates of an upright head."""

    def __init__(self, look: Look, pixels: int) -> None:
        line = ((np.arange(pixels) + 0.5) / pixels * 2 - 1).astype(np.float32)
        self.screen_x, self.screen_y = np.meshgrid(line, line)
        across, down = self.screen_x - look.shift_x, self.screen_y - look.shift_y
        cosine, sine = np.cos(look.tilt), np.sin(look.tilt)
        self.x = (across * cosine + down * sine) / np.float32(look.scale)
        self.y = (down * cosine - across * sine) / np.float32(look.scale)
        self.look = look
        self.pixels = pixels
        self.pixel = 2 / pixels / look.scale
        self.image = np.zeros((3, pixels, pixels), np.float32)
        self.labels = np.zeros((pixels, pixels), np.uint8)

    def window(self, x: float, y: float, reach_x: float, reach_y: float) -> Window:
        """The part of the image around a point of the head, wide enough for any tilt."""
        look = self.look
        cosine, sine = np.cos(look.tilt), np.sin(look.tilt)
        column = (x * cosine - y * sine) * look.scale + look.shift_x
        row = (x * sine + y * cosine) * look.scale + look.shift_y
        half_width = (reach_x + reach_y * abs(sine)) * look.scale
        half_height = (reach_y + reach_x * abs(sine)) * look.scale

        def span(middle: float, half: float) -> slice:
            start, stop = ((middle + side * half + 1) / 2 * self.pixels for side in (-1, 1))
            low = int(np.clip(start, 0, self.pixels - 1))
            return slice(low, int(np.clip(stop + 1, low + 1, self.pixels)))

        return span(row, half_height), span(column, half_width)

    def inside(self, distance: Array, softness: float = 1.0) -> Array:
        """Coverage of the region where a signed distance is negative."""
        return np.clip(0.5 - distance / (self.pixel * softness), 0, 1)

    def put(self, mask: Array, color: Color | Array, label: str | None = None, window: Window = EVERYWHERE) -> None:
        """Lay a colour over the image where the mask says so, and its label where it mostly does."""
        target = self.image[(slice(None), *window)]
        target += mask * (channels(color) - target)
        if label is not None:
            self.mark(mask > 0.5, label, window)

    def mark(self, region: Array, label: str, window: Window = EVERYWHERE) -> None:
        self.labels[window][region] = LABEL[label]

    def darken(self, amount: Array, window: Window = EVERYWHERE, tint: Color = (0.85, 1.0, 1.0)) -> None:
        """Multiply towards black by the amount; red fades least so that skin stays warm."""
        self.image[(slice(None), *window)] *= 1 - amount * channels(tint)

    def lighten(self, amount: Array, window: Window) -> None:
        self.image[(slice(None), *window)] *= 1 + amount


def spot(canvas: Canvas, x: float, y: float, width: float, height: float) -> tuple[Window, Array]:
    """A soft elliptic spot and the window that holds it."""
    window = canvas.window(x, y, 2.2 * width, 2.2 * height)
    squares = ((canvas.x[window] - x) / width) ** 2 + ((canvas.y[window] - y) / height) ** 2
    return window, np.exp(-squares)


def groove(canvas: Canvas, start: Point, end: Point, bend: float, width: float) -> tuple[Window, Array]:
    """A soft line between two points, bent sideways in the middle, fading at its ends."""
    run, drop = end[0] - start[0], end[1] - start[1]
    length = float(np.hypot(run, drop))
    margin = abs(bend) + 2.2 * width
    window = canvas.window(
        (start[0] + end[0]) / 2, (start[1] + end[1]) / 2, abs(run) / 2 + margin, abs(drop) / 2 + margin
    )
    across, down = canvas.x[window] - start[0], canvas.y[window] - start[1]
    along = (across * run + down * drop) / length**2
    aside = (across * drop - down * run) / length + bend * 4 * along * (1 - along)
    ends = smooth_step(-0.05, 0.2, along) * smooth_step(1.05, 0.75, along)
    return window, np.exp(-((aside / width) ** 2)) * ends
