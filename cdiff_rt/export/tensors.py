"""Tensors of files that anybody may have written, read one at a time, and safetensors files written as they come.

A file is safetensors or what torch.save makes. The latter is a pickle: `unpickled.py`, in a process of its own, says
where its tensors lie, and nothing here or there runs what it says.
"""

import json
import math
import signal
import stat
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cdiff_rt.errors import BadArtefact

_CHILD = Path(__file__).with_name("unpickled.py")
_SECONDS = 120.0  # that the child may take
_LARGEST_TABLE = 16 << 20  # bytes that the child may print
_HEAD = 4096  # bytes that a file is recognised by

# dtype -> what safetensors calls it
_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}
_CODES |= {"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8"}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}

_HELP = "give a safetensors file, or one that torch.save wrote of a state dict"
_AGAIN = "download it again"
# kind of the child's problem -> what is seen, where {} is its detail; remedy
_PROBLEMS = {
    "code": ("loaded the usual way it would run {}", "nothing of it was run; get the weights from somebody you trust"),
    "type": (
        "it holds an object of the unknown type {}",
        "nothing of it was run; ask for a file of its state dict alone",
    ),
    "damaged": ("it is damaged or cut short ({})", _AGAIN),
    "bounds": ("{}", "save it again with contiguous tensors"),
    "memory": ("the table of its tensors takes {}", _HELP),
    "format": ("{}", _HELP),
    "none": ("there are no tensors inside, {}", _HELP),
}


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
class _Row:
    """A tensor in a torch checkpoint. `start`, `bytes` and `crc32` are its storage's, `offset` counts elements."""

    dtype: str
    shape: list[int]
    stride: list[int]
    offset: int
    start: int
    bytes: int
    crc32: int | None


def open_tensors(path: Path) -> Tensors:
    """Raises BadArtefact unless the file, whatever its name, holds tensors and nothing that could run."""
    head = _head(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return _open_safetensors(path)
    if head.startswith((b"PK\3\4", b"\x80")):
        return _open_torch(path)
    raise BadArtefact(_what(path), *_stranger(head))


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
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del tensor  # before the next one is made
        assert next(expected, None) is None, "some tensors did not come"


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
        return "it is empty", _AGAIN
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "it is an HTML page", "download the file itself, not the page about it"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file that it points to", "run `git lfs pull` where it comes from"
    return "it is neither a safetensors file nor a torch checkpoint", _HELP


def _open_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        codes = {name: part.get_dtype() for name, part in slices.items()}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise BadArtefact(_what(path), f"it is damaged or cut short ({error})", _AGAIN) from None
    if not shapes:
        raise BadArtefact(_what(path), "there are no tensors inside", _HELP)
    for name, code in codes.items():
        if code not in _DTYPES:
            raise BadArtefact(_what(path), f"{name!a} has the unknown type {code}", f"use {', '.join(_DTYPES)}")
    return Tensors(shapes, {name: _DTYPES[code] for name, code in codes.items()}, file.get_tensor)


def _open_torch(path: Path) -> Tensors:
    rows = {name: _Row(**row) for name, row in _table(path).items()}
    shapes = {name: tuple(row.shape) for name, row in rows.items()}
    dtypes = {name: row.dtype for name, row in rows.items()}
    return Tensors(shapes, dtypes, partial(_read_torch, path, rows))


def _read_torch(path: Path, rows: dict[str, _Row], name: str) -> Tensor:
    row, dtype = rows[name], getattr(torch, rows[name].dtype)
    data = _storage(path, name, row)
    if not data:
        return torch.empty(row.shape, dtype=dtype)
    view = torch.frombuffer(data, dtype=dtype).as_strided(row.shape, row.stride, row.offset)
    return view.clone(memory_format=torch.contiguous_format)  # a view would keep the whole storage


def _storage(path: Path, name: str, row: _Row) -> bytearray:
    data = bytearray(row.bytes)
    try:
        with path.open("rb") as file:
            file.seek(row.start)
            whole = file.readinto(data) == len(data)
    except OSError as error:
        raise BadArtefact(_what(path), f"it cannot be read ({error.strerror})", "check the path") from None
    if not whole or (row.crc32 is not None and zlib.crc32(data) != row.crc32):
        raise BadArtefact(_what(path), f"the data of {name} are damaged", _AGAIN)
    return data


def _table(path: Path) -> dict[str, dict]:
    printed, end = _run_child(path)
    try:
        answer = json.loads(printed)
    except ValueError:
        seen = f"the process that looks for its tensors ended {end}"
        raise BadArtefact(_what(path), seen, f"it is damaged or made to do harm: {_AGAIN}") from None
    if "problem" in answer:
        seen, remedy = _PROBLEMS[answer["problem"]]
        raise BadArtefact(_what(path), seen.format(answer["detail"]), remedy)
    return answer["tensors"]


def _run_child(path: Path) -> tuple[bytes, str]:
    """What it printed, or nothing if that was too much; and how it ended, in words."""
    command = [sys.executable, "-I", "-S", str(_CHILD), str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout
        timer = threading.Timer(_SECONDS, child.kill)
        timer.start()
        try:
            printed = child.stdout.read(_LARGEST_TABLE + 1)
            if len(printed) > _LARGEST_TABLE:
                return b"", "with a table that is too long"
            code = child.wait()
            late = not timer.is_alive()
        finally:
            timer.cancel()
            child.kill()
    if late:
        return b"", f"after {_SECONDS:g} seconds without an answer"
    return printed, f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
