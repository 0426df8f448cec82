"""The data: people of `anny`, whose shapes are CC0 (MakeHuman's), of a build and in a pose. Adults only.

Metres; x to their left, y backwards, z up; the middle of the pelvis is 0. A build is three words. A pose is the directions
of eight limbs, each turned stiffly about a shoulder, elbow, hip or knee.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anny import Anny

WORDS = (("short", "tall"), ("slim", "stout"), ("man", "woman"))
PHENOTYPES = ("height", "weight", "gender")  # anny's, in the order of WORDS; 0 to 1
EXTREMES = (((0.34, 0.40), (0.56, 0.62)), ((0.0, 0.15), (0.85, 1.0)), ((0.0, 0.12), (0.88, 1.0)))
MIDDLING = ((0.34, 0.62), (0.42, 0.58), (0.0, 1.0))  # any height and gender, no extreme of weight
ADULT = {"age": (0.67, 0.8), "muscle": (0.35, 0.65), "proportions": (0.3, 0.7)}

# Left arm, right arm, left leg, right leg, each of two limbs: anny's bones where they begin and end.
ARMS = ("upperarm01.L", "lowerarm01.L", "upperarm01.R", "lowerarm01.R")
LEGS = ("upperleg01.L", "lowerleg01.L", "upperleg01.R", "lowerleg01.R")
STARTS = ARMS + LEGS
ENDS = ("lowerarm01.L", "wrist.L", "lowerarm01.R", "wrist.R", "lowerleg01.L", "foot.L", "lowerleg01.R", "foot.R")
TIPS = ("wrist.L", "wrist.R", "foot.L", "foot.R")
LIMBS, MIRRORED = len(STARTS), [2, 3, 0, 1, 6, 7, 4, 5]
SIDES = np.array([1.0, -1.0])
AT_ONCE = 64  # people that anny makes in one call


@dataclass(frozen=True)
class People:
    """N of them."""

    kinds: np.ndarray  # [N, 3] -1 or 1: the first or the second of each of WORDS; 0 of those who are between them
    poses: np.ndarray  # [N, LIMBS, 3] unit vectors
    vertices: np.ndarray  # [N, V, 3]


def sentence(kind: np.ndarray) -> str:
    return "a " + " ".join(pair[int(one > 0)] for pair, one in zip(WORDS, kind, strict=True))


def draw_kinds(count: int) -> np.ndarray:
    """[N, 3]: the eight in turn, so that each is asked for equally often."""
    return np.stack([np.arange(count) // 4 % 2, np.arange(count) // 2 % 2, np.arange(count) % 2], 1) * 2.0 - 1


def draw_poses(count: int, rng: np.random.Generator) -> np.ndarray:
    """[N, LIMBS, 3]: arms from low to above the head, legs apart and in a stride, elbows and knees bent."""
    between = lambda low, high: rng.uniform(low, high, (count, 2))
    arms = {"outward": between(15, 110), "forward": between(-10, 25), "elbow": between(-30, 80)}
    return _posing(**arms, apart=between(2, 32), stride=between(-15, 25), knee=between(0, 30))


def standing(count: int, rng: np.random.Generator) -> np.ndarray:
    """[N, LIMBS, 3]: as people stand to be scanned, arms a little away from the trunk."""
    around = lambda degrees: rng.normal(degrees, 3.0, (count, 2))
    arms = {"outward": around(35), "forward": around(5), "elbow": around(3)}
    return _posing(**arms, apart=around(7), stride=around(0), knee=around(2))


def mirrored(poses: np.ndarray) -> np.ndarray:
    return poses[:, MIRRORED] * np.array([-1, 1, 1])


def _posing(
    *,
    outward: np.ndarray,
    forward: np.ndarray,
    elbow: np.ndarray,
    apart: np.ndarray,
    stride: np.ndarray,
    knee: np.ndarray,
) -> np.ndarray:
    """Degrees [N, sides] -> [N, LIMBS, 3]."""
    arms = [_arm(outward, forward), _arm((outward + elbow).clip(max=150), forward + 10)]
    legs = [_leg(apart, stride), _leg(apart, stride - knee)]
    return np.concatenate([np.stack(pair, 2).reshape(-1, 4, 3) for pair in (arms, legs)], 1)


def _arm(outward: np.ndarray, forward: np.ndarray) -> np.ndarray:
    a, f = np.radians(outward), np.radians(forward)
    return np.stack([SIDES * np.sin(a) * np.cos(f), -np.sin(a) * np.sin(f), -np.cos(a)], -1)


def _leg(apart: np.ndarray, stride: np.ndarray) -> np.ndarray:
    a, s = np.radians(apart), np.radians(stride)
    return np.stack([SIDES * np.sin(a), -np.cos(a) * np.sin(s), -np.cos(a) * np.cos(s)], -1)


@cache
def model() -> "Anny":
    """Its smallest mesh. It asks for no GPU and says on import that it has none."""
    with warnings.catch_warnings(action="ignore"):
        from anny import Anny
    return Anny(topology="notoes_collapse10pc")


def faces() -> np.ndarray:
    """[F, 3], places in the vertices."""
    return np.asarray(model().faces)


def make_people(kinds: np.ndarray, poses: np.ndarray, rng: np.random.Generator) -> People:
    """Somebody of each kind in each pose; of kind 0 a word at random that is not extreme."""
    vertices, joints = _shapes(kinds, rng)
    return People(kinds, poses, _posed(vertices, joints, poses))


def _shapes(kinds: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Unposed: vertices [N, V, 3], and where limbs begin and end [N, 2, LIMBS, 3]."""
    import torch

    bounds = np.array(
        [[MIDDLING[i] if not k else EXTREMES[i][int(k > 0)] for i, k in enumerate(kind)] for kind in kinds]
    )
    known = dict(zip(PHENOTYPES, rng.uniform(bounds[..., 0], bounds[..., 1]).T, strict=True))
    known |= {name: rng.uniform(*ends, len(kinds)) for name, ends in ADULT.items()}
    places = [[model().bone_labels.index(name) for name in names] for names in (STARTS, ENDS)]
    vertices, joints = [], []
    for first in range(0, len(kinds), AT_ONCE):
        some = {name: torch.from_numpy(values[first : first + AT_ONCE]) for name, values in known.items()}
        still = torch.eye(4, dtype=torch.float64).expand(len(some["age"]), model().bone_count, 4, 4)
        with torch.no_grad():
            made = model()(pose_parameters=still, phenotype_kwargs=some)
        heads = made["rest_bone_heads"].numpy()
        middle = heads[:, [model().bone_labels.index("root")]]
        vertices.append(made["rest_vertices"].numpy() - middle)
        joints.append((heads - middle)[:, places])
    return np.concatenate(vertices), np.concatenate(joints)


