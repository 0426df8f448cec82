"""Both sides of an edit: what a photo shows now, and what it is to show."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdiff_rt.editing.inversion import Conditions, Reading
from cdiff_rt.errors import BadRequest
from cdiff_rt.inputs.modalities import KINDS, Condition, check_names, chosen_of, in_words
from cdiff_rt.manifest import Manifest, Modality
from cdiff_rt.notes import log

Given = Mapping[str, Condition | None]


@dataclass(frozen=True, eq=False)
class Sides:
    before: Conditions
    after: Conditions
    seen: Conditions  # in the photo, whether or not it is asked for
    guessed: list[str]  # names of what of `before` was only seen
    read: Conditions  # what the reading said, whether or not it was needed

    def told(self, inverted: Collection[Modality]) -> dict[str, Any]:
        """As records have it, of the modalities that the inversion ran."""
        return {"source": in_words(inverted, self.before)["conditions"], "read": self.guessed}


def sides_of(
    manifest: Manifest, wanted: Given, source: Given, without: Collection[str], read: Reading | None, photo: np.ndarray
) -> Sides:
    """Raises BadRequest for conditions that the model hasn't, and if one of the sides is empty."""
    wanted, source = ({name: value for name, value in given.items() if value is not None} for given in (wanted, source))
    check_names(manifest, source, "source")
    chosen_of(manifest, source | wanted, without)
    kinds = {modality.name: KINDS[modality.kind] for modality in manifest.modalities}
    open_ = set(kinds) - set(source)
    seen = {name: value for name, value in read(photo).items() if name in kinds} if read and open_ else {}
    before, after = fill_in(wanted, source, seen, [name for name, kind in kinds.items() if kind.stays])
    note_gaps(before, after, source)
    return Sides(before, after, seen | before, [name for name in before if name not in source], seen)


def fill_in(
    wanted: Conditions, source: Conditions, seen: Conditions, stay: Collection[str]
) -> tuple[Conditions, Conditions]:
    """What the photo shows now, and what it is to show.

    A modality that nothing else is wanted of stays as the `source` has it, or, of those that `stay`, as it was `seen`.
    What else the source leaves open is taken of what was seen; and if that is nothing either, the inversion does
    without. Raises BadRequest if nothing is left.
    """
    after = {name: value for name, value in seen.items() if name in stay} | source | wanted
    before = {name: value for name, value in seen.items() if name in after} | source
    if not before:
        remedy = f"give the source's {' or '.join(after)}"
        raise BadRequest("source", "nothing says what the image shows now", remedy)
    return before, after


def note_gaps(before: Conditions, after: Conditions, source: Conditions) -> None:
    for name in after:
        if name not in before:
            log.warning("source %s: not given; the inversion does without it", name)
        elif name not in source:
            shown = f" as {before[name]!r}" if isinstance(before[name], str) else ""
            log.info("source %s: not given; it is read from the image%s", name, shown)
