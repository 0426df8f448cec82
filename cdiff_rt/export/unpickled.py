"""Says where the tensors of a torch checkpoint lie, and runs nothing of it. A script, for a process of its own:

    python -I -S unpickled.py CHECKPOINT

A pickle is a program, and torch's loader runs it. Here the few functions that make tensors are our own and return
records, whatever else a checkpoint of Lightning names becomes an inert placeholder, and any other name stops it.
Prints {"tensors": {name: row}} or {"problem": kind, "detail": text}. Standard library only.
"""

import io
import json
import math
import os
import pickle
import resource
import struct
import sys
import zipfile
from typing import Any, BinaryIO, NamedTuple, Self

# bytes or seconds
LIMITS = {resource.RLIMIT_AS: 1 << 30, resource.RLIMIT_CPU: 60, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
LARGEST_PICKLE = 64 << 20  # bytes
LARGEST_NAME = LARGEST_DETAIL = 300
LARGEST_COUNT = 1 << 48  # elements of a tensor, axes of length 0 counted as 1
MOST_AXES = 32

LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
ZIP_HEADER = b"PK\3\4"

# dtype -> its class of storage in torch, bytes of an element
DTYPES = {"float64": ("Double", 8), "float32": ("Float", 4), "float16": ("Half", 2), "bfloat16": ("BFloat16", 2)}
DTYPES |= {"int64": ("Long", 8), "int32": ("Int", 4), "int16": ("Short", 2), "int8": ("Char", 1), "uint8": ("Byte", 1)}
DTYPES |= {"bool": ("Bool", 1)}
ITEM_BYTES = {dtype: size for dtype, (_, size) in DTYPES.items()}
STORAGES = {f"torch.{name}Storage": dtype for dtype, (name, _) in DTYPES.items()}

# What checkpoints of Lightning are known to name beside tensors: anything of these packages, and these names.
INERT_PACKAGES = ("lightning", "lightning_fabric", "ldm", "omegaconf", "pytorch_lightning", "taming", "torch.optim")
_PLAIN = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, range, set, slice, str, tuple)
INERT = {f"{module}.{kind.__name__}" for module in ("builtins", "__builtin__") for kind in _PLAIN}
INERT |= {f"torch.{name}" for name in (*ITEM_BYTES, "Size", "device")}
INERT |= {f"typing.{name}" for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")}
INERT |= {f"{module}.PosixPath" for module in ("pathlib", "pathlib._local")}
INERT |= {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")}
INERT |= {f"numpy.{name}" for name in ("dtype", "ndarray", "bool_", "float32", "float64", "int32", "int64")}
INERT |= {"_codecs.encode", "copyreg._reconstructor", "copy_reg._reconstructor", "_operator.getitem"}
INERT |= {"argparse.Namespace", "collections.Counter", "collections.defaultdict", "collections.deque"}
INERT |= {"datetime.datetime", "datetime.timedelta"}


class Problem(Exception):
    """Why the file is refused: kind and detail."""


def _ignore(*_: object) -> None:
    """`__setstate__` of all that a pickle can name: without it, its BUILD would set attributes, even of the class."""


class Inert:
    """Stands for anything that isn't a tensor. It can be named, called and filled, and keeps nothing."""

    __setstate__ = __setitem__ = append = extend = add = staticmethod(_ignore)

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def __call__(self, *_: object, **__: object) -> Self:
        return self


class Ordered(dict):
    """Stands for collections.OrderedDict."""

    __slots__ = ()
    __setstate__ = staticmethod(_ignore)


class Storage(NamedTuple):
    """Made by `Reader.persistent_load` only, so checked."""

    dtype: str
    key: str
    elements: int


class Stored(NamedTuple):
    """Stands for torch._utils._rebuild_tensor_v2. Its fields are whatever the pickle says."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    requires_grad: Any = False
    hooks: Any = None
    metadata: Any = None

    def __setstate__(self, _: object) -> None:
        """Ignores it, too."""


class Parameter:
    """Stands for torch._utils._rebuild_parameter: calling it gives the tensor."""

    __setstate__ = staticmethod(_ignore)

    def __new__(cls, tensor: Any, *_: object) -> Any:
        return tensor


class Place(NamedTuple):
    """Where the data of a storage lie in the file."""

    start: int
    bytes: int
    crc32: int | None


OURS: dict[str, Any] = STORAGES | {
    "torch.storage.UntypedStorage": "uint8",
    "collections.OrderedDict": Ordered,
    "torch._utils._rebuild_tensor_v2": Stored,
    "torch._utils._rebuild_parameter": Parameter,
}


class Reader(pickle.Unpickler):
    """Imports nothing and calls nothing but the classes above."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        whole = f"{module}.{name}"
        if whole in OURS:
            return OURS[whole]
        packaged = any(f"{module}.".startswith(f"{package}.") for package in INERT_PACKAGES)
        if whole in INERT or (packaged and name.isidentifier()):
            return Inert
        known = module.split(".")[0] in {"__builtin__", *sys.stdlib_module_names}
        raise Problem("code" if known else "type", whole)

    def persistent_load(self, pid: Any) -> Storage:
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise Problem("format", "it refers to something that is no storage")
        dtype, key, _, elements = pid[1:5]
        if type(dtype) is not str or dtype not in ITEM_BYTES or type(key) is not str or not _is_count(elements):
            raise Problem("damaged", "a storage is described wrongly")
        storage = Storage(dtype, key, elements)
        if self.storages.setdefault(key, storage) != storage:
            raise Problem("damaged", f"storage {key} is described twice, differently")
        return storage


def read_table(file: BinaryIO) -> dict[str, dict[str, Any]]:
    zipped = file.read(4) == ZIP_HEADER
    file.seek(0)
    content, places = _read_zip(file) if zipped else _read_legacy(file)
    return {name: _row(name, tensor, places) for name, tensor in _state_dict(content).items()}


def _read_zip(file: BinaryIO) -> tuple[object, dict[str, Place]]:
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise Problem("damaged", "two entries have the same name")
    if any(entry.compress_type or entry.flag_bits & 1 for entry in entries.values()):
        raise Problem("format", "it is a zip file with compressed or encrypted entries")
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Problem("format", f"it is a zip file with {len(roots)} data.pkl")
    if _content(archive, entries.get(f"{roots[0]}byteorder"), 16) not in (b"", b"little"):
        raise Problem("format", "its byte order is not little-endian")
    pickled = io.BytesIO(_content(archive, entries[f"{roots[0]}data.pkl"], LARGEST_PICKLE))
    content = Reader(io.BufferedReader(pickled)).load()
    folder = f"{roots[0]}data/"
    stored = {name.removeprefix(folder): entry for name, entry in entries.items() if name.startswith(folder)}
    return content, {key: _place(file, entry) for key, entry in stored.items()}


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None, limit: int) -> bytes:
    if entry is None:
        return b""
    if entry.file_size > limit:
        raise Problem("format", f"{entry.filename} has {entry.file_size} bytes, at most {limit} are read")
    return archive.read(entry)


def _place(file: BinaryIO, entry: zipfile.ZipInfo) -> Place:
    file.seek(entry.header_offset)
    header = file.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:])
    name = file.read(name_length).decode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    start = entry.header_offset + len(header) + name_length + extra_length
    if not header.startswith(ZIP_HEADER) or name != entry.filename or entry.compress_size != entry.file_size:
        raise Problem("damaged", f"{entry.filename} is described twice, differently")
    if start + entry.file_size > file.seek(0, os.SEEK_END):
        raise Problem("damaged", f"{entry.filename} reaches beyond the end")
    return Place(start, entry.file_size, entry.CRC)