@cache
def weights_below(bones: tuple[str, ...]) -> np.ndarray:
    """[V, 1 + bones]: how much of each vertex moves with none of them, then with each and what hangs on it."""
    anny, owners = model(), list[int]()
    for bone in range(len(anny.bone_labels)):
        while bone >= 0 and anny.bone_labels[bone] not in bones:
            parent = anny.bone_parents[bone]
            bone = -1 if parent is None else int(parent)
        owners.append(1 + bones.index(anny.bone_labels[bone]) if bone >= 0 else 0)
    weights = anny.vertex_bone_weights.numpy()
    found = np.zeros((len(weights), 1 + len(bones)))
    vertex = np.arange(len(weights))[:, None]
    np.add.at(found, (vertex, np.array(owners)[anny.vertex_bone_indices.numpy()]), weights)
    return found


def limbs() -> np.ndarray:
    """[V, LIMBS]: whether a vertex is of a limb, without hands and feet, which are finer than a voxel."""
    return weights_below(STARTS + TIPS)[:, 1 : 1 + LIMBS] > 0.5


def _posed(vertices: np.ndarray, joints: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Each limb turned into its direction and set where its joint went: [N, V, 3]."""
    weights, (starts, ends) = weights_below(STARTS), joints.swapaxes(0, 1)
    directions = (ends - starts) / np.linalg.norm(ends - starts, axis=-1, keepdims=True)
    turns = np.stack([_turning(directions[:, limb], poses[:, limb]) for limb in range(LIMBS)], 1)
    found = weights[:, :1] * vertices
    for limb in range(LIMBS):
        joint, nearer = starts[:, limb], limb - 1
        if limb % 2:  # a further limb begins where the nearer one ends
            joint = starts[:, nearer] + np.einsum("nij,nj->ni", turns[:, nearer], joint - starts[:, nearer])
        moved = np.einsum("nij,nvj->nvi", turns[:, limb], vertices - starts[:, limb, None]) + joint[:, None]
        found = found + weights[:, limb + 1 : limb + 2] * moved
    return found


def _turning(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, 3, 3]: the least rotations from unit vectors a to b (Rodrigues)."""
    across, cosine = np.cross(a, b), (a * b).sum(-1)
    k = np.cross(across[:, None], np.eye(3)).swapaxes(1, 2)
    return np.eye(3) + k + k @ k / (1 + cosine)[:, None, None].clip(min=1e-3)
