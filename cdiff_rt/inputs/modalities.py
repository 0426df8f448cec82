"""How a user's value becomes what a condition network takes: one row of `KINDS` for each kind of modality."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from cdiff_rt.errors import BadArtefact, BadInput, BadRequest, is_address
from cdiff_rt.inputs import images, subwords, traces
from cdiff_rt.inputs.drawings import read_drawing
from cdiff_rt.inputs.label_doubts import doubts
from cdiff_rt.inputs.label_maps import LabelMap
from cdiff_rt.inputs.palette import PALETTE, USUAL_ORDER
from cdiff_rt.inputs.wordpiece import WordPiece
from cdiff_rt.inputs.words import check_text, tell_unknown
from cdiff_rt.manifest import Bundle, Manifest, Modality
from cdiff_rt.notes import log

Condition = images.Picture | LabelMap  # of words a sentence, of numbers an array
Reader = Callable[[Any, Modality, Bundle], np.ndarray]  # of a condition


def chosen_of(manifest: Manifest, given: Collection[str], without: Collection[str] = ()) -> list[Modality]:
    """The modalities of the conditions given, in the model's order. Raises BadRequest for none, or for one it lacks."""
    check_names(manifest, given, "condition")
    check_names(manifest, without, "without")
    always = [modality.name for modality in manifest.modalities if modality.kind == "nothing"]
    chosen = [m for m in manifest.modalities if m.name in (*given, *always) and m.name not in without]
    known = ", ".join(modality.name for modality in manifest.modalities)
    if given and not chosen:
        raise BadRequest("without", "it leaves no condition", f"give another one of {known}")
    if not chosen:
        raise BadRequest("conditions", "none given", f"give at least one of {known}")
    return chosen


def asked(
    conditions: Mapping[str, Any],
    manifest: Manifest,
    *,
    labels: str = USUAL_ORDER,
    snap: bool = False,
    given: bool = True,
) -> dict[str, Any]:
    """Conditions that know how a request wants them read; one that knows already stays as it is."""
    maps = {modality.name: modality.classes for modality in manifest.modalities if modality.kind == "labels"}
    known = {name: _as_array(name, value) for name, value in conditions.items()}
    for name in known.keys() & {modality.name for modality in manifest.modalities if modality.kind == "picture"}:
        known[name] = traces.loaded(known[name], name)
    for name, value in conditions.items():
        if name in maps and value is not None and not isinstance(value, LabelMap):
            known[name] = LabelMap(value, maps[name], labels, snap, given)
    return known


def _as_array(name: str, value: Any) -> Any:
    """Numbers in Python's own forms as an array, and anything else as it is. Raises BadInput."""
    if not isinstance(value, Number | list | tuple):
        return value
    try:
        return np.asarray(value)
    except ValueError:
        raise BadInput(name, f"{value!r:.80}", "give rows of equal length") from None


def tell_unused(
    manifest: Manifest,
    given: Mapping[str, Condition | None],
    *,
    labels: str,
    snap: bool,
    weighed: Collection[str] = (),
) -> None:
    """Warns of a way to read label maps where none is given, and of conditions that are `weighed` and not given.

    Raises BadRequest for one that the model has no modality of.
    """
    if not any(modality.kind == "labels" and given.get(modality.name) is not None for modality in manifest.modalities):
        for name, changed in (("labels", labels != USUAL_ORDER), ("snap", snap)):
            if changed:
                log.warning("%s: no mask is given, so it changes nothing", name)
    check_names(manifest, weighed, "influence")
    always = {modality.name for modality in manifest.modalities if modality.kind == "nothing"}
    for name in sorted(name for name in weighed if given.get(name) is None and name not in always):
        log.warning("influence: no %s is given, so what is asked of it changes nothing", name)


def label_map(value: Condition, modality: Modality) -> LabelMap:
    return value if isinstance(value, LabelMap) else LabelMap(value, modality.classes)


def check_names(manifest: Manifest, names: Collection[str], what: str) -> None:
    """Raises BadRequest for one that the model has no modality of; `what` they were given as."""
    known = [modality.name for modality in manifest.modalities]
    for name in sorted(set(names) - set(known)):
        raise BadRequest(what, f"{name!r:.80}", f"{manifest.name} knows {', '.join(known)}")


