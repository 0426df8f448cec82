"""How a user's value becomes what a condition network takes: one row of `KINDS` for each kind of modality."""

import logging
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdiff_rt import images
from cdiff_rt.errors import BadInput
from cdiff_rt.manifest import Bundle, Modality
from cdiff_rt.wordpiece import WordPiece

LONGEST_TEXT = 4096  # characters
log = logging.getLogger("cdiff_rt")

Condition = str | Path | np.ndarray
Reader = Callable[[Condition, Modality, Bundle], np.ndarray]


def read_label_map(value: Condition, modality: Modality, bundle: Bundle) -> np.ndarray:
    """A mask's path or [H, W] labels -> one-hot [1, classes, size * size] float32."""
    if isinstance(value, np.ndarray):
        labels, name, how = images.check_labels(value, modality.classes), "array", ""
    elif isinstance(value, str | Path):
        path = Path(value)
        (labels, how), name = images.read_labels(path, modality.classes), path.name
    else:
        raise BadInput(modality.name, f"a {type(value).__name__}", "give a PNG file's path or an array of labels")
    height, width = labels.shape
    square = images.centre_square(labels)
    if height != width:
        log.warning("%s %s: %dx%d is not square, its centre is used", modality.name, name, width, height)
    small = images.nearest(square, modality.size)
    found = np.unique(small)
    if not isinstance(value, np.ndarray):  # a file's form is guessed, an array's is not
        log.info("%s %s: %dx%d, %s, %d classes", modality.name, name, width, height, how, len(found))
    if len(found) == 1:
        log.warning("%s %s: every pixel has label %d", modality.name, name, found[0])
    one_hot = np.eye(modality.classes, dtype=np.float32)[small.reshape(-1)]  # [size * size, classes]
    return one_hot.T[None]


def read_words(value: Condition, modality: Modality, bundle: Bundle) -> np.ndarray:
    """A sentence -> word-piece ids [1, tokens] int64."""
    if not isinstance(value, str):
        raise BadInput(modality.name, f"a {type(value).__name__}", "give a sentence")
    _check_text(value, modality.name)
    tokens = WordPiece.from_file(bundle.path(modality.vocabulary)).encode(value, modality.tokens)
    unknown = [repr(word) for word in tokens.unknown if any(map(str.isalnum, word))]
    if unknown:
        words = ", ".join(unknown[:8])
        path = bundle.path(modality.vocabulary)
        log.warning("%s: the model never saw %s; the words it knows are in %s", modality.name, words, path)
    if tokens.dropped:
        log.warning("%s: too long, the last %d word pieces are left out", modality.name, tokens.dropped)
    return np.array([tokens.ids], dtype=np.int64)


def _check_text(text: str, name: str) -> None:
    if not text.strip():
        raise BadInput(name, "it is empty", "describe the face, or leave the option out")
    if len(text) > LONGEST_TEXT:
        raise BadInput(name, f"{len(text)} characters", f"use at most {LONGEST_TEXT}")
    for place, c in enumerate(text):
        if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r":
            raise BadInput(name, f"control character U+{ord(c):04X} at position {place}", "remove it")


def file_name(value: Condition) -> str:
    """How a mask stands in a picture's parameters: without the folders it lay in."""
    return f"array {'x'.join(map(str, value.shape))}" if isinstance(value, np.ndarray) else Path(value).name


@dataclass(frozen=True)
class Kind:
    read: Reader
    show: Callable[[Condition], str]  # as it stands in a picture's parameters


KINDS = {"labels": Kind(read_label_map, file_name), "words": Kind(read_words, str)}
