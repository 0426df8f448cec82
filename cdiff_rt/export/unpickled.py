"""Weights out of files that torch.save wrote, whoever sent them: which bytes of the file each tensor is.

torch's safe loader (safe_loader.py) says of each tensor which storage it views. A zip file's checksums are compared, and
every storage must be a whole record.
"""

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.safe_loader import LARGEST, Attack, Inert, NoPlainTensor, content
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


@dataclass(frozen=True)
class Saved:
    """What a file holds, its class, and where storages lie: by key the offset and the length in bytes."""

    value: Any
    names: list[str]
    places: dict[str, tuple[int, int]]
    swapped: bool = False


def load(file: File) -> dict[Any, Stored]:
    """The file's weights by name, which may be anything. Raises BadArtefact."""
    try:
        saved = _of_zip(file) if file.read(0, 4) == ZIP else _of_legacy(file)
        return {name: _stored(file, name, weight, saved) for name, weight in _state_dict(file, saved).items()}
    except (BadArtefact, MemoryError):
        raise
    except Attack as attack:
        seen = f"loaded the usual way it would run {plain(attack)}"
        raise file.bad(seen, "nothing of it was run; get the weights from somebody you trust") from None
    except Exception as error:  # noqa: BLE001 - a broken file can raise anything
        seen = f"it is damaged, cut short or nothing that torch.save writes ({type(error).__name__}: {plain(error)})"
        raise file.bad(seen, f"{AGAIN}, or {HELP}") from None


# --- the two formats -------------------------------------------------------------------------------------------------


def _of_zip(file: File) -> Saved:
    with zipfile.ZipFile(file.bounded(LARGEST_INDEX)) as archive:
        entries = archive.infolist()
        found = {entry.filename.split("/", 1)[-1]: entry for entry in entries}
        if "constants.pkl" in found:
            raise file.bad("it is a TorchScript program", "save the state_dict() of what torch.jit.load gives")
        if "data.pkl" not in found:
            raise file.bad(f"it is a zip file without data.pkl, of {plain(', '.join([*found][:3]))}", HELP)
        if any(e.compress_type or e.flag_bits & 1 for e in entries) or len(found) < len(entries):
            raise file.bad("it is a zip file with compressed, encrypted or doubled entries", HELP)
        if sum(entry.file_size for entry in entries) > file.size:  # to check them all would take without end
            raise file.bad("its records overlap", AGAIN)
        _check_sums(file, archive)
        if found["data.pkl"].file_size > LARGEST:
            raise ValueError(f"the pickle has {found['data.pkl'].file_size} bytes")
    places = {name: (_begin(file, entry), entry.file_size) for name, entry in found.items()}
    value, names, _ = content(io.BytesIO(file.read(*places["data.pkl"])))
    data = {name.removeprefix("data/"): place for name, place in places.items() if name.startswith("data/")}
    return Saved(value, names, data, "byteorder" in places and file.read(*places["byteorder"]) == b"big")


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


def _of_legacy(file: File) -> Saved:
    """Five pickles (a number, a version, the system, the content, the storages' keys), then the storages."""
    head = io.BytesIO(file.read(0, min(file.size, LARGEST)))
    if content(head)[0] != MAGIC:
        raise file.bad("it is a pickle that torch.save did not write", HELP)
    version, system = content(head)[0], content(head)[0]
    if version != VERSION or system.get("little_endian") is False:
        raise ValueError("another version or byte order")
    value, names, sizes = content(head)
    keys, places, offset = content(head)[0], {}, head.tell()
    for key in (key for key in keys if type(key) is str):  # what is no text might be a tuple too deep to be hashed
        (count,) = struct.unpack("<q", file.read(offset, 8))
        places[key] = offset + 8, count * sizes[key]
        offset += 8 + count * sizes[key]
    if offset > file.size:
        raise ValueError(f"{offset} bytes are named, there are {file.size}")
    return Saved(value, names, places)


# --- the weights among what a file holds -----------------------------------------------------------------------------


def _state_dict(file: File, saved: Saved) -> dict[Any, Any]:
    """The tensors to keep. Beside a model's, Lightning's files hold the optimizer's."""
    value = saved.value
    for _ in range(8):
        known = [key for key in WRAPPERS if isinstance(value, Inert) and _holds_weights(value.get(key))]
        if not known:
            break
        if known[1:]:
            others = ", ".join(map(repr, known[1:]))
            log.info("%s: the weights of %r are read; %s beside it are not", file.path.name, known[0], others)
        value = value[known[0]]
    tensors = {key: it for key, it in value.items() if _is_weight(it)} if isinstance(value, Inert) else {}
    if not tensors:
        seen = _told(value, saved.names)
        raise file.bad(f"there are no tensors inside, neither a state_dict nor a mapping, but {seen}", HELP)
    return tensors


def _is_weight(thing: object) -> bool:
    return isinstance(thing, Tensor | NoPlainTensor)


def _holds_weights(thing: object) -> bool:
    """Whether it is a mapping of tensors, or of such a mapping."""
    mapping = thing if isinstance(thing, Inert) else {}
    return any(_is_weight(inner) or (key in WRAPPERS and isinstance(inner, Inert)) for key, inner in mapping.items())


def _told(value: Any, names: list[str]) -> str:
    """What there is instead."""
    keys = [plain(key) for key in value if type(key) is str] if isinstance(value, Inert) else []
    if keys:
        return f"entries {', '.join(keys[:5])}" + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    if isinstance(value, Inert) and names:
        return f"an object of the class {plain(names[0])}; of a module, save its state_dict()"
    return f"a {'dict' if isinstance(value, Inert) else type(value).__name__} without any"


def _stored(file: File, name: object, weight: Any, saved: Saved) -> Stored:
    """Raises BadArtefact unless it lies within its storage, and the storage is a whole record."""
    if not isinstance(weight, Tensor):
        raise file.bad(f"{plain(name)} is no plain tensor of a CPU", HELP)
    storage, kind = weight.untyped_storage(), str(weight.dtype).removeprefix("torch.")
    file.check_type(name, kind)
    key, stated = storage.stated  # type: ignore[attr-defined]
    if key not in saved.places:
        raise file.bad(f"the data of {plain(name)} are missing", AGAIN)
    offset, length = saved.places[key]
    if stated != length:
        raise file.bad(f"the data of {plain(name)} have another length than it says, {stated} bytes", AGAIN)
    shape, stride, start = tuple(weight.shape), weight.stride(), int(weight.storage_offset())
    stored = Stored(kind, shape, offset, length, stride, start, weight.is_neg(), saved.swapped)
    if 0 not in shape and max(start + stored.extent, math.prod(shape)) * weight.itemsize > length:
        seen = f"{plain(name)} has shape {[*shape]} and stride {[*stride]}, of fewer stored elements"
        raise file.bad(seen, "save it again with contiguous tensors")
    return stored