def read_label_map(value: Condition, modality: Modality, bundle: Bundle) -> np.ndarray:
    """A mask -> one-hot [1, classes, size * size] float32."""
    of = label_map(value, modality)
    name, (height, width) = name_of(of), of.labels.shape
    square = images.centre_square(of.labels)
    if height != width:
        log.warning("%s %s: %dx%d is not square, its centre is used", modality.name, name, width, height)
    small = images.nearest(square, modality.size)
    if of.how:  # a picture's form is guessed, an array's is not
        found = len(np.unique(small))
        log.info("%s %s: %dx%d, %s, %d classes", modality.name, name, width, height, of.how, found)
    for doubt in doubts(square, small, modality.classes, of.order) if of.given else ():
        log.warning("%s %s: %s", modality.name, name, doubt)
    one_hot = np.eye(modality.classes, dtype=np.float32)[small.reshape(-1)]  # [size * size, classes]
    return one_hot.T[None]


def draw_labels(value: Condition, modality: Modality) -> np.ndarray:
    """A mask in the colours of docs/masks.md, [S, S, 3] uint8."""
    return np.array(PALETTE, np.uint8)[images.centre_square(label_map(value, modality).labels) % len(PALETTE)]


def trace_of_labels(value: Condition) -> traces.Trace:
    return traces.trace_of(value.content if isinstance(value, LabelMap) else value, "mask")


def trace_of_numbers(value: Condition) -> traces.Trace:
    return {} if _is_text(value) else traces.trace_of(picture_of(value))


def labels_of(value: Condition, modality: Modality) -> np.ndarray | None:
    return value.labels if isinstance(value, LabelMap) and value.was_read else None


def numbers_of(value: Condition, modality: Modality) -> np.ndarray | None:
    return None if _is_text(value) else images.read_array(picture_of(value), modality.name)


def _is_text(value: Condition) -> TypeGuard[str]:
    return isinstance(value, str) and not value.endswith(".npy")


def picture_of(value: Condition) -> images.Picture:
    return value.picture if isinstance(value, LabelMap) else value


def name_of(value: Condition) -> str:
    return images.name_of(picture_of(value))


def how_it_was_read(value: Condition) -> str:
    return value.how if isinstance(value, LabelMap) else ""


def read_words(value: Condition, modality: Modality, bundle: Bundle) -> np.ndarray:
    """A sentence -> ids of its pieces [1, tokens] int64."""
    if not isinstance(value, str):
        raise BadInput(modality.name, f"a {type(value).__name__}", "give a sentence")
    check_text(value, modality.name)
    words, knows, file = list[str](), _known_pieces(modality, bundle), modality.vocabulary
    if file.endswith(subwords.FILE):
        tokens = subwords.encode(bundle.content[file], file, value, modality.tokens, knows)
    else:
        pieces = vocabulary_of(modality, bundle)
        tokens, words = pieces.encode(value, modality.tokens), pieces.words
    tell_unknown(value, modality.name, tokens, words, modality.synonyms)
    return np.array([tokens.ids], dtype=np.int64)


def vocabulary_of(modality: Modality, bundle: Bundle) -> WordPiece:
    """Raises BadArtefact for one that has more pieces than the network knows: a backend may read past its weights."""
    words = WordPiece.read(bundle.content[modality.vocabulary], modality.vocabulary)
    knows = _known_pieces(modality, bundle)
    if knows is not None and len(words.index) > knows:
        seen = f"{len(words.index)} pieces, but the network knows {knows}"
        raise BadArtefact(f"vocabulary {modality.vocabulary}", seen, "take that which the model was trained with")
    return words


def _known_pieces(modality: Modality, bundle: Bundle) -> int | None:
    """How many the network has embeddings of, if the bundle says so."""
    part: Any = bundle.manifest.source
    for name in ("experts", modality.name, "encoder", "vocabulary"):
        part = part.get(name) if isinstance(part, dict) else None
    return part if isinstance(part, int) else None


def read_numbers(value: Condition, modality: Modality, bundle: Bundle) -> np.ndarray:
    """An array, a .npy file's path, or numbers with commas between them -> [1, tokens, width] float32."""
    name, shape = modality.name, modality.input_shape
    if not _is_text(value):
        numbers = images.read_array(picture_of(value), name)
    else:
        try:
            numbers = np.array([float(part) for part in value.split(",")])
        except ValueError:
            raise BadInput(name, repr(value[:80]), "give numbers with commas between them, or a .npy file") from None
    if numbers.size != math.prod(shape) or not np.issubdtype(numbers.dtype, np.number):
        seen = f"{numbers.dtype} of shape {numbers.shape}"
        raise BadInput(name, seen, f"it takes {' x '.join(map(str, shape))} numbers")
    with np.errstate(over="ignore"):
        found = numbers.astype(np.float32).reshape(1, *shape)
    if not np.isfinite(found).all():
        raise BadInput(name, "some numbers are not finite, or too large for float32", "correct them")
    return found


