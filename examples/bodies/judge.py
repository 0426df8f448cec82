"""Does a body keep what was asked of it? Formulas and true people only: nothing here was learned from what a model does.

The pose is kept if along every limb of somebody in that pose, of whatever build, the body ends where theirs does, and its
surface is near theirs. The words are kept if measures of the trunk and the height are nearest to those of people of these
words, and as near as those of true people are. The bounds are such that about 95 in 100 true people keep all three, and
these are not those of the table (`python -m examples.bodies.judge`).
"""

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from examples.bodies.people import People, draw_kinds, draw_poses, faces, limbs, make_people
from examples.bodies.volumes import ORIGIN, REACH, SIDE, SURFACE, Code, surface, volumes

HELD_OUT, KNOWN, BOUNDING = 1, 2, 3  # seeds: of the requests, of the people compared with, of those that set the bounds
KINDS = np.array([(-1, -1, 0), (-1, 1, 0), (1, -1, 0), (1, 1, 0), (0, 0, 0)])  # a pose is compared with each of these
KEEP = 1 - 0.05 / 3  # of true people, each of three bounds
MEASURED = 800  # true people, whose measures are known
LIMB_KEPT, STRAY_KEPT = 0.04, 0.017  # metres: the worst limb from the surface, and the surface from people
WORDS_KEPT = 6.2  # the Mahalanobis distance of measures from the mean of their kind
LEVELS = ((-0.06, 0.08), (0.08, 0.22), (0.22, 0.38))  # metres above the pelvis: hips, waist, chest
TRUNK, HEAD = 0.25, 0.1  # half widths, of what is measured of either


@dataclass(frozen=True)
class Verdict:
    """One value for each of N bodies."""

    limb: np.ndarray  # metres
    stray: np.ndarray
    far: np.ndarray  # [N, 8]: of measures from each kind
    asked: np.ndarray  # the kind, 0 to 7

    @property
    def met(self) -> dict[str, np.ndarray]:
        pose = (self.limb <= LIMB_KEPT) & (self.stray <= STRAY_KEPT)
        words = (self.far.argmin(1) == self.asked) & (self.far.min(1) <= WORDS_KEPT)
        return {"pose": pose, "words": words, "both": pose & words}


class Judge:
    """Of bodies for these requests."""

    def __init__(self, asked: People, code: Code) -> None:
        self._asked, self._limbs = number(asked.kinds), limbs()
        self._vertices = in_pose(asked.poses)  # [N, KINDS, V, 3]
        self._volumes = [volumes(each, faces()).astype(np.float16) for each in self._vertices]
        rng = np.random.default_rng(KNOWN)
        people = make_people(draw_kinds(MEASURED), draw_poses(MEASURED, rng), rng)
        found, kinds = measures(true_bodies(people, code)), number(people.kinds)
        self._means = np.stack([found[kinds == kind].mean(0) for kind in range(8)])
        within = found - self._means[kinds]
        self._inverse = np.linalg.inv(within.T @ within / len(within))

    def __call__(self, bodies: np.ndarray) -> Verdict:
        """bodies [N, *VOXELS], one for each request."""
        away = measures(bodies)[:, None] - self._means
        far = np.sqrt(np.einsum("nki,ij,nkj->nk", away, self._inverse, away))
        limb, stray = np.array([self._pose(i, body) for i, body in enumerate(bodies)]).T
        return Verdict(limb, stray, far, self._asked)

    def _pose(self, i: int, body: np.ndarray) -> tuple[float, float]:
        """Of those in the pose, whoever the worse of both is least for, relative to its bound."""
        points, found = surface(body)[0], []
        for vertices, other in zip(self._vertices[i], self._volumes[i], strict=True):
            along = np.abs(depth(body, vertices) - depth(other, vertices))
            limb = max(along[each].mean() for each in self._limbs.T)
            found.append((limb, np.abs(depth(other, points)).mean() if len(points) else REACH * SIDE))
        return min(found, key=lambda each: max(each[0] / LIMB_KEPT, each[1] / STRAY_KEPT))


