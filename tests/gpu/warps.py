"""What the 32 threads of a warp do together: exchange registers, and multiply matrices of which each holds a part."""

import numpy as np

LANES = 32
ROW = 16  # bytes of a row of an 8 x 8 matrix of 2-byte numbers


def butterfly(values: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Each thread's value of the thread whose number differs by these bits."""
    at = np.arange(values.size)
    return values[(at ^ distance) % LANES + at // LANES * LANES]


def rows_of(places: np.ndarray, count: int) -> np.ndarray:
    """places [threads, ROW] of rows -> [warps, count, 8, ROW], those of `count` matrices."""
    return places.reshape(-1, LANES, ROW)[:, : 8 * count].reshape(-1, count, 8, ROW)


def owned(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """[warps, count, 8, ROW] -> [count, threads, 4]: the bytes of the two numbers that each thread holds.

    Thread 4 r + c holds numbers 2 c and 2 c + 1 of row r, or of column r of a matrix that is transposed on its way.
    """
    numbers = rows.reshape(*rows.shape[:3], 8, 2)
    if transposed:
        numbers = numbers.swapaxes(2, 3)
    pairs = numbers.reshape(*rows.shape[:2], LANES, 4)
    return pairs.swapaxes(0, 1).reshape(rows.shape[1], -1, 4)


def whole(registers: np.ndarray, shape: tuple[int, int], places: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """registers [warps, LANES, numbers] -> [warps, *shape]; places[i] are where number i of each thread belongs."""
    matrix = np.zeros((len(registers), *shape), registers.dtype)
    for i, (row, column) in enumerate(places):
        matrix[:, row, column] = registers[:, :, i]
    return matrix


# The row and column of each number that a thread holds of A [16, 16], B [16, 8] and C [16, 8].
_GROUP, _PAIR = np.divmod(np.arange(LANES), 4)
A = [(_GROUP + 8 * (i % 2), 2 * _PAIR + 8 * (i // 2) + half) for i in range(4) for half in (0, 1)]
B = [(2 * _PAIR + 8 * i + half, _GROUP) for i in range(2) for half in (0, 1)]
C = [(_GROUP + 8 * i, 2 * _PAIR + half) for i in range(2) for half in (0, 1)]


def multiplied(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """A [16, 16] B [16, 8] + C [16, 8] of each warp: a [threads, 8], b and c [threads, 4] float32, as is the result."""
    left, right = (
        whole(part.reshape(-1, LANES, len(places)).astype(np.float64), shape, places)
        for part, shape, places in ((a, (16, 16), A), (b, (16, 8), B))
    )
    result = (left @ right + whole(c.reshape(-1, LANES, 4), (16, 8), C)).astype(np.float32)
    return np.stack([result[:, row, column] for row, column in C], axis=2).reshape(-1, 4)
