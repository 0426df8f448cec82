"""A file of weights, opened once: what is hashed is what is read, and a tensor is read when it is asked for.

Nothing of it is mapped into memory, because whoever cut the file meanwhile would end the process.
"""

import hashlib
import math
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from cdiff_rt.errors import BadArtefact, without_file

AGAIN = "download it again"
HELP = "give a safetensors file, or one that torch.save wrote of a state dict"
LONGEST = 300  # letters of a name, or of what is shown of an error

# dtype -> what safetensors calls it
CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}
CODES |= {"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8"}
DTYPES = {code: dtype for dtype, code in CODES.items()}


def plain(text: object) -> str:
    """What a file brings into a message: in one line, not long, and nothing that a terminal would obey."""
    return ascii(str(text))[1:-1][:LONGEST]


class File:
    """A regular file, open for reading. Raises BadArtefact, also if somebody writes to it meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
                raise self.bad("it is a folder or a device, not a file", "check the path")
            self._file = path.open("rb")
        except FileNotFoundError:
            raise BadArtefact(f"checkpoint {path}", *without_file(path)) from None
        except OSError as error:
            seen = f"it cannot be read ({error.strerror})"
            raise BadArtefact(f"checkpoint {path}", seen, "check the path") from None
        self._stamp = self._now()
        self.size = self._stamp[0]

    def _now(self) -> tuple[int, int]:
        now = os.fstat(self._file.fileno())
        return now.st_size, now.st_mtime_ns

    def bad(self, seen: str, remedy: str) -> BadArtefact:
        return BadArtefact(f"checkpoint {self.path.name}", seen, remedy)

    def check_type(self, name: object, dtype: str) -> None:
        if dtype not in CODES:
            raise self.bad(f"{plain(name)} has the unknown type {plain(dtype)}", f"use {', '.join(CODES)}")

    @cached_property
    def sha256(self) -> str:
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        self._check_unchanged()
        return digest

    def read(self, offset: int, length: int) -> bytearray:
        """All of these bytes."""
        found = bytearray(max(0, min(length, self.size - offset)))
        self._file.seek(offset)
        count = self._file.readinto(found)
        self._check_unchanged()
        if count < length:
            raise self.bad(f"it is cut short: {length} bytes from {offset} on reach beyond its end", AGAIN)
        return found

    def bounded(self, most: int) -> BinaryIO:
        """The same file for a library: one reading of more than `most` bytes is a ValueError."""
        return cast(BinaryIO, _Bounded(self._file, most))

    def _check_unchanged(self) -> None:
        if self._now() != self._stamp:
            raise self.bad("somebody wrote to it while it was read", "export when it is whole")


class _Bounded:
    def __init__(self, file: BinaryIO, most: int) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._read, self._most = file.read, most

    def read(self, count: int = -1) -> bytes:
        found = self._read(min(count, self._most + 1) if count >= 0 else self._most + 1)
        if len(found) > self._most:
            raise ValueError(f"more than {self._most} bytes at once")
        return found


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: of what type it is, and where the `length` bytes lie that it views."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    stride: tuple[int, ...] | None = None  # none: contiguous
    start: int = 0  # elements before its first
    negated: bool = False
    swapped: bool = False  # numbers of a big-endian machine

    def read(self, file: File) -> Tensor:
        """A contiguous tensor of its own."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        kind = torch.uint8 if self.dtype == "bool" else getattr(torch, self.dtype)
        data = file.read(self.offset + self.start * kind.itemsize, self.extent * kind.itemsize)
        if self.swapped:
            data = bytearray(torch.frombuffer(data, dtype=torch.uint8).view(-1, kind.itemsize).flip(1).numpy().data)
        flat = torch.frombuffer(data, dtype=kind)
        weight = flat.as_strided(self.shape, self.stride).contiguous() if self.stride else flat.reshape(self.shape)
        if self.dtype == "bool":
            return weight.ne(0)
        return -weight if self.negated else weight

    @property
    def extent(self) -> int:
        """Elements from the first to the last."""
        if self.stride is None:
            return math.prod(self.shape)
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
