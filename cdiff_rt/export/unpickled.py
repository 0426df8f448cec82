"""Weights out of files that torch.save wrote, whoever sent them: which bytes of the file each tensor is.

The pickle inside is read as data (inert.py), so torch's loader has no part in it. A zip file's checksums are compared,
and every tensor must lie in the record that it names.
"""

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.inert import LARGEST, PERSISTENT, Attack, Made, content, pairs_of
from cdiff_rt.export.stored import AGAIN, HELP, File, Stored, plain
from cdiff_rt.notes import log

ZIP = b"PK\3\4"
LARGEST_INDEX = 8 << 20  # bytes of a zip file's central directory: about 100,000 records
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the files that torch wrote before zip files
LOCAL = struct.Struct("<4s22xHH")  # what stands before a record: signature, lengths of its name and of more
# What the mapping of weights is called where a file holds more, in the order in which it is taken.
WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "module", "net", "weights", "params"),
    *("ema", "ema_state_dict", "model_ema", "params_ema"),
)

_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2}
_SIZES |= {"int8": 1, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16}
_KINDS = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"}
_KINDS |= {"ComplexFloat": "complex64", "ComplexDouble": "complex128"}
_KINDS |= {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"}
_PARAMETERS = {f"torch._utils._rebuild_parameter{more}" for more in ("", "_with_state")}
_SUBCLASSES = {f"torch._tensor._rebuild_from_type{more}" for more in ("", "_v2")}
_PLAIN = {f"torch._utils._rebuild_tensor{more}" for more in ("", "_v2", "_v3")}
_TENSORS = ("torch._utils._rebuild", "torch._tensor._rebuild")  # how the names of what makes one begin


@dataclass(frozen=True)
class Records:
    """Where storages lie: by key the offset and the length in bytes."""

    places: dict[str, tuple[int, int]]
    swapped: bool = False


def load(file: File) -> dict[object, Stored]:
    """The file's weights by name, which may be anything. Raises BadArtefact."""
    try:
        value, records = _of_zip(file) if file.read(0, 4) == ZIP else _of_legacy(file)
        weights = _state_dict(file, value)
        return {name: _stored(file, name, made, records) for name, made in weights.items()}
    except (BadArtefact, MemoryError):
        raise
    except Attack as attack:
        seen = f"loaded the usual way it would run {plain(attack)}"
        raise file.bad(seen, "nothing of it was run; get the weights from somebody you trust") from None
    except Exception as error:  # noqa: BLE001 - a broken file can raise anything
        seen = f"it is damaged, cut short or nothing that torch.save writes ({type(error).__name__}: {plain(error)})"
        raise file.bad(seen, f"{AGAIN}, or {HELP}") from None


# --- the two formats -------------------------------------------------------------------------------------------------


def _of_zip(file: File) -> tuple[Any, Records]:
    with zipfile.ZipFile(file.bounded(LARGEST_INDEX)) as archive:
        entries = archive.infolist()
        found = {entry.filename.split("/", 1)[-1]: entry for entry in entries}
        if "constants.pkl" in found:
            raise file.bad("it is a TorchScript program", "save the state_dict() of what torch.jit.load gives")
        if "data.pkl" not in found:
            seen = f"it is a zip file without data.pkl, of {plain(', '.join([*found][:3]))}"
            raise file.bad(seen, HELP)
        odd = any(entry.compress_type or entry.flag_bits & 1 for entry in entries)
        if odd or len(found) < len(entries):
            raise file.bad("it is a zip file with compressed, encrypted or doubled entries", HELP)
        if sum(entry.file_size for entry in entries) > file.size:  # to check them all would take without end
            raise file.bad("its records overlap", AGAIN)
        _check_sums(file, archive)
        if found["data.pkl"].file_size > LARGEST:
            raise ValueError(f"the pickle has {found['data.pkl'].file_size} bytes")
    places = {name: (_begin(file, entry), entry.file_size) for name, entry in found.items()}
    value, _ = content(io.BytesIO(file.read(*places["data.pkl"])))
    swapped = "byteorder" in places and file.read(*places["byteorder"]) == b"big"
    data = {name.removeprefix("data/"): place for name, place in places.items() if name.startswith("data/")}
    return value, Records(data, swapped)


def _check_sums(file: File, archive: zipfile.ZipFile) -> None:
    unknown, name = 0, file.path.name
    for entry in archive.infolist():
        if not entry.CRC and entry.file_size:  # torch.serialization.set_crc32_options(False), and other writers
            unknown += 1
            continue
        try:
            with archive.open(entry) as record:
                while record.read(1 << 20):
                    pass
        except (zipfile.BadZipFile, EOFError):
            raise file.bad(f"it is damaged or cut short ({plain(entry.filename)})", AGAIN) from None
    if unknown:
        log.info(
            "%s: %d records were written without checksums: whether these are damaged cannot be told", name, unknown
        )


def _begin(file: File, entry: zipfile.ZipInfo) -> int:
    signature, *more = LOCAL.unpack(file.read(entry.header_offset, LOCAL.size))
    if signature != ZIP:
        raise ValueError(f"no record begins at {entry.header_offset}")
    return entry.header_offset + LOCAL.size + sum(more)


def _of_legacy(file: File) -> tuple[Any, Records]:
    """Five pickles (a number, a version, the system, the content, the storages' keys), then the storages."""
    head = io.BytesIO(file.read(0, min(file.size, LARGEST)))
    if content(head)[0] != MAGIC:
        raise file.bad("it is a pickle that torch.save did not write", HELP)
    version, system = content(head)[0], content(head)[0]
    if version != VERSION or ("little_endian", False) in pairs_of(system):
        raise ValueError("another version or byte order")
    value, persistent = content(head)
    storages = [it for it in persistent if not isinstance(it, tuple) or it[:1] != ("module",)]  # else source code
    sizes = {key: size for key, (_, size, _) in map(_storage, storages)}
    keys, places, offset = content(head)[0], {}, head.tell()
    for key in (key for key in keys if type(key) is str):  # what is no text might be a tuple too deep to be hashed
        (count,) = struct.unpack("<q", file.read(offset, 8))
        places[key] = offset + 8, count * sizes[key]
        offset += 8 + count * sizes[key]
    if offset > file.size:
        raise ValueError(f"{offset} bytes are named, there are {file.size}")
    return value, Records(places)


# --- the weights among what a file holds -----------------------------------------------------------------------------


def _state_dict(file: File, value: Any) -> dict[Any, Made]:
    """The tensors to keep. Beside a model's, Lightning's files hold the optimizer's."""
    for _ in range(8):
        inner = {key: thing for key, thing in pairs_of(value) if type(key) is str and _holds_weights(thing)}
        known = [key for key in WRAPPERS if key in inner]
        if not known:
            break
        if known[1:]:
            others = ", ".join(map(repr, known[1:]))
            log.info("%s: the weights of %r are read; %s beside it are not", file.path.name, known[0], others)
        value = inner[known[0]]
    entries = [(key, _unwrapped(thing)) for key, thing in pairs_of(value)]
    tensors = [(key, thing) for key, thing in entries if thing]
    if not tensors:
        raise file.bad(f"there are no tensors inside, neither a state_dict nor a mapping, but {_told(value)}", HELP)
    if not all(type(key) is str for key, _ in tensors):  # before they are hashed, which recurses
        raise file.bad("the name of a tensor is no short plain text", AGAIN)
    return dict(tensors)


def _holds_weights(thing: Any) -> bool:
    """Whether it is a mapping of tensors, or of such a mapping."""
    wrapped = (isinstance(inner, Made) and type(key) is str and key in WRAPPERS for key, inner in pairs_of(thing))
    return any(_unwrapped(inner) for _, inner in pairs_of(thing)) or any(wrapped)


def _told(value: Any) -> str:
    """What there is instead."""
    keys = [plain(key) for key, _ in pairs_of(value) if type(key) is str]
    if keys:
        return f"entries {', '.join(keys[:5])}" + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    if isinstance(value, Made) and value.name != "builtins.dict":
        return f"an object of the class {plain(value.name)}; of a module, save its state_dict()"
    return f"a {'dict' if isinstance(value, Made) else type(value).__name__} without any"


def _unwrapped(thing: Any) -> Made | None:
    """The call that makes a tensor, without those around it; none if it makes something else."""
    while isinstance(thing, Made) and thing.name in _PARAMETERS | _SUBCLASSES:
        first = thing.args[0]
        thing = first if thing.name in _PARAMETERS else Made(first.name, thing.args[2])
    return thing if isinstance(thing, Made) and thing.name.startswith(_TENSORS) else None


def _stored(file: File, name: object, made: Made, records: Records) -> Stored:
    """Raises BadArtefact unless it lies within its storage, and the storage is a whole record."""
    if made.name not in _PLAIN:
        raise file.bad(f"{plain(name)} is no plain tensor of a CPU ({plain(made.name)})", HELP)
    reference, start, shape, stride, *more = made.args
    key, (kind, _, stated) = _storage(reference.args[0] if reference.name == PERSISTENT else None)
    if made.name.endswith("_v3"):
        kind = more[2].name.removeprefix("torch.")
    file.check_type(name, kind)
    if key not in records.places:
        raise file.bad(f"the data of {plain(name)} are missing", AGAIN)
    size, (offset, length) = _SIZES[kind], records.places[key]
    if stated != length:
        raise file.bad(f"the data of {plain(name)} have another length than it says, {stated} bytes", AGAIN)
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in (start, *shape, *stride)) or len(shape) != len(stride):
        raise ValueError("sizes, strides or an offset that are none")
    negated = bool(more) and any(bit == "neg" for bit, _ in pairs_of(more[-1]))
    stored = Stored(kind, shape, offset, length, stride, start, negated, records.swapped)
    if 0 not in shape and max(start + stored.extent, math.prod(shape)) * size > length:
        seen = f"{plain(name)} has shape {[*shape]} and stride {[*stride]}, of fewer stored elements"
        raise file.bad(seen, "save it again with contiguous tensors")
    return stored


def _storage(persistent: Any) -> tuple[str, tuple[str, int, int]]:
    """A storage's key; its type, the bytes of an element, and of all."""
    word, kind, key, _, count, *view = persistent
    if type(word) is not str or word != "storage" or type(key) is not str or type(count) is not int:
        raise ValueError("a reference to no storage")
    if any(view):
        raise ValueError("a storage that is a part of another")
    name = kind.name.split(".")[-1].removesuffix("Storage")
    dtype = _KINDS.get(name, name)
    size = _SIZES.get(dtype, 1)
    return key, (dtype, size, count * size)