def grey_of(value: Condition, modality: Modality) -> np.ndarray:
    """A drawing -> [size, size] float32 from 0, black, to 1, white."""
    return read_drawing(picture_of(value), modality.size, modality.name)


def draw_grey(value: Condition, modality: Modality) -> np.ndarray:
    return np.repeat((255 * grey_of(value, modality)).round().astype(np.uint8)[..., None], 3, axis=2)


def read_nothing(value: Condition | None, modality: Modality, bundle: Bundle) -> np.ndarray:
    """[1, 1, 1] of zeros, in place of a condition."""
    if value is not None:
        raise BadInput(modality.name, "it takes no condition", "leave it out: it always takes part (without= says not)")
    return np.zeros((1, *modality.input_shape), np.float32)


def find_nothing(value: str, name: str, folder: Path) -> Condition:
    raise BadInput(name, "it takes no condition", "leave it out: it always takes part")


def find_file(value: str, name: str, folder: Path) -> Path:
    images.check_given(value, name)
    path = Path(value) if is_address(value) else folder / value
    images.check_plain_file(path, name)
    return path


def find_numbers(value: str, name: str, folder: Path) -> Condition:
    return find_file(value, name, folder) if value.endswith(".npy") else value


def file_name_or_text(value: Condition) -> str:
    return str(value) if _is_text(value) else name_of(value)


@dataclass(frozen=True)
class Kind:
    read: Reader
    show: Callable[[Condition], str]  # as it stands in a picture's parameters
    # Of a text, by its name: a Path if it names a file, from this folder on.
    find: Callable[[str, str, Path], Condition]
    draw: Callable[[Condition, Modality], np.ndarray] | None = None  # [S, S, 3] uint8, to lay over an image
    trace: Callable[[Condition], traces.Trace] = lambda value: {}  # of what its words do not say whole
    whole: Callable[[Condition, Modality], np.ndarray | None] = lambda value, modality: None  # as an array, of such
    how: Callable[[Condition], str] = lambda value: ""  # it was read, where that had to be found out
    stays: bool = False  # what a photo shows of it is wanted of the edited one too, unless told otherwise


KINDS = {
    "labels": Kind(read_label_map, name_of, find_file, draw_labels, trace_of_labels, labels_of, how_it_was_read),
    "words": Kind(read_words, str.__str__, lambda value, name, folder: check_text(value, name), stays=True),
    "numbers": Kind(read_numbers, file_name_or_text, find_numbers, trace=trace_of_numbers, whole=numbers_of),
    "picture": Kind(lambda *of: grey_of(*of[:2])[None, None], name_of, find_file, draw_grey, trace_of_numbers, grey_of),
    "nothing": Kind(read_nothing, str, find_nothing),
}


def in_words(modalities: Collection[Modality], given: Mapping[str, Condition | None]) -> dict[str, Any]:
    """What was asked for, as parameters tell it, and how it was read."""
    conditions = _of(modalities, given)
    shown = {modality.name: KINDS[modality.kind].show(value) for modality, value in conditions.items()}
    told = {"conditions": shown, "prompt": " ".join(shown[m.name] for m in conditions if m.kind == "words")}
    read = {modality.name: how for modality, value in conditions.items() if (how := KINDS[modality.kind].how(value))}
    return told | ({"read_as": read} if read else {})


def inputs_in(
    manifest: Manifest, conditions: Mapping[str, Condition | None], without: Collection[str] = (), role: str = ""
) -> dict[str, traces.Input]:
    """The conditions that were read, by name behind the `role` that they had."""
    found = {}
    for modality in manifest.modalities:
        kind, value = KINDS[modality.kind], conditions.get(modality.name)
        read = value is not None and (modality.name not in without or isinstance(value, LabelMap) and value.was_read)
        if value is not None and read:
            told = kind.trace(value)
            whole = kind.whole(value, modality) if told else None
            found[role + modality.name] = traces.Input(told or {"text": kind.show(value)}, whole)
    return found


def drawing_of(modalities: Collection[Modality], given: Mapping[str, Condition | None]) -> np.ndarray | None:
    """The first condition that can be drawn."""
    draws = ((KINDS[modality.kind].draw, value, modality) for modality, value in _of(modalities, given).items())
    return next((draw(value, modality) for draw, value, modality in draws if draw), None)


def _of(modalities: Collection[Modality], given: Mapping[str, Condition | None]) -> dict[Modality, Condition]:
    return {modality: value for modality in modalities if (value := given.get(modality.name)) is not None}
