"""The fused step as one Triton kernel: `fusion.influence`, `fuse` and `update` in registers, each byte read once.

A thread owns a few neighbouring pixels of one image: it reads their logits of all modalities, keeps the influence
functions, and goes through the channels. Nothing is shared between threads, so x and hist can change in place.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from cdiff_rt.sampling import controls as rows
from cdiff_rt.sampling import fusion, solvers
from cdiff_rt.sampling import numbers as columns

# A jitted function sees only such globals as are constants.
C_X, C_OUT = tl.constexpr(solvers.C_X), tl.constexpr(solvers.C_OUT)
C_HIST, C_NOISE = tl.constexpr(solvers.C_HIST), tl.constexpr(solvers.C_NOISE)
D_X, D_OUT = tl.constexpr(solvers.D_X), tl.constexpr(solvers.D_OUT)
GAINS, ANCHOR = tl.constexpr(columns.GAINS), tl.constexpr(columns.ANCHOR)
FACTORS, PRESENT = tl.constexpr(columns.FACTORS), tl.constexpr(columns.PRESENT)
SHARPNESS, BOOST = tl.constexpr(columns.SHARPNESS), tl.constexpr(columns.BOOST)
SCALE, LEAST, MOST = tl.constexpr(rows.SCALE), tl.constexpr(rows.LEAST), tl.constexpr(rows.MOST)
ABSENT, NO_LESS = tl.constexpr(fusion.ABSENT), tl.constexpr(fusion.LEAST)

LARGEST_WARPS = 4


def launch(
    outs: Tensor,
    logits: Tensor,
    x: Tensor,
    hist: Tensor | None,
    noise: Tensor | None,
    numbers: Tensor,
    controls: Tensor | None,
    weights: Tensor | None,
    boosted: bool,
) -> None:
    """One launch on the current stream; the tensors are as `fused_step.check` wants them."""
    modalities, batch, channels, *latent = outs.shape
    size = math.prod(latent)
    block, warps = blocking(size, max(part.element_size() for part in (x, hist, weights) if part is not None))
    fuse_step_kernel[(triton.cdiv(size, block), batch)](
        outs,
        logits,
        x,
        hist,
        noise,
        numbers,
        controls,
        weights,
        outs.stride(0),
        logits.stride(0),
        size,
        channels,
        M=modalities,
        C=channels,
        BOOSTED=boosted,
        BLOCK=block,
        num_warps=warps,
        enable_fp_fusion=True,
    )


def blocking(size: int, widest: int) -> tuple[int, int]:
    """(pixels, warps) of a block, such that a thread stores 16 bytes of the widest type that is written.

    Were it the narrowest, Triton would give stores of the wider type a layout of their own, and bring the values there
    through shared memory and barriers.
    """
    of_a_warp = 32 * 16 // widest
    warps = min(LARGEST_WARPS, max(1, triton.next_power_of_2(size) // of_a_warp))
    return warps * of_a_warp, warps


@triton.jit(do_not_specialize=["channels"])
def fuse_step_kernel(
    outs: tl.tensor,  # [M, B, C, size]
    logits: tl.tensor,  # [M, B, 1, size]
    x: tl.tensor,  # [B, C, size]
    hist: tl.tensor | None,  # [B, C, size]
    noise: tl.tensor | None,  # [B, C, size]
    numbers: tl.tensor,  # [WIDTH]
    controls: tl.tensor | None,  # [3, M, size]
    weights: tl.tensor | None,  # [M, B, 1, size]
    outs_stride: int,
    logits_stride: int,
    size: int,
    channels: int,
    M: tl.constexpr,
    C: tl.constexpr,
    BOOSTED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of pixels of image b, for every channel."""
    b = tl.program_id(1).to(tl.int64)  # so that no offset overflows
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size

    present: tl.tuple = ()
    read_logits: tl.tuple = ()
    for m in tl.static_range(M):
        present = present + (tl.load(numbers + PRESENT + m) > 0.0,)
        read_logits = read_logits + (read(logits + at(m, logits_stride) + b * size + pixel, inside),)
    shares = influence(read_logits, present, numbers, M, BOOSTED)
    if controls is not None:
        shares = steered(shares, numbers, controls, size, pixel, M)
    if weights is not None:
        for m in tl.static_range(M):
            tl.store(weights + (at(m, tl.num_programs(1)) + b) * size + pixel, shares[m], mask=inside)

    c_x, c_out = tl.load(numbers + C_X), tl.load(numbers + C_OUT)
    c_hist, c_noise = tl.load(numbers + C_HIST), tl.load(numbers + C_NOISE)
    d_x, d_out = tl.load(numbers + D_X), tl.load(numbers + D_OUT)
    # Not b * C: of that, Triton would know that it is even, say, and from it that some channels are aligned better than
    # others, and give them a layout of their own, as `blocking` has it.
    image = b * channels
    for c in tl.static_range(C):
        here = (image + c) * size + pixel
        # Of a modality that is not present 0, whatever an earlier step has left in its place.
        out = shares[0] * tl.where(present[0], read(outs + here, inside), 0.0)
        for m in tl.static_range(1, M):
            out += shares[m] * tl.where(present[m], read(outs + at(m, outs_stride) + here, inside), 0.0)
        now = read(x + here, inside)
        following = c_x * now + c_out * out
        if noise is not None:
            following += c_noise * read(noise + here, inside)
        if hist is not None:
            following += c_hist * read(hist + here, inside)
            tl.store(hist + here, (d_x * now + d_out * out).to(hist.dtype.element_ty), mask=inside)
        tl.store(x + here, following.to(x.dtype.element_ty), mask=inside)


