"""Sketches of portraits: the edges of an image by one rule, and the same lines as a hand would draw them.

The sketch branch learns from drawings by that hand; the judge of a sketch knows the rule alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR, CONTRAST = 1.0, 0.06  # deviation in pixels; the least slope of an edge, in colours of 0 to 1 a pixel

THICKNESS = (0.4, 0.4, 0.2)  # the chances of lines of one, two and three pixels
WAVE, WAVES = 0.7, 6  # deviation of a line in pixels, and how many bends fit across the picture
ERASED, SPOTS, BLOTS = 0.25, 16, 4  # up to this share is erased twice, in spots of which so many fit across
OVALS, OVAL, OVAL_SPREAD = 0.4, (0.53, 0.5, 0.3, 0.24), (0.06, 0.04, 0.08, 0.06)  # see `ovals`
CLEAN = 0.15  # the chance of exactly the edges
REACH = 1  # pixels between a line and one that meets it
GREY, NOISE = 0.5, 0.03  # the palest line; deviation of the paper


def edges(images: Tensor) -> Tensor:
    """[B, 3, N, N] in [-1, 1] -> [B, N, N] bool: where a colour's slope is steep and steepest across the line."""
    slope_y, slope_x = slopes(blurred(images / 2 + 0.5))
    size = (slope_y**2 + slope_x**2).sqrt()
    most = size.argmax(1, keepdim=True)
    size, slope_y, slope_x = (values.gather(1, most)[:, 0] for values in (size, slope_y, slope_x))
    return (size > CONTRAST) & is_ridge(size, slope_y, slope_x)


def blurred(images: Tensor) -> Tensor:
    reach = round(3 * BLUR)
    bell = torch.exp(-((torch.arange(-reach, reach + 1) / BLUR) ** 2) / 2)
    kernel = (bell / bell.sum()).expand(images.shape[1], 1, 1, -1)
    for turned, pad in ((kernel, (reach, reach, 0, 0)), (kernel.mT, (0, 0, reach, reach))):
        images = F.conv2d(F.pad(images, pad, mode="replicate"), turned, groups=images.shape[1])
    return images


def slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Down and to the right, by Sobel, per pixel."""
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    padded, channels = F.pad(images, (1, 1, 1, 1), mode="replicate"), images.shape[1]
    down, right = (kernel.expand(channels, 1, 3, 3) for kernel in (sobel.T, sobel))
    return F.conv2d(padded, down, groups=channels), F.conv2d(padded, right, groups=channels)


def is_ridge(size: Tensor, slope_y: Tensor, slope_x: Tensor) -> Tensor:
    """Whether a slope [B, N, N] is larger than its two neighbours' in its own direction, of eight."""
    eighths = (torch.atan2(slope_y, slope_x) / (torch.pi / 4)).round().long() % 4
    around = F.pad(size[:, None], (1, 1, 1, 1))[:, 0]
    height, width = size.shape[1:]
    found = torch.zeros_like(size, dtype=torch.bool)
    for eighth, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead, behind = (around[:, 1 + s * y :, 1 + s * x :][:, :height, :width] for s in (1, -1))
        found |= (eighths == eighth) & (size >= ahead) & (size > behind)
    return found


def clean(lines: Tensor) -> Tensor:
    """Edges [B, N, N] as a picture of them [B, 1, N, N] in [0, 1]: dark lines on white paper."""
    return 1 - lines[:, None].float()


def drawn(lines: Tensor, generator: torch.Generator) -> Tensor:
    """Edges [B, N, N] as pictures of them by an unsteady hand [B, 1, N, N] in [0, 1], some of a part of the lines."""
    ink = lines[:, None].float()
    ink = ink * kept(ink, SPOTS, generator) * kept(ink, BLOTS, generator)
    ink = torch.where(some(ink, OVALS, generator), ink * ovals(ink, generator), ink)
    ink = waver(thicken(ink, generator), generator)
    strength = GREY + (1 - GREY) * torch.rand(len(ink), 1, 1, 1, generator=generator)
    paper = NOISE * torch.rand(len(ink), 1, 1, 1, generator=generator) * torch.randn(ink.shape, generator=generator)
    rough = (1 - strength * ink + paper).clamp(0, 1)
    return torch.where(some(ink, CLEAN, generator), clean(lines), rough)


def some(ink: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """[B, 1, 1, 1] bool."""
    return torch.rand(len(ink), 1, 1, 1, generator=generator) < chance


def kept(ink: Tensor, spots: int, generator: torch.Generator) -> Tensor:
    """[B, 1, N, N] of 0 where a picture is erased, in spots of which so many fit across it."""
    field = torch.randn(len(ink), 1, spots, spots, generator=generator)
    field = F.interpolate(field, size=ink.shape[2:], mode="bicubic", align_corners=False)
    share = ERASED * torch.rand(len(ink), 1, 1, 1, generator=generator)
    return (field > field.std((1, 2, 3), keepdim=True) * torch.special.ndtri(share)).float()


def ovals(ink: Tensor, generator: torch.Generator) -> Tensor:
    """[B, 1, N, N] of 1 within an upright oval near the middle, about as large as a face without hair."""
    spread = torch.rand(len(ink), 4, 1, 1, 1, generator=generator) * 2 - 1
    top, left, height, width = ((m + s * d) for m, s, d in zip(OVAL, OVAL_SPREAD, spread.unbind(1), strict=True))
    return within(ink.shape[-1], top, left, height, width).float()


def within(size: int, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Whether a pixel lies in the oval of this middle and of these half axes, all in shares of the picture."""
    place = (torch.arange(size) + 0.5) / size
    return ((place[:, None] - top) / height) ** 2 + ((place[None] - left) / width) ** 2 < 1


def thicken(ink: Tensor, generator: torch.Generator) -> Tensor:
    widths = torch.multinomial(torch.tensor(THICKNESS), len(ink), replacement=True, generator=generator)
    two, three = F.max_pool2d(F.pad(ink, (0, 1, 0, 1)), 2, stride=1), F.max_pool2d(ink, 3, stride=1, padding=1)
    return torch.stack([ink, two, three])[widths, torch.arange(len(ink))]


def waver(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Every line shifted to and fro, smoothly."""
    size = ink.shape[-1]
    bends = torch.randn(len(ink), 2, WAVES, WAVES, generator=generator) * (WAVE * 2 / size)
    shift = F.interpolate(bends, size=(size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    place = (torch.arange(size) + 0.5) * 2 / size - 1
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=-1)
    return F.grid_sample(ink, grid + shift, align_corners=False)


def features(lines: Tensor) -> Tensor:
    """Of edges [B, N, N] those of the face alone: within the same upright oval in every picture."""
    return lines & within(lines.shape[-1], *map(torch.tensor, OVAL))


def agreement(found: Tensor, wanted: Tensor) -> Tensor:
    """Edges found and wanted [B, N, N] -> [B]: the F-score, where a line is met by one within REACH pixels."""
    met = [(a & near(b)).sum((1, 2)) / a.sum((1, 2)).clamp(min=1) for a, b in ((found, wanted), (wanted, found))]
    return 2 * met[0] * met[1] / (met[0] + met[1]).clamp(min=1e-9)


def near(lines: Tensor) -> Tensor:
    size = 2 * REACH + 1
    return F.max_pool2d(lines[:, None].float(), size, stride=1, padding=REACH)[:, 0] > 0
