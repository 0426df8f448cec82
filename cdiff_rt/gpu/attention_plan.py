"""Which kernel computes a head of attention, in which blocks, and what that costs, counted and not timed.

The table is made from these counts; a GPU's times have yet to confirm it (`bench time --suite gpu` runs both).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

HALF, SINGLE = (torch.float16, torch.bfloat16), (torch.float32,)


@dataclass(frozen=True)
class Choice:
    """A kernel of attention_kernel.py and its blocks, for heads up to `widest` of these types."""

    kernel: Literal["lanes", "tiles"]
    widest: int
    types: tuple[torch.dtype, ...]
    rows: int  # queries of a block
    keys: int  # that it looks at together
    ahead: int = 1  # so many of these before the maximum moves
    heads: int = 1  # side by side in a block
    warps: int = 4


# The first that fits. PyTorch's fused kernels want heads of a multiple of 8 in fp16 and of 4 in fp32: narrower ones are
# copied, padded with zeros, or every score goes through memory. Ordinary multiply-adds take 2 D + 3 issue slots for a
# score, and the exponential the time of 8, so up to about 8 wide they keep near it; tensor cores take as long for 16 as
# for 2. Rows times width is what fits into registers. With more than two warps, Triton has other instructions on 9.0
# and 10.0, which want larger blocks.
CHOICES = (
    Choice("lanes", 3, HALF + SINGLE, rows=8, keys=16, ahead=8, heads=8),
    Choice("lanes", 8, HALF + SINGLE, rows=4, keys=16, ahead=8, heads=8),
    Choice("lanes", 16, SINGLE, rows=2, keys=16, ahead=8, heads=8),
    Choice("tiles", 16, HALF, rows=64, keys=64, warps=2),
    Choice("tiles", 32, HALF, rows=64, keys=32, warps=2),
)
OF_A_ROW = 4  # threads that hold a row of a tile of tensor cores, each with the row's maximum


def choice(width: int, dtype: torch.dtype) -> Choice | None:
    """What computes heads of this width; None: PyTorch."""
    return next((c for c in CHOICES if width <= c.widest and dtype in c.types), None)


@dataclass(frozen=True)
class Blocks:
    """What a launch is made of, for one image."""

    heads: int  # groups of them
    rows: int  # groups of queries
    keys: int  # that a block looks at together
    ahead: int
    rounds: int  # until it has seen all

    @property
    def slots(self) -> int:
        """For keys; the last may be empty."""
        return self.rounds * self.keys * self.ahead


def blocks(of: Choice, rows: int, keys: int, heads: int) -> Blocks:
    """Fewer keys than a block looks at make it smaller."""
    together = min(of.keys, max(16, 2 ** math.ceil(math.log2(keys))))
    ahead = min(of.ahead, ceil(keys, together))
    return Blocks(ceil(heads, of.heads), ceil(rows, of.rows), together, ahead, ceil(keys, together * ahead))


def padded(width: int) -> int:
    """As tensor cores take it."""
    return 16 * ceil(width, 16)


def ceil(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Cost:
    """Of one attention."""

    scores: int  # as many exponentials at least
    exponentials: int  # that are computed
    multiply_adds: int  # on ordinary cores
    tensor_multiply_adds: int  # on tensor cores
    bytes: int  # read and written, if caches keep keys and values


def cost(batch: int, rows: int, keys: int, heads: int, width: int, dtype: torch.dtype) -> Cost:
    """Of `rows` queries and `keys` keys of each head. Where PyTorch computes it, the least that it can be."""
    scores, of = batch * heads * rows * keys, choice(width, dtype)
    moved = 2 * batch * (rows + keys) * heads * width * dtype.itemsize
    if of is None:
        return Cost(scores, scores, 2 * width * scores, 0, moved)
    b = blocks(of, rows, keys, heads)
    all_rows = batch * b.heads * of.heads * b.rows * of.rows
    if of.kernel == "tiles":
        exponentials = all_rows * (b.slots + OF_A_ROW * b.rounds)
        return Cost(scores, exponentials, 0, 2 * padded(width) * all_rows * b.slots, moved)
    exponentials = all_rows * (b.slots + b.keys * (b.rounds + 1))  # each lane's maximum moves, and at last they meet
    return Cost(scores, exponentials, 2 * width * all_rows * b.slots, 0, moved)
