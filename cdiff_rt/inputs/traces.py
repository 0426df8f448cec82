"""What an input was, in few words that tell it from every other: how it was given, and the sha256 of its content."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cdiff_rt.inputs.images import Picture, read_file

Trace = dict[str, Any]


class Input(NamedTuple):
    """What was given, in words, and as it was read."""

    trace: Trace
    array: np.ndarray | None = None


class File(bytes):
    """A file's content, read once, and what the file was called."""

    name: str


def loaded(picture: Picture, what: str) -> Picture:
    """A path's content, so that what is told of it is what was read. Raises BadInput."""
    if not isinstance(picture, str | Path):
        return picture
    return named(read_file(picture, what), Path(picture).name)


def named(content: bytes, name: str) -> File:
    file = File(content)
    file.name = name
    return file


def trace_of(picture: Picture, what: str = "input") -> Trace:
    """A file by its name, anything else by its form; the sha256 of an array is that of its bytes in C order."""
    picture = loaded(picture, what)
    if isinstance(picture, np.ndarray):
        return {"array": f"{picture.dtype} {_by(picture.shape)}", "sha256": _sha256(picture.tobytes())}
    if isinstance(picture, Image.Image):
        return {"image": f"{picture.mode} {_by(picture.size)}", "sha256": _sha256(picture.tobytes())}
    if not isinstance(picture, bytes):  # a reader of its kind says what is wrong with it
        return {}
    name = getattr(picture, "name", None)
    return ({"file": name} if name else {}) | {"bytes": len(picture), "sha256": _sha256(picture)}


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
