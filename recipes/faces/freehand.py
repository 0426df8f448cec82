"""Masks as a hand would draw them: wavy outlines, thick brushes, straight edges, forgotten parts.

The mask branch sees some of its masks so, that it still gives a face for those of users.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cdiff_rt.inputs.palette import CLASSES

OFTEN_FORGOTTEN = ("eye_g", "l_brow", "r_brow", "l_ear", "r_ear", "ear_r", "neck_l", "u_lip", "mouth", "nose", "neck")
DRAWN_THICK = ("l_eye", "r_eye", "l_brow", "r_brow", "nose", "u_lip", "mouth", "l_lip", "l_ear", "r_ear", "eye_g")

FORGET, THICKEN = 0.15, 0.3  # the chance of each such class
WAVE, WAVES = 0.7, 5  # deviation of an outline in cells, and how many bends fit across the mask
STRAIGHT = 0.35  # the chance that a mask is drawn in squares of two cells
FILLING_ROUNDS = 6  # a forgotten part is filled from its rim, a cell a round


def freehand(labels: Tensor, generator: torch.Generator) -> Tensor:
    """labels [B, N, N] of classes -> the same masks, redrawn by an unsteady hand."""
    planes = F.one_hot(labels.long(), len(CLASSES)).permute(0, 3, 1, 2).float()  # [B, classes, N, N]
    planes = forget(planes, generator)
    planes = thicken(planes, generator)
    return straighten(waver(planes.argmax(1), generator), generator)


def chosen(names: tuple[str, ...], chance: float, batch: int, generator: torch.Generator) -> Tensor:
    """[B, classes, 1, 1] of 0 and 1: every named class with this chance."""
    named = torch.tensor([name in names for name in CLASSES])
    return ((torch.rand(batch, len(CLASSES), generator=generator) < chance) & named).float()[:, :, None, None]


def forget(planes: Tensor, generator: torch.Generator) -> Tensor:
    """Takes some classes away; what lies around them grows in their place."""
    planes = planes * (1 - chosen(OFTEN_FORGOTTEN, FORGET, len(planes), generator))
    for _ in range(FILLING_ROUNDS):
        empty = planes.sum(1, keepdim=True) == 0
        around = F.avg_pool2d(planes, 3, stride=1, padding=1)
        most = F.one_hot(around.argmax(1), len(CLASSES)).permute(0, 3, 1, 2).float()
        planes = torch.where(empty & (around.sum(1, keepdim=True) > 0), most, planes)
    return planes


def thicken(planes: Tensor, generator: torch.Generator) -> Tensor:
    """Some small parts one cell wider on all sides; they cover what they meet."""
    thick = chosen(DRAWN_THICK, THICKEN, len(planes), generator)
    wide = F.max_pool2d(planes, 3, stride=1, padding=1) * thick
    return planes + 2 * wide


def waver(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Every outline shifted to and fro, smoothly."""
    batch, size = len(labels), labels.shape[-1]
    bends = torch.randn(batch, 2, WAVES, WAVES, generator=generator) * WAVE
    shift = F.interpolate(bends, size=(size, size), mode="bicubic", align_corners=True)  # cells
    cells = torch.arange(size, dtype=torch.float32)
    rows = (cells[:, None] + shift[:, 0]).round().long().clamp(0, size - 1)
    columns = (cells[None, :] + shift[:, 1]).round().long().clamp(0, size - 1)
    return labels[torch.arange(batch)[:, None, None], rows, columns]


def straighten(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Some masks in squares of two by two cells."""
    squares = labels[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    straight = torch.rand(len(labels), generator=generator) < STRAIGHT
    return torch.where(straight[:, None, None], squares, labels)