def _read_legacy(file: BinaryIO) -> tuple[object, dict[str, Place]]:
    """Five pickles in a row, then each storage's data with their number before them."""
    if Reader(file).load() != LEGACY_MAGIC:
        raise Problem("format", "it is a pickle that torch.save did not write")
    version, system = Reader(file).load(), Reader(file).load()
    if version != LEGACY_VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Problem("format", "its version or byte order is unknown")
    reader = Reader(file)
    content, keys = reader.load(), Reader(file).load()
    places: dict[str, Place] = {}
    start, end = file.tell(), file.seek(0, os.SEEK_END)
    for key in keys:
        if type(key) is not str or key not in reader.storages or key in places:
            raise Problem("damaged", "its list of storages is wrong")
        storage = reader.storages[key]
        place = Place(start + 8, storage.elements * ITEM_BYTES[storage.dtype], None)
        file.seek(start)
        start = place.start + place.bytes
        if file.read(8) != storage.elements.to_bytes(8, "little") or start > end:
            raise Problem("damaged", f"the data of storage {key} are not all there")
        places[key] = place
    return content, places


def _state_dict(content: object) -> dict[str, Stored]:
    """The tensors to keep. Beside a model's, Lightning's files hold the optimizer's."""
    tensors: dict = {}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        tensors = {name: value for name, value in content["state_dict"].items() if isinstance(value, Stored)}
    elif isinstance(content, dict) and all(isinstance(value, Stored) for value in content.values()):
        tensors = content
    if not tensors:
        raise Problem("none", "neither a state_dict with tensors nor a mapping from names to tensors")
    if not all(type(name) is str and name.isprintable() and len(name) <= LARGEST_NAME for name in tensors):
        raise Problem("damaged", "the name of a tensor is no short plain text")
    return tensors


