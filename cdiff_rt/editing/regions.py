"""Regions of an edited photo: what must stay, how much of each latent that is, and how much has changed in it."""

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cdiff_rt.errors import BadRequest, named_as
from cdiff_rt.inputs import images
from cdiff_rt.inputs.modalities import Condition, label_map
from cdiff_rt.inputs.palette import CLASSES, SYNONYMS
from cdiff_rt.manifest import Manifest, Modality

EVERYTHING = "all"
BORDERS = 64  # as many as a border of a kept part is wide lie side by side in an image
Keep = str | Collection[int | str]


@dataclass(frozen=True, eq=False)
class Region:
    """`share` [S, S] float32: how much of each pixel stays. `edited` [S, S] bool: pixels that are meant to change."""

    share: np.ndarray
    edited: np.ndarray
    labels: list[int] = field(default_factory=list)  # that were to be kept

    @property
    def kept(self) -> np.ndarray:
        """[S, S] bool: pixels that stay as they are."""
        return self.share == 1

    def cells(self, latent: int) -> np.ndarray:
        """[latent, latent] float32: 1 where a latent and those around it are kept, 0 where any of its pixels is edited.

        In between it is the share of its neighbours that are kept. A latent held for a part of its pixels would hold
        the others too: at a border, the colour of the hair that is to change.
        """
        size = len(self.kept) // latent
        whole = self.kept.reshape(latent, size, latent, size).all((1, 3))
        around = np.lib.stride_tricks.sliding_window_view(np.pad(whole, 1, mode="edge"), (3, 3)).mean((2, 3))
        return (whole * around).astype(np.float32)

    def paste(self, photo: np.ndarray, edited: np.ndarray) -> np.ndarray:
        """photo [S, S, 3], edited [B, S, S, 3] -> the latter with as much of the photo's pixels as stays."""
        share = self.share[..., None]
        return np.rint(share * photo + (1 - share) * edited).astype(np.uint8)

    def told(self, photo: np.ndarray, edited: np.ndarray) -> dict[str, Any]:
        """What was kept, and what changed, as pictures carry it."""
        return {"keep": self.labels, "change": self.change(photo, edited)}

    def change(self, photo: np.ndarray, edited: np.ndarray) -> dict[str, list[float]]:
        """Mean absolute change of each image [B, S, S, 3] inside and outside of what is edited, in levels of 0-255."""
        parts = {"inside": self.edited, "outside": ~self.edited}
        moved = np.abs(edited.astype(int) - photo).mean(-1)  # [B, S, S]
        return {
            name: [round(float(of[where].mean()), 2) for of in moved] for name, where in parts.items() if where.any()
        }


def region_of(
    before: Mapping[str, Condition], after: Mapping[str, Condition], keep: Keep, manifest: Manifest
) -> Region:
    """Of the first mask among the conditions. The wanted one stands in where nothing is known of the photo's."""
    size = manifest.image_size
    for modality in manifest.modalities:
        name = modality.name
        masks = [of[name] for of in (before, after) if modality.kind == "labels" and name in of]
        if masks:
            with named_as("source") if name in before else nullcontext():
                was = labels_at(masks[0], modality, size)
            return region_between(was, labels_at(masks[-1], modality, size), keep, modality.classes)
    if keep:
        raise BadRequest("keep", "nothing says where its labels are", "give the mask of the image as its source")
    return nothing_kept(size)


def region_between(before: np.ndarray, after: np.ndarray, keep: Keep, classes: int) -> Region:
    """Of the masks before and after, [S, S]: a pixel stays where both have the same label, and `keep` names that.

    Towards its border less and less of it stays: the border of a mask is never quite that of what it shows, and would
    leave an outline of what was there. Without `keep` nothing is held, and what is edited is where the masks differ.
    """
    same, labels = before == after, kept_labels(keep, classes)
    if not labels:
        return Region(np.zeros(same.shape, np.float32), ~same)
    kept = same & np.isin(before, sorted(labels))
    if not kept.any():
        there = ", ".join(
            CLASSES[label] if classes == len(CLASSES) else str(label) for label in np.unique(before[same])
        )
        raise BadRequest("keep", "nothing of it is in the picture and stays", f"choose of {there or 'another mask'}")
    share = softened(kept, before, max(1, len(kept) // BORDERS))
    return Region(share, share < 1, sorted(labels))


def softened(kept: np.ndarray, labels: np.ndarray, width: int) -> np.ndarray:
    """kept [S, S] bool -> [S, S] float32: 0 at its border, growing to 1 farther than `width` pixels inside.

    Where a label would lose more than half of its pixels, as glasses would, its border is narrower, or none.
    """
    shrunk = [kept]
    for _ in range(width):
        padded = np.pad(shrunk[-1], 1, mode="edge")
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        shrunk.append(np.asarray(around.all((2, 3))))
    share = np.zeros(kept.shape, np.float32)
    for label in np.unique(labels[kept]):
        own = kept & (labels == label)
        deepest = max(depth for depth, inner in enumerate(shrunk) if 2 * inner[own].sum() >= own.sum())
        share[own] = np.mean(shrunk[1 : deepest + 1] or [kept], axis=0)[own]
    return share


def nothing_kept(size: int) -> Region:
    return Region(np.zeros((size, size), np.float32), np.ones((size, size), bool))


def kept_labels(keep: Keep, classes: int) -> set[int]:
    """The labels that `keep` names by number, class or synonym, with commas between them or one by one, or "all"."""
    numbers = {str(label): {label} for label in range(classes)}
    numbers |= {name: {label} for label, name in enumerate(CLASSES[:classes])}
    meant = {name: set(map(CLASSES.index, parts)) for name, parts in SYNONYMS.items()}
    numbers |= {name: labels for name, labels in meant.items() if max(labels) < classes}
    numbers[EVERYTHING] = set(range(classes))
    found: set[int] = set()
    for part in keep.split(",") if keep and isinstance(keep, str) else keep:
        name = "_".join(str(part).lower().split())
        if name not in numbers:
            known = ", ".join((f"0-{classes - 1}", *CLASSES[:classes], *meant, EVERYTHING))
            raise BadRequest("keep", repr(str(part)[:80]), f"name labels of {known}")
        found |= numbers[name]
    return found


def labels_at(value: Condition, modality: Modality, size: int) -> np.ndarray:
    """A mask's labels as large as the image, [size, size]."""
    return images.nearest(images.centre_square(label_map(value, modality).labels), size)
