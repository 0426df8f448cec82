"""Does a path keep what was asked of it? Formulas only: nothing here was learned.

The endpoints are kept if the first and the last point lie near those asked for. The style is that of the nearest
figure, when the straight line between the path's own ends has been taken away; so it doesn't depend on where they lie.
Both bounds come from rules about true paths (`python -m examples.motion.judge`), none from what a model does.
"""

from dataclasses import dataclass

import numpy as np

from examples.motion.paths import NAMES, STYLES, Requests, Style, draw_paths, draw_requests, line

ENDPOINTS_KEPT = 0.1  # an eighth of the least distance of start and goal
STYLE_KEPT = 0.07  # half of the least distance of a true path from another style; root mean square over the points
HELD_OUT = 1  # the seed of the requests that are judged; training has another


@dataclass(frozen=True)
class Verdict:
    """One value for each of N paths."""

    endpoint_error: np.ndarray  # the larger distance of the two
    style: np.ndarray  # the nearest one, places in NAMES
    style_error: np.ndarray  # how far from its nearest figure
    endpoints_met: np.ndarray
    style_met: np.ndarray

    @property
    def met(self) -> dict[str, np.ndarray]:
        return {
            "endpoints": self.endpoints_met,
            "style": self.style_met,
            "both": self.endpoints_met & self.style_met,
        }


def judge(paths: np.ndarray, requests: Requests) -> Verdict:
    """paths [N, POINTS] complex, one for each request."""
    endpoint_error = np.abs(paths[:, [0, -1]] - requests.ends).max(axis=1)
    distances = style_distances(paths)
    style, style_error = distances.argmin(axis=1), distances.min(axis=1)
    style_met = (style == requests.styles) & (style_error <= STYLE_KEPT)
    return Verdict(endpoint_error, style, style_error, endpoint_error <= ENDPOINTS_KEPT, style_met)


def style_distances(paths: np.ndarray) -> np.ndarray:
    """[N, POINTS] -> [N, styles]: the distance of each path's figure from the nearest one of each style."""
    figures = paths - line(paths[:, [0, -1]])
    return np.stack([_distance(figures, style) for style in STYLES.values()], axis=1)


def _distance(figures: np.ndarray, style: Style) -> np.ndarray:
    """[N]: from the style's figure of the best size it may have (least squares)."""
    size = (figures @ style.figure.conj()).real / np.vdot(style.figure, style.figure).real
    nearest = size.clip(style.smallest, style.largest)[:, None] * style.figure
    return np.sqrt((np.abs(figures - nearest) ** 2).mean(axis=1))


def held_out(count: int) -> tuple[Requests, np.ndarray]:
    """Requests that no training has seen, and a true path [N, POINTS] for each."""
    rng = np.random.default_rng(HELD_OUT)
    requests = draw_requests(count, rng)
    return requests, draw_paths(requests, rng)


def main() -> None:
    """What the judge says of 10,000 true paths."""
    requests, paths = held_out(10_000)
    verdict, distances = judge(paths, requests), style_distances(paths)
    own = np.arange(len(NAMES)) == requests.styles[:, None]
    print(f"style recognised: {(verdict.style == requests.styles).mean():.2%}")
    print(f"distance from the endpoints asked for: at most {verdict.endpoint_error.max():.3f}")
    print(f"distance from the own style: at most {distances[own].max():.3f}")
    print(f"distance from another style: at least {distances[~own].min():.3f}")
    print(", ".join(f"{name} met: {met.mean():.2%}" for name, met in verdict.met.items()))


if __name__ == "__main__":
    main()
