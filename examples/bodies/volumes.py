"""Bodies as volumes: how deep inside each voxel is, up to REACH of them; and back to a surface.

A latent is such a volume's code: its principal components, in blocks of BLOCK voxels a side.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOXELS = (48, 24, 48)  # x, y, z
SIDE = 0.046  # metres
ORIGIN = np.array([-1.104, -0.53, -1.14])  # of the volume's corner
RAYS = 2  # along each side of a voxel
REACH = 3.0  # voxels; a signed distance is cut off there
CLOTHES = 0.3  # voxels that a body is thicker than its mesh, or thin arms would be torn
BLOCK, COMPONENTS = 6, 48
LATENT = (COMPONENTS, *(count // BLOCK for count in VOXELS))
SURFACE = 0.5  # of a volume's values, 0 outside to 1 inside


def volume(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """A closed mesh [V, 3], [F, 3] -> VOXELS float32."""
    return depths(filled(vertices, faces))


def volumes(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[N, V, 3] -> [N, *VOXELS]."""
    return np.stack([volume(each, faces) for each in vertices])


def filled(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """How much of each voxel lies inside a closed mesh: rays along y, of which each crossing fills what is behind it."""
    nx, ny, nz = VOXELS
    at = (vertices - ORIGIN) / SIDE
    corners = np.stack([at[:, 0] * RAYS - 0.5, at[:, 2] * RAYS - 0.5, at[:, 1]], -1)[faces]  # [F, 3, (ray x, ray z, y)]
    face, x, z = pixels(corners[..., :2], (nx * RAYS, nz * RAYS))
    a, b, c = corners[face].swapaxes(0, 1)
    (bx, bz), (cx, cz) = (b - a)[:, :2].T, (c - a)[:, :2].T
    area = bx * cz - bz * cx
    px, pz = x + 1e-5 - a[:, 0], z + 1.3e-5 - a[:, 1]  # beside the edges
    with np.errstate(divide="ignore", invalid="ignore"):
        s, t = (px * cz - pz * cx) / area, (bx * pz - bz * px) / area
    hit = (area != 0) & (s >= 0) & (t >= 0) & (s + t <= 1)
    y = (a[:, 2] + s * (b - a)[:, 2] + t * (c - a)[:, 2])[hit]
    behind = (np.arange(1, ny + 1) - y[:, None]).clip(0, 1) * np.sign(area[hit])[:, None]
    found = np.zeros((nx, nz, ny))
    np.add.at(found, (x[hit] // RAYS, z[hit] // RAYS), behind)
    return np.abs(found.swapaxes(1, 2) / RAYS**2).clip(0, 1)


def pixels(corners: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[F, 3, 2] -> faces, and the columns and rows within their bounding boxes."""
    low = np.ceil(corners.min(1)).astype(int).clip(0)
    high = np.minimum(np.floor(corners.max(1)).astype(int), np.array(size) - 1)
    wide, tall = (high - low + 1).clip(0).T
    face = np.repeat(np.arange(len(corners)), wide * tall)
    number = np.arange(len(face)) - np.repeat(np.cumsum(wide * tall) - wide * tall, wide * tall)
    return face, low[face, 0] + number // tall[face], low[face, 1] + number % tall[face]


def depths(share: np.ndarray) -> np.ndarray:
    """How full voxels are -> how deep they lie below the clothes, 0 to 1; those on the surface know by how full they are."""
    from scipy.ndimage import distance_transform_edt

    inside = share > 0.5
    deep = np.where(inside, distance_transform_edt(inside) - 0.5, 0.5 - distance_transform_edt(~inside))
    deep = np.where(np.abs(deep) < 1, share - 0.5, deep) + CLOTHES
    return ((deep.clip(-REACH, REACH) + REACH) / (2 * REACH)).astype(np.float32)


def surface(body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume -> vertices [V, 3] in metres and faces [F, 3], none if nothing is inside."""
    from skimage.measure import marching_cubes

    padded = np.pad(body, 1)
    if not padded.max() > SURFACE:
        return np.zeros((0, 3)), np.zeros((0, 3), int)
    vertices, faces, _, _ = marching_cubes(padded, SURFACE)
    return (vertices - 0.5) * SIDE + ORIGIN, faces


@dataclass(frozen=True)
class Code:
    """A linear one: components, each scaled by the root of its deviation, so that fine ones count a little more."""

    to: np.ndarray  # [BLOCK^3, COMPONENTS]
    back: np.ndarray  # [COMPONENTS, BLOCK^3]

    @classmethod
    def fitted(cls, bodies: np.ndarray) -> "Code":
        """Of volumes [N, *VOXELS]; its latents have a variance of 1."""
        blocks = _blocks(bodies).reshape(-1, BLOCK**3).astype(np.float64)
        values, vectors = np.linalg.eigh(blocks.T @ blocks / len(blocks))
        values, vectors = values[::-1][:COMPONENTS], vectors[:, ::-1][:, :COMPONENTS]
        to = vectors * values**-0.25
        scale = 1 / (blocks @ to).std()
        back = (vectors * values**0.25).T / scale
        return cls((to * scale).astype(np.float32), back.astype(np.float32))

    @classmethod
    def load(cls, path: Path) -> "Code":
        with np.load(path) as known:
            return cls(known["to"], known["back"])

    def save(self, path: Path) -> None:
        np.savez(path, to=self.to, back=self.back)

    @property
    def channels(self) -> list[float]:
        """How much an error of each component shows in a volume."""
        return (self.back.astype(float) ** 2).sum(1).tolist()

    def encode(self, bodies: np.ndarray) -> np.ndarray:
        """[N, *VOXELS] -> [N, *LATENT]."""
        return np.moveaxis(_blocks(bodies) @ self.to, -1, 1)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        x, y, z = LATENT[1:]
        parts = (np.moveaxis(latents, 1, -1) @ self.back).reshape(-1, x, y, z, BLOCK, BLOCK, BLOCK)
        return parts.transpose(0, 1, 4, 2, 5, 3, 6).reshape(-1, *VOXELS)


def _blocks(bodies: np.ndarray) -> np.ndarray:
    x, y, z = LATENT[1:]
    parts = bodies.reshape(-1, x, BLOCK, y, BLOCK, z, BLOCK).transpose(0, 1, 3, 5, 2, 4, 6)
    return parts.reshape(-1, x, y, z, BLOCK**3)