@triton.jit
def influence(
    logits: tl.tuple, present: tl.tuple, numbers: tl.tensor, M: tl.constexpr, BOOSTED: tl.constexpr
) -> tl.tuple:
    """`fusion.influence` of each modality's logits, with the gains, anchor, factors and so on of this step."""
    weights = softmax(logits, present, tl.load(numbers + SHARPNESS), M)
    kept: tl.tuple = ()
    remainder = 1.0
    for m in tl.static_range(M):
        part = weights[m] * (tl.load(numbers + GAINS + m) * (1.0 - tl.load(numbers + ANCHOR + m)))
        kept = kept + (part,)
        remainder -= part
    weighed: tl.tuple = ()
    for m in tl.static_range(M):
        with_remainder = kept[m] + tl.load(numbers + ANCHOR + m) * remainder
        weighed = weighed + (with_remainder * tl.load(numbers + FACTORS + m),)
    weights = normalised(weighed, M)
    if BOOSTED:
        weights = softmax(weights, present, tl.load(numbers + BOOST), M)
    return weights


@triton.jit
def softmax(logits: tl.tuple, present: tl.tuple, sharpness: tl.tensor, M: tl.constexpr) -> tl.tuple:
    """Over the modalities that are present, of the logits times `sharpness`."""
    scores: tl.tuple = ()
    for m in tl.static_range(M):
        scores = scores + (tl.where(present[m], sharpness * logits[m], ABSENT),)
    largest = scores[0]
    for m in tl.static_range(1, M):
        largest = tl.maximum(largest, scores[m])
    return normalised([tl.exp(score - largest) for score in scores], M)


@triton.jit
def steered(
    shares: tl.tuple, numbers: tl.tensor, controls: tl.tensor, size: int, pixel: tl.tensor, M: tl.constexpr
) -> tl.tuple:
    """`fusion.steered` of each modality's shares."""
    count = 0.0
    for m in tl.static_range(M):
        count += tl.load(numbers + PRESENT + m)
    wanted: tl.tuple = ()
    away: tl.tuple = ()
    for m in tl.static_range(M):
        scale = mapped(controls, SCALE * M + m, size, pixel)
        wanted = wanted + (tl.maximum(scale, 0.0) * tl.maximum(shares[m], NO_LESS),)
        away = away + (tl.minimum(scale, 0.0) * shares[m] * count,)
    held = bounded(normalised(wanted, M), controls, size, pixel, M)
    towards = 1.0 - summed(away, M)
    result: tl.tuple = ()
    for m in tl.static_range(M):
        result = result + (held[m] * towards + away[m],)
    return result


@triton.jit
def bounded(shares: tl.tuple, controls: tl.tensor, size: int, pixel: tl.tensor, M: tl.constexpr) -> tl.tuple:
    """Held within least and most; the others give or take what is then missing, by the room that they have."""
    held: tl.tuple = ()
    below: tl.tuple = ()
    above: tl.tuple = ()
    for m in tl.static_range(M):
        least = mapped(controls, LEAST * M + m, size, pixel)
        most = mapped(controls, MOST * M + m, size, pixel)
        part = tl.minimum(tl.maximum(shares[m], least), most)
        held = held + (part,)
        below = below + (part - least,)
        above = above + (most - part,)
    missing = 1.0 - summed(held, M)
    room: tl.tuple = ()
    for m in tl.static_range(M):
        room = room + (tl.where(missing > 0.0, above[m], below[m]),)
    rate = missing / tl.maximum(summed(room, M), NO_LESS)
    result: tl.tuple = ()
    for m in tl.static_range(M):
        result = result + (held[m] + rate * room[m],)
    return result


@triton.jit
def mapped(controls: tl.tensor, map: tl.constexpr, size: int, pixel: tl.tensor) -> tl.tensor:
    """That map of the controls [3 M, size] at these pixels."""
    # Not map * size, for the reason that `image` has: the first map would be aligned better than the others. The grid is
    # 1 deep, so what is added is 0, which Triton does not know.
    number = tl.program_id(2).to(tl.int64) + map
    return read(controls + number * size + pixel, pixel < size)


@triton.jit
def normalised(parts: tl.tuple, M: tl.constexpr) -> tl.tuple:
    """Brought to the sum 1; one division per pixel."""
    scale = 1.0 / summed(parts, M)
    return [part * scale for part in parts]


@triton.jit
def summed(parts: tl.tuple, M: tl.constexpr) -> tl.tensor:
    total = parts[0]
    for m in tl.static_range(1, M):
        total += parts[m]
    return total


@triton.jit
def read(pointers: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """As fp32, whatever the storage."""
    return tl.load(pointers, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def at(m: tl.constexpr, stride: int) -> tl.tensor:
    """The offset of modality m, in 64 bits."""
    return tl.full((), m, tl.int64) * stride
