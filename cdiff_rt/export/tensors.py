"""Tensors of files that anybody may have written, read one at a time, and safetensors files written as they come.

A file is safetensors or what torch.save makes. The latter is a pickle, which `unpickled.py` reads without running it.
"""

import json
import math
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export import unpickled
from cdiff_rt.export.unpickled import AGAIN, HELP

_HEAD = 4096  # bytes that a file is recognised by

# dtype -> what safetensors calls it
_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}
_CODES |= {"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8"}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class Tensors(Mapping[str, Tensor]):
    """A file's tensors by name. Each is read when it is asked for, and not kept."""

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str], read: Callable[[str], Tensor]
    ) -> None:
        self.shapes, self.dtypes, self._read = shapes, dtypes, read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a safetensors file, in bytes, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def open_tensors(path: Path) -> Tensors:
    """Raises BadArtefact unless the file, whatever its name, holds tensors and nothing that could run."""
    head = _head(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return _open_safetensors(path)
    if head.startswith((unpickled.ZIP, b"\x80")):
        return _open_torch(path)
    raise BadArtefact(_what(path), *_stranger(head))


def metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says about itself: nothing if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def places(path: Path) -> dict[str, Place]:
    """Where the tensors of a safetensors file of ours lie."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    rows = {name: (row["dtype"], row["shape"], *row["data_offsets"]) for name, row in header.items()}
    return {
        name: Place(_DTYPES[code], tuple(shape), 8 + size + begin, end - begin)
        for name, (code, shape, begin, end) in rows.items()
    }


def write_tensors(
    path: Path,
    specs: dict[str, tuple[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: dict[str, str],
) -> None:
    """Writes a safetensors file with one tensor in memory. `specs` is name -> dtype, shape; `tensors` come in its order.

    A failing disk is an OSError. Whatever fails, what was written so far stays.
    """
    header = _header(specs, metadata)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        expected = iter(specs.items())
        for name, tensor in tensors:
            given = name, (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            assert given == next(expected, None), f"{given} is not what comes next"
            file.write(raw(tensor))
            del tensor  # before the next one is made
        assert next(expected, None) is None, "some tensors did not come"


def raw(tensor: Tensor) -> memoryview:
    """Its bytes in a safetensors file."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _header(specs: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """As the library writes it, padded so that the tensors start at a multiple of 8."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape) in specs.items():
        begin, end = end, end + math.prod(shape) * getattr(torch, dtype).itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def _what(path: Path) -> str:
    return f"checkpoint {path.name}"


def _head(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise BadArtefact(_what(path), "it is a folder or a device, not a file", "check the path")
        with path.open("rb") as file:
            return file.read(_HEAD)
    except FileNotFoundError:
        raise BadArtefact(f"checkpoint {path}", "there is no such file", "check the path") from None
    except OSError as error:
        raise BadArtefact(f"checkpoint {path}", f"it cannot be read ({error.strerror})", "check the path") from None


def _stranger(head: bytes) -> tuple[str, str]:
    """What a file looks like that is no checkpoint, and a remedy."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "it is empty", AGAIN
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "it is an HTML page", "download the file itself, not the page about it"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file that it points to", "run `git lfs pull` where it comes from"
    return "it is neither a safetensors file nor a torch checkpoint", HELP


def _open_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        codes = {name: part.get_dtype() for name, part in slices.items()}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise BadArtefact(_what(path), f"it is damaged or cut short ({error})", AGAIN) from None
    if not shapes:
        raise BadArtefact(_what(path), "there are no tensors inside", HELP)
    dtypes = {name: _DTYPES.get(code, code) for name, code in codes.items()}
    return Tensors(shapes, _known(path, dtypes), file.get_tensor)


def _open_torch(path: Path) -> Tensors:
    weights = unpickled.load(path)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    dtypes = {name: str(weight.dtype).removeprefix("torch.") for name, weight in weights.items()}

    def read(name: str) -> Tensor:
        return weights[name].resolve_neg().clone(memory_format=torch.contiguous_format)

    return Tensors(shapes, _known(path, dtypes), read)


def _known(path: Path, dtypes: dict[str, str]) -> dict[str, str]:
    for name, dtype in dtypes.items():
        if dtype not in _CODES:
            raise BadArtefact(_what(path), f"{name!a} has the unknown type {dtype}", f"use {', '.join(_CODES)}")
    return dtypes