def depth(body: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[N] metres: how far points [N, 3] lie below the surface, up to REACH voxels either way."""
    from scipy.ndimage import map_coordinates

    at = ((points - ORIGIN) / SIDE - 0.5).T
    return (map_coordinates(body.astype(np.float32), at, order=1, mode="nearest") - SURFACE) * 2 * REACH * SIDE


def measures(bodies: np.ndarray) -> np.ndarray:
    """[N, *VOXELS] -> [N, 10]: area, width and depth of the trunk at each of LEVELS; how high the head ends. In metres."""
    full = ((bodies - SURFACE) * 2 * REACH + 0.5).clip(0, 1)
    x, _, z = (np.arange(n) * SIDE + SIDE / 2 + start for n, start in zip(bodies.shape[1:], ORIGIN, strict=True))
    trunk, found = full[:, np.abs(x) < TRUNK], []
    for low, high in LEVELS:
        part = trunk[..., (z > low) & (z < high)].mean(-1)
        found += [part.sum((1, 2)) * SIDE**2, part.max(2).sum(1) * SIDE, part.max(1).sum(1) * SIDE]
    head = full[:, np.abs(x) < HEAD].max((1, 2))[:, z > LEVELS[-1][1]].sum(1) * SIDE
    return np.stack([*found, head], 1)


def number(kinds: np.ndarray) -> np.ndarray:
    """[N, 3] -> 0 to 7."""
    return (kinds > 0) @ np.array([4, 2, 1])


def in_pose(poses: np.ndarray) -> np.ndarray:
    """[N, LIMBS, 3] -> [N, KINDS, V, 3]: somebody of each kind in each pose."""
    kinds, repeated = np.tile(KINDS, (len(poses), 1)), np.repeat(poses, len(KINDS), 0)
    made = make_people(kinds, repeated, np.random.default_rng(KNOWN)).vertices
    return made.reshape(len(poses), len(KINDS), *made.shape[1:])


def true_bodies(people: People, code: Code) -> np.ndarray:
    """[N, *VOXELS], as latents can carry them."""
    return np.concatenate([code.decode(code.encode(volumes(one[None], faces()))) for one in people.vertices])


def held_out(count: int, seed: int = HELD_OUT) -> People:
    """Requests that no training has seen, and a true person for each."""
    rng = np.random.default_rng(seed)
    return make_people(draw_kinds(count), draw_poses(count, rng), rng)


@click.command()
@click.option("--code", type=click.Path(exists=True, path_type=Path), required=True, help="code.npz of a training.")
@click.option("--count", type=click.IntRange(min=16), default=200, show_default=True)
def main(code: Path, count: int) -> None:
    """What the judge says of true people, and which bounds they set."""
    known, asked = Code.load(code), held_out(count, BOUNDING)
    judge, bodies = Judge(asked, known), true_bodies(asked, known)
    verdict, others = judge(bodies), judge(np.roll(bodies, 8, 0))  # of the same kinds, in other poses
    own = verdict.far[np.arange(count), verdict.asked]
    for name, values in (("worst limb", verdict.limb), ("surface", verdict.stray), ("measures", own)):
        print(f"{name}: {', '.join(f'{q:.1%} within {np.quantile(values, q):.4f}' for q in (0.5, 0.9, KEEP))}")
    print("true people: " + ", ".join(f"{name} met: {met.mean():.1%}" for name, met in verdict.met.items()))
    print(f"in another's pose: pose met: {others.met['pose'].mean():.1%}")
    print(f"the worst limb of these: {np.quantile(others.limb, 0.01):.4f} m or more in 99 of 100")
    strange = [verdict.far[np.arange(count), verdict.asked ^ step].min() for step in (4, 2, 1)]
    print("measures, from another height, weight, gender: at least", *(f"{each:.1f}" for each in strange))


if __name__ == "__main__":
    main()
