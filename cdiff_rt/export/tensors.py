"""Tensors of files that anybody may have written, read one at a time, and safetensors files written as they come.

A file is safetensors or what torch.save makes. The latter is a pickle, which `unpickled.py` reads without running it.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export import unpickled
from cdiff_rt.export.stored import AGAIN, CODES, DTYPES, HELP, LONGEST, File, Stored, plain
from cdiff_rt.notes import log

_HEAD = 4096  # bytes that a file is recognised by
LARGEST_HEADER = 16 << 20  # bytes, of a safetensors file


class Tensors(Mapping[str, Tensor]):
    """A file's tensors by name. Each is read when it is asked for, and not kept."""

    def __init__(self, file: File, found: dict[str, Stored], metadata: dict[str, str]) -> None:
        self.metadata, self._file, self._found = metadata, file, found
        self.shapes = {name: stored.shape for name, stored in found.items()}
        self.dtypes = {name: stored.dtype for name, stored in found.items()}

    @property
    def sha256(self) -> str:
        return self._file.sha256

    def __getitem__(self, name: str) -> Tensor:
        return self._found[name].read(self._file)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def open_tensors(path: Path, sha256: str = "") -> Tensors:
    """Raises BadArtefact unless the file, whatever its name, holds tensors and nothing that could run.

    So it does of a file that has not the hash that is asked for.
    """
    file, metadata = File(path), dict[str, str]()
    if sha256 and sha256.lower() != file.sha256:
        raise file.bad(f"its sha256 is {file.sha256}, not {sha256.lower()}", AGAIN)
    head = bytes(file.read(0, min(file.size, _HEAD)))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        found, metadata = _of_safetensors(file)
    elif head.startswith((unpickled.ZIP, b"\x80")):
        found = unpickled.load(file)
    else:
        raise file.bad(*_stranger(head))
    for name, stored in found.items():
        if type(name) is not str or not name.isprintable() or len(name) > LONGEST:
            raise file.bad(f"{plain(name)!r}, the name of a tensor, is no short plain text", AGAIN)
        file.check_type(name, stored.dtype)
    return Tensors(file, found, metadata)


def tell(path: Path, tensors: Tensors) -> None:
    """Which file is exported. Safetensors and old files of torch have no checksums, and most damage does not show."""
    log.info("%s: sha256 %s", path.name, tensors.sha256)


def metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says about itself: nothing if it is none."""
    try:
        return _of_safetensors(File(path))[1]
    except BadArtefact:
        return {}


def places(path: Path) -> dict[str, Stored]:
    """Where the tensors of a safetensors file lie. Raises BadArtefact."""
    return _of_safetensors(File(path))[0]


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
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


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


def _of_safetensors(file: File) -> tuple[dict[str, Stored], dict[str, str]]:
    """Its tensors and metadata. The library checks the header, and that tensors lie one behind the other up to the end."""
    from safetensors import SafetensorError, safe_open

    try:
        (size,) = struct.unpack("<Q", file.read(0, 8))
        if size > LARGEST_HEADER:
            raise ValueError(f"its header has {size} bytes")
        with safe_open(file.path, "pt"):
            pass
        header = json.loads(file.read(8, size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise file.bad(f"it is damaged or cut short ({plain(error)})", AGAIN) from None
    metadata = header.pop("__metadata__", {})
    if not header:
        raise file.bad("there are no tensors inside", HELP)
    rows = {name: (row["dtype"], row["shape"], *row["data_offsets"]) for name, row in header.items()}
    found = {
        name: Stored(DTYPES.get(code, code), tuple(shape), 8 + size + begin, end - begin)
        for name, (code, shape, begin, end) in rows.items()
    }
    return found, metadata
