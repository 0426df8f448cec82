"""Convolutions of 3 x 3 with fewer multiplications, in operators that every ONNX runtime has.

Winograd's minimal filtering (S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin and S. Gray, Fast
Algorithms for Convolutional Neural Networks, CVPR 2016, eq. 8): n x n products, n = m + 2, give a tile of m x m pixels
instead of 9 m x m:

    Y = A^T [(G g G^T) * (B^T d B)] A

summed over the channels before A, so the products are n x n products of matrices. Cutting an image into tiles that overlap
and transforming them is a convolution of n x n in steps of m; transforming back and joining is a transposed one of m x m.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np

TAPS = 3  # of the kernel, along an axis
# Where the polynomials are evaluated, beside infinity. With 0, 1, -1, 2, -2 the errors of a tile of 4 are twice as large.
POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)),
}


@dataclass(frozen=True)
class Transforms:
    """Of a tile of m x m, in fp32."""

    cut: np.ndarray  # [n n, 1, n, n], of a convolution: B^T d B at each place
    kernel: np.ndarray  # [n n, 3, 3]: G g G^T
    join: np.ndarray  # [n n, 1, m, m], of a transposed convolution: A^T [...] A


@cache
def transforms(tile: int) -> Transforms:
    """Toom and Cook's algorithm at `POINTS[tile]`, transposed: A^T and G evaluate, B^T interpolates."""
    size = tile + TAPS - 1
    interpolate = np.linalg.inv(_powers(tile, size)).T
    # Each product may be scaled as one likes. By powers of two, which round nothing, to entries of like size.
    scale = 2.0 ** np.round(np.log2(np.linalg.norm(interpolate, axis=1, keepdims=True)))
    cut, kernel, join = interpolate / scale, _powers(tile, TAPS) * scale, _powers(tile, tile)

    def both_axes(matrix: np.ndarray) -> np.ndarray:
        return np.kron(matrix, matrix).astype(np.float32)

    return Transforms(
        both_axes(cut).reshape(-1, 1, size, size),
        both_axes(kernel).reshape(-1, TAPS, TAPS),
        both_axes(join).reshape(-1, 1, tile, tile),
    )


def _powers(tile: int, count: int) -> np.ndarray:
    """1, x, ... x^(count-1) at the points of the tile; at infinity only the highest counts. [points and infinity, count]"""
    rows = [[float(x**power) for power in range(count)] for x in POINTS[tile]]
    return np.array([*rows, [0.0] * (count - 1) + [1.0]])
