"""Attention for narrow heads as two Triton kernels: no score is ever in memory, and no head is padded there.

A score costs one exponential, and that is what bounds heads of 2 to 16 (gpu/attention_plan.py). A running maximum keeps
it finite. Exponentials are to the base 2, as the hardware's are: log2(e) is in the scale.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cdiff_rt.gpu.attention_plan import Choice, blocks, padded

LEAST = tl.constexpr(-3.0e38)  # the maximum of nothing: finite, so that it minus itself is 0


def launch(choice: Choice, q: Tensor, keys: Tensor, values: Tensor, out: Tensor, heads: int, scale: float) -> None:
    """One launch on the current stream; out is as q, without gaps, and log2(e) is in the scale."""
    width, taken = q.shape[2] // heads, blocks(choice, q.shape[1], keys.shape[1], heads)
    kernel, constants = {"lanes": (lanes_kernel, _lanes), "tiles": (tiles_kernel, _tiles)}[choice.kernel]
    kernel[(len(q) * taken.heads, taken.rows)](
        q,
        keys,
        values,
        out,
        *(stride for x in (q, keys, values) for stride in x.stride()[:2]),
        q.shape[1],
        keys.shape[1],
        heads,
        scale,
        D=width,
        ROWS=choice.rows,
        KEYS=taken.keys,
        EVEN=keys.shape[1] % (taken.keys * taken.ahead) == 0,
        **constants(choice, width, taken.ahead, (q, keys, values)),
        num_warps=choice.warps,
        num_stages=1,
        enable_fp_fusion=False,  # else threads that sum the same in another order round differently
    )


def _lanes(choice: Choice, width: int, ahead: int, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    paired = width % 2 == 0 and all(map(_in_words, tensors))
    return {"HEADS": choice.heads, "AHEAD": ahead, "PAIRED": paired}


def _in_words(x: Tensor) -> bool:
    """Whether two neighbours at an even place are a word of 4 bytes."""
    return x.element_size() == 2 and x.data_ptr() % 4 == 0 and x.stride(0) % 2 == x.stride(1) % 2 == 0


def _tiles(choice: Choice, width: int, ahead: int, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    return {"WIDTH": padded(width)}


@triton.jit(do_not_specialize=["q_token", "k_token", "v_token", "rows", "keys", "heads"])
def lanes_kernel(
    q: tl.tensor,  # [B, rows, heads * D], images and tokens at any stride
    k: tl.tensor,  # [B, keys, heads * D], likewise
    v: tl.tensor,  # [B, keys, heads * D], likewise
    out: tl.tensor,  # [B, rows, heads * D]
    q_image: int,
    q_token: int,
    k_image: int,
    k_token: int,
    v_image: int,
    v_token: int,
    rows: int,
    keys: int,
    heads: int,
    scale: float,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    AHEAD: tl.constexpr,
    PAIRED: tl.constexpr,
    EVEN: tl.constexpr,
) -> None:
    """ROWS queries of HEADS heads, by multiply-adds. A thread has one head, and every KEYS-th key of all the rows.

    Heads lie beside each other in memory, so neighbouring threads read neighbouring bytes. Each thread has a maximum
    and sums of its own, which meet once, at the end. AHEAD scores at a time share a step of the maximum, whose
    exponential would else be a second one for each score.
    """
    groups = tl.cdiv(heads, HEADS)
    b = (tl.program_id(0) // groups).to(tl.int64)  # so that no offset overflows
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(0) % groups * HEADS + tl.arange(0, HEADS)
    known = (head < heads)[None, None, :]
    lane = tl.arange(0, KEYS)[None, :, None]
    whole: tl.constexpr = (ROWS, KEYS, HEADS)

    place = q + b * q_image + row[:, None, None] * q_token + head[None, None, :] * D
    asked = (row < rows)[:, None, None] & known
    query = scaled(read(tl.broadcast_to(place, whole), tl.broadcast_to(asked, whole), D, PAIRED), scale)
    near = k + b * k_image + head[None, None, :] * D
    far = v + b * v_image + head[None, None, :] * D
    largest = tl.full(whole, LEAST, tl.float32)
    total = tl.zeros(whole, tl.float32)
    mixed = scaled((total,) * D, 1.0)
    for start in range(0, keys, KEYS * AHEAD):
        scores: tl.tuple = ()
        values: tl.tuple = ()
        new = largest
        for ahead in tl.static_range(AHEAD):
            key = start + ahead * KEYS + lane
            there = known if EVEN else (key < keys) & known
            values = values + (read(far + key * v_token, there, D, PAIRED),)
            score = product(query, read(near + key * k_token, there, D, PAIRED), D)
            if not EVEN:
                score = tl.where(key < keys, score, float("-inf"))
            scores = scores + (score,)
            new = tl.maximum(new, score)
        kept = tl.exp2(largest - new)
        largest = new
        total *= kept
        mixed = scaled(mixed, kept)
        for ahead in tl.static_range(AHEAD):
            weight = tl.exp2(scores[ahead] - new)
            total += weight
            mixed = added(mixed, values[ahead], weight, D)

    kept = tl.exp2(largest - tl.max(largest, axis=1)[:, None, :])
    share = 1.0 / tl.sum(total * kept, axis=1)
    to = out + ((b * rows + row[:, None]) * heads + head[None, :]) * D
    inside = (row < rows)[:, None] & (head < heads)[None, :]
    for d in tl.static_range(D):
        part = tl.sum(mixed[d] * kept, axis=1) * share
        tl.store(to + d, part.to(out.dtype.element_ty), mask=inside)


@triton.jit
def read(pointers: tl.tensor, inside: tl.tensor, D: tl.constexpr, PAIRED: tl.constexpr) -> tl.tuple:
    """D neighbours as fp32; PAIRED, two of a 2-byte type in a word."""
    parts: tl.tuple = ()
    if PAIRED:
        kind: tl.constexpr = pointers.dtype.element_ty
        words = pointers.to(tl.pointer_type(tl.uint32))
        for d in tl.static_range(D // 2):
            word = tl.load(words + d, mask=inside, other=0)
            low, high = (word & 0xFFFF).to(tl.uint16), (word >> 16).to(tl.uint16)
            parts = parts + (low.to(kind, bitcast=True).to(tl.float32), high.to(kind, bitcast=True).to(tl.float32))
    else:
        for d in tl.static_range(D):
            parts = parts + (tl.load(pointers + d, mask=inside, other=0.0).to(tl.float32),)
    return parts


@triton.jit
def product(a: tl.tuple, b: tl.tuple, D: tl.constexpr) -> tl.tensor:
    total = a[0] * b[0]
    for d in tl.static_range(1, D):
        total = tl.fma(a[d], b[d], total)
    return total


@triton.jit
def scaled(parts: tl.tuple, factor: tl.tensor) -> tl.tuple:
    return [part * factor for part in parts]


@triton.jit
def added(sums: tl.tuple, parts: tl.tuple, weight: tl.tensor, D: tl.constexpr) -> tl.tuple:
    found: tl.tuple = ()
    for d in tl.static_range(D):
        found = found + (tl.fma(weight, parts[d], sums[d]),)
    return found


@triton.jit(do_not_specialize=["rows", "keys", "heads"])
def tiles_kernel(
    q: tl.tensor,  # as lanes_kernel has them
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    q_image: int,
    q_token: int,
    k_image: int,
    k_token: int,
    v_image: int,
    v_token: int,
    rows: int,
    keys: int,
    heads: int,
    scale: float,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    EVEN: tl.constexpr,
) -> None:
    """ROWS queries of one head, by tensor cores. These want a WIDTH of 16 or 32; what D lacks of it is read as 0."""
    b, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    row, lane, d = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    within = (d < D)[None, :]
    inside = (row < rows)[:, None] & within
    query = tl.load(q + b * q_image + row[:, None] * q_token + head * D + d[None, :], mask=inside, other=0.0)
    largest = tl.full((ROWS,), LEAST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDTH), tl.float32)
    near = k + b * k_image + head * D + d[None, :]
    far = v + b * v_image + head * D + d[None, :]
    for start in range(0, keys, KEYS):
        key = start + lane
        there = within if EVEN else (key < keys)[:, None] & within
        scores = tl.dot(query, tl.load(near + key[:, None] * k_token, mask=there, other=0.0).T)
        if not EVEN:
            scores = tl.where((key < keys)[None, :], scores, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, axis=1))
        kept = tl.exp2((largest - new) * scale)
        weights = tl.exp2(tl.fma(scores, scale, (-new * scale)[:, None]))
        largest = new
        total = total * kept + tl.sum(weights, axis=1)
        values = tl.load(far + key[:, None] * v_token, mask=there, other=0.0)
        mixed = tl.dot(weights.to(values.dtype), values, mixed * kept[:, None])
    to = out + ((b * rows + row[:, None]) * heads + head) * D + d[None, :]
    tl.store(to, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside)
