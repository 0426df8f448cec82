"""Regions of an edited photo: what must stay, how much of each latent that is, and how much has changed in it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from cdiff_rt.errors import BadRequest
from cdiff_rt.inputs import images
from cdiff_rt.inputs.modalities import Condition, label_map
from cdiff_rt.inputs.palette import CLASSES
from cdiff_rt.manifest import Manifest, Modality

EVERYTHING = "all"
Keep = str | Collection[int | str]


@dataclass(frozen=True, eq=False)
class Region:
    """`kept` [S, S] bool: pixels that stay. `edited` [S, S] bool: pixels that are meant to change."""

    kept: np.ndarray
    edited: np.ndarray
    labels: list[int] = field(default_factory=list)  # that were to be kept

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
        """photo [S, S, 3], edited [B, S, S, 3] -> the latter with the photo's pixels where they stay."""
        return np.where(self.kept[None, ..., None], photo, edited)

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
            was, becomes = (labels_at(mask, modality, size) for mask in (masks[0], masks[-1]))
            return region_between(was, becomes, keep, modality.classes)
    if keep:
        raise BadRequest("keep", "nothing says where its labels are", "give the mask of the image as its source")
    return nothing_kept(size)


def region_between(before: np.ndarray, after: np.ndarray, keep: Keep, classes: int) -> Region:
    """Of the masks before and after, [S, S]: a pixel stays where both have the same label, and `keep` names that.

    Without `keep` nothing is held, and what is edited is where the masks differ.
    """
    same, labels = before == after, kept_labels(keep, classes)
    if not labels:
        return Region(np.zeros_like(same), ~same)
    kept = same & np.isin(before, sorted(labels))
    if not kept.any():
        raise BadRequest("keep", "no pixel has such a label in both masks", "choose one that stays in its place")
    return Region(kept, ~kept, sorted(labels))


def nothing_kept(size: int) -> Region:
    return Region(np.zeros((size, size), bool), np.ones((size, size), bool))


def kept_labels(keep: Keep, classes: int) -> set[int]:
    """The labels that `keep` names by number or class, with commas between them or one by one, or "all"."""
    numbers = {str(label): {label} for label in range(classes)}
    numbers |= {name: {label} for label, name in enumerate(CLASSES[:classes])}
    numbers[EVERYTHING] = set(range(classes))
    found: set[int] = set()
    for part in keep.split(",") if keep and isinstance(keep, str) else keep:
        name = str(part).strip().lower()
        if name not in numbers:
            known = f"0-{classes - 1}, {', '.join(CLASSES[:classes])}, {EVERYTHING}"
            raise BadRequest("keep", repr(str(part)[:80]), f"name labels of {known}")
        found |= numbers[name]
    return found


def labels_at(value: Condition, modality: Modality, size: int) -> np.ndarray:
    """A mask's labels as large as the image, [size, size]."""
    return images.nearest(images.centre_square(label_map(value, modality).labels), size)