def _row(name: str, tensor: Stored, places: dict[str, Place]) -> dict[str, Any]:
    if not _is_sound(tensor):
        raise Problem("damaged", f"{name} is described wrongly")
    storage, place = tensor.storage, places.get(tensor.storage.key)
    item = ITEM_BYTES[storage.dtype]
    if place is None or place.bytes != storage.elements * item:
        raise Problem("damaged", f"the data of {name} are not there or have another length")
    count = math.prod(tensor.size)
    last = sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True)) if count else -1
    if count * item > place.bytes or tensor.offset + last >= storage.elements:
        seen = f"{name} has shape {list(tensor.size)} and stride {list(tensor.stride)} from element {tensor.offset}"
        raise Problem("bounds", f"{seen}, but its storage only {storage.elements} elements")
    table = {"dtype": storage.dtype, "shape": tensor.size, "stride": tensor.stride, "offset": tensor.offset}
    return table | place._asdict()


def _is_sound(tensor: Stored) -> bool:
    if type(tensor.storage) is not Storage or type(tensor.size) is not tuple or type(tensor.stride) is not tuple:
        return False
    axes = len(tensor.size)
    if axes != len(tensor.stride) or axes > MOST_AXES or tensor.metadata:
        return False
    numbers = all(_is_count(number) for number in (tensor.offset, *tensor.size, *tensor.stride))
    return numbers and math.prod(n or 1 for n in tensor.size) <= LARGEST_COUNT


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < 1 << 63


def _refuse(event: str, _: tuple) -> None:
    """An audit hook. When it comes, all is imported and opened: whatever happens then is the file's doing."""
    os.write(1, json.dumps({"problem": "code", "detail": event}).encode())
    os._exit(1)


def _answer(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            "".encode("cp437")  # zipfile may want this, and its import would be refused
            sys.addaudithook(_refuse)
            return {"tensors": read_table(file)}
    except Problem as problem:
        kind, detail = problem.args
    except MemoryError:
        kind, detail = "memory", f"more than {LIMITS[resource.RLIMIT_AS] >> 20} MiB"
    except Exception as error:  # noqa: BLE001 - a broken pickle can raise anything
        kind, detail = "damaged", f"{type(error).__name__}: {error}"
    return {"problem": kind, "detail": ascii(detail)[1:-1][:LARGEST_DETAIL]}


if __name__ == "__main__":
    for kind, most in LIMITS.items():
        lower = min(most, resource.getrlimit(kind)[1] % (1 << 64))  # -1 is no limit
        resource.setrlimit(kind, (lower, lower))
    print(json.dumps(_answer(sys.argv[1])))
