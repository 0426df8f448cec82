"""Does a motion keep what was asked of it? Formulas only: nothing here was learned.

The way-points are kept if the body is near each at its time. The style is that of the nearest true gait among all builds,
tempos and phases, at the pace and the distance walked that the motion itself has. Both bounds come from rules about true
motions (`python -m examples.motion.judge`), none from what a model does.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from examples.motion.gait import ANKLE, FOOT_JOINTS, NAMES, STYLES, Gaits, Paths, Style, joints, stride_at
from examples.motion.motions import BEFORE, FRAMES, POINTS, RATE, STEP, Motions, Requests, draw

WAYPOINTS_KEPT = 0.1  # metres
STYLE_KEPT = 0.08  # metres, root mean square over joints and frames: no true motion is so near to another style
ON_GROUND = 0.02  # metres that an ankle is above where it stands
HELD_OUT = 1  # the seed of the requests that are judged; training has others
PHASES = 48
SWINGS = [np.array(each) for each in zip(*product((0.91, 1.0, 1.09), (0.95, 1.0, 1.05), (0.9, 1.1)), strict=True)]
SLOWEST, SMOOTH = 0.1, 2  # metres a second; frames on both sides, over which a pace is taken


@dataclass(frozen=True)
class Verdict:
    """One value for each of N motions."""

    waypoint_error: np.ndarray  # the largest distance of the four
    style: np.ndarray  # the nearest one, places in NAMES
    style_error: np.ndarray  # how far from its nearest gait
    waypoints_met: np.ndarray
    style_met: np.ndarray
    slide: np.ndarray  # metres a second, of feet on the ground

    @property
    def met(self) -> dict[str, np.ndarray]:
        return {
            "way-points": self.waypoints_met,
            "style": self.style_met,
            "both": self.waypoints_met & self.style_met,
        }


def judge(motions: Motions, requests: Requests) -> Verdict:
    """One motion for each request."""
    waypoint_error = waypoint_distances(motions, requests).max(axis=1)
    distances = style_distances(motions)
    style, style_error = distances.argmin(axis=1), distances.min(axis=1)
    style_met = (style == requests.styles) & (style_error <= STYLE_KEPT)
    kept = waypoint_error <= WAYPOINTS_KEPT
    return Verdict(waypoint_error, style, style_error, kept, style_met, slides(motions))


def waypoint_distances(motions: Motions, requests: Requests) -> np.ndarray:
    """[N, 4] metres, at the frames nearest to the times."""
    frames = np.rint(requests.points[:, :, 2] * RATE).astype(int).clip(0, FRAMES - 1)
    there = motions.root[np.arange(len(frames))[:, None], frames]
    return np.abs(there - requests.points[:, :, :2] @ (1, 1j))


def style_distances(motions: Motions) -> np.ndarray:
    """[N, styles] metres."""
    walked = _walked(motions.root)
    pace = (walked[:, -1] * RATE / (FRAMES - 1)).clip(SLOWEST)
    body = motions.body.reshape(len(pace), FRAMES, -1)
    nearest = lambda style, n: _nearest(body[n], walked[n], pace[n], style)
    return np.array([[nearest(style, n) for style in STYLES.values()] for n in range(len(pace))])


def _walked(root: np.ndarray) -> np.ndarray:
    """[N, T] -> the distance until each frame. A trembling body has not gone farther for that: places are means."""
    known = np.pad(root, ((0, 0), (SMOOTH, SMOOTH)), mode="reflect", reflect_type="odd")
    smooth = np.mean([known[:, i : i + FRAMES] for i in range(2 * SMOOTH + 1)], axis=0)
    return np.concatenate([np.zeros((len(root), 1)), np.abs(np.diff(smooth, axis=1)).cumsum(1)], axis=1)


def _nearest(body: np.ndarray, walked: np.ndarray, pace: np.ndarray, style: Style) -> float:
    """body [T, 45], walked [T], pace []: from the nearest of the true gaits."""
    build, tempo, vigour = SWINGS
    stride = stride_at(style, pace, build, tempo)  # [G]
    gaits = Gaits(style, build, stride, vigour, np.zeros(len(build)))
    true = joints(gaits, _straight(len(build)), stride[:, None] * np.arange(PHASES) / PHASES)
    true = true.reshape(len(build), PHASES, -1)
    squares = (
        (true**2).sum(2)[:, None] - 2 * body @ np.moveaxis(true, 2, 1) + (body**2).sum(1)[:, None]
    )  # [G, T, PHASES]
    at = np.rint(walked / stride[:, None] * PHASES).astype(int)  # [G, T]
    shifted = (at[:, :, None] + np.arange(PHASES)) % PHASES
    of_phase = np.take_along_axis(squares, shifted, axis=2).mean(axis=1) * 3 / body.shape[1]
    return float(np.sqrt(of_phase.min().clip(0)))


def _straight(count: int) -> Paths:
    along = BEFORE + STEP * np.arange(POINTS)
    return Paths(BEFORE, STEP, np.tile(along + 0j, (count, 1)), np.zeros((count, POINTS)))


def slides(motions: Motions) -> np.ndarray:
    """[N] metres a second: how fast feet go that are on the ground; NaN where none ever is."""
    feet = motions.places()[:, :, FOOT_JOINTS]
    low = feet[..., 2] < ANKLE + ON_GROUND
    speed = np.linalg.norm(np.diff(feet[..., :2], axis=1), axis=-1) * RATE
    down = (low[:, 1:] & low[:, :-1]).astype(float)
    count = down.sum((1, 2))
    return np.where(count > 0, (speed * down).sum((1, 2)) / count.clip(1), np.nan)


def held_out(count: int) -> tuple[Requests, Motions]:
    """Requests that no training has seen, and a true motion for each."""
    return draw(count, np.random.default_rng(HELD_OUT))


def main() -> None:
    """What the judge says of 1,200 true motions."""
    requests, motions = held_out(1200)
    verdict, distances = judge(motions, requests), style_distances(motions)
    own = np.arange(len(NAMES)) == requests.styles[:, None]
    print(f"style recognised: {(verdict.style == requests.styles).mean():.2%}")
    print(f"distance from the own style: at most {distances[own].max():.3f} m")
    print(f"distance from another style: at least {distances[~own].min():.3f} m")
    print(f"feet on the ground slide by {np.nanmean(verdict.slide):.3f} m/s")
    print(", ".join(f"{name} met: {met.mean():.2%}" for name, met in verdict.met.items()))


if __name__ == "__main__":
    main()
