"""Group normalisation and SiLU as one Triton kernel, for channels that lie first or last in memory."""

import triton
import triton.language as tl
from torch import Tensor

LARGEST_TILE, OF_A_THREAD = 8192, 16
LOG2_E = tl.constexpr(1.4426950408889634)


def launch(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, groups: int, eps: float, silu: bool) -> None:
    """One launch on the current stream; x and out are [B, C, pixels], dense, and lie alike: channels first or last."""
    batch, channels, pixels = x.shape
    last = not x.is_contiguous()
    tile = tiling(channels // groups, pixels, last)
    group_norm_kernel[(batch * groups, 1)](
        x,
        weight,
        bias,
        out,
        channels // groups,
        pixels,
        groups,
        eps,
        SILU=silu,
        LAST=last,
        CHANNELS=tile[0],
        PIXELS=tile[1],
        num_warps=max(1, tile[0] * tile[1] // (32 * OF_A_THREAD)),
        num_stages=1,
        enable_fp_fusion=True,
    )


def tiling(channels: int, pixels: int, last: bool) -> tuple[int, int]:
    """(channels, pixels) that are read at once: as many as may be of what lies side by side."""
    near, far = (channels, pixels) if last else (pixels, channels)
    wide = min(LARGEST_TILE, triton.next_power_of_2(near))
    high = min(LARGEST_TILE // wide, triton.next_power_of_2(far))
    return (wide, high) if last else (high, wide)


@triton.jit(do_not_specialize=["channels", "groups"])
def group_norm_kernel(
    x: tl.tensor,  # [B, groups * channels, pixels]
    weight: tl.tensor,  # [groups * channels]
    bias: tl.tensor,  # [groups * channels]
    out: tl.tensor,  # as x
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
    SILU: tl.constexpr,
    LAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """One group of one image, read twice: for its mean and variance, and, from the cache, to be normalised.

    Sums are of differences from the first value, so that a mean far from 0 does not swallow the variance.
    """
    b, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    of_image = b * groups * channels * pixels
    start = of_image + group * channels * (1 if LAST else pixels)
    channel, pixel = tl.arange(0, CHANNELS)[:, None], tl.arange(0, PIXELS)[None, :]
    first = tl.load(x + start).to(tl.float32)
    sums = tl.zeros((CHANNELS, PIXELS), tl.float32)
    squares = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for c in range(0, channels, CHANNELS):
        for p in range(0, pixels, PIXELS):
            inside = (c + channel < channels) & (p + pixel < pixels)
            place = at(c + channel, p + pixel, channels * groups, pixels, LAST)
            value = tl.load(x + start + place, mask=inside, other=0.0)
            apart = tl.where(inside, value.to(tl.float32) - first, 0.0)
            sums += apart
            squares += apart * apart
    count = tl.cast(channels * pixels, tl.float32)
    mean = tl.sum(sums) / count  # less the first value
    scale = tl.rsqrt(tl.maximum(tl.sum(squares) / count - mean * mean, 0.0) + eps)

    for c in range(0, channels, CHANNELS):
        of_group, known = group * channels + c + channel, c + channel < channels
        factor = tl.load(weight + of_group, mask=known, other=0.0).to(tl.float32) * scale
        offset = tl.load(bias + of_group, mask=known, other=0.0).to(tl.float32)
        for p in range(0, pixels, PIXELS):
            inside = known & (p + pixel < pixels)
            place = at(c + channel, p + pixel, channels * groups, pixels, LAST)
            apart = tl.load(x + start + place, mask=inside, other=0.0).to(tl.float32) - first
            value = (apart - mean) * factor + offset
            if SILU:
                value = value / (1.0 + tl.exp2(-LOG2_E * value))
            tl.store(out + start + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def at(channel: tl.tensor, pixel: tl.tensor, channels: int, pixels: int, LAST: tl.constexpr) -> tl.tensor:
    """The offset within an image."""
    return pixel * channels + channel if LAST else channel * pixels + pixel
