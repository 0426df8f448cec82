"""Weights out of files that torch.save wrote, whoever sent them. A pickle is a program; nothing of it is run.

torch's safe loader imports nothing and calls only what stands in a table under the name that the file says. Of those,
torch's own make tensors, and all others are given here: they mean an inert class. So no process of its own is needed. A
name of the standard library that no weights need shows what the file is for, and it is refused. What a file made for it
can still do is to take memory or time, or to end the process.
"""

import pickle
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch._weights_only_unpickler import get_globals_in_pkl
from torch.serialization import (
    MAGIC_NUMBER,
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
)

from cdiff_rt.errors import BadArtefact
from cdiff_rt.notes import log

ZIP = b"PK\3\4"
LEGACY = pickle.dumps(MAGIC_NUMBER, 2)
PICKLES_OF_LEGACY = 5  # magic number, version, system, content, keys of storages
LONGEST = 300  # letters of a name, or of what is shown of an error

AGAIN = "download it again"
HELP = "give a safetensors file, or one that torch.save wrote of a state dict"

# module of the standard library -> what files of weights name of it. Of other modules' names all are harmless here.
_HARMLESS = {
    "_codecs": "encode",
    "_operator": "getitem",
    "argparse": "Namespace",
    # getattr is how members of some enums are pickled
    "builtins": "bool bytearray bytes complex dict float frozenset getattr int list object range set slice str tuple",
    "collections": "ChainMap Counter OrderedDict UserDict UserList defaultdict deque",
    "copyreg": "_reconstructor",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "enum": "Enum Flag IntEnum IntFlag StrEnum",
    "fractions": "Fraction",
    "functools": "partial",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "re": "_compile",
    "types": "SimpleNamespace",
    "typing": "Any Dict List Optional Tuple Union",
    "uuid": "SafeUUID UUID",
}
HARMLESS = {f"{module}.{name}" for module, names in _HARMLESS.items() for name in names.split()}


class _LikeDict(type):
    """The loader sets items of what it makes only if the class equals dict; classes of a file may be subclasses."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is dict

    __hash__ = type.__hash__


class Inert(metaclass=_LikeDict):
    """Stands for all that is no tensor. It can be made and filled, and keeps nothing."""

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None: ...

    def __setitem__(self, _: object, __: object) -> None: ...


def _deque(*_: object) -> list:
    """The loader appends to nothing but a list."""
    return []


def load(path: Path) -> dict[str, Tensor]:
    """The file's weights. Those of a zip file are views into it, read when they are used. Raises BadArtefact."""
    with _in_words(path):
        with path.open("rb") as file:
            head = file.read(len(LEGACY))
        zipped = head.startswith(ZIP)
        sizes = _check_zip(path) if zipped else None
        if not zipped and head != LEGACY:
            raise _bad(path, "it is a pickle that torch.save did not write, or not in its own pickle protocol", HELP)
        with _nothing_allowed():
            names = set(get_unsafe_globals_in_checkpoint(path)) if zipped else _names_in_legacy(path)
            _refuse_attacks(path, names)
            add_safe_globals(list(_meanings(names)))
            content = _load(path, zipped)
        weights = {name: Tensor.detach(weight) for name, weight in _state_dict(content).items()}
        _check(path, weights, sizes)
        return weights


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except BadArtefact:
        raise
    except Exception as error:  # noqa: BLE001 - a broken file can raise anything
        known = error.__context__ if isinstance(error, pickle.UnpicklingError) else None  # without torch's advice
        reason = f"{type(error).__name__}: {known or error}".splitlines()[0]
        seen = f"it is damaged, cut short or beyond torch's safe loader ({_plain(reason)})"
        raise _bad(path, seen, f"{AGAIN}, or {HELP}, with its own pickle protocol") from None


@contextmanager
def _nothing_allowed() -> Iterator[None]:
    """Of what libraries have told the loader to make."""
    allowed = get_safe_globals()
    clear_safe_globals()
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(allowed)


def _bad(path: Path, seen: str, remedy: str) -> BadArtefact:
    return BadArtefact(f"checkpoint {path.name}", seen, remedy)


def _plain(text: str) -> str:
    return ascii(text)[1:-1][:LONGEST]


def _check_zip(path: Path) -> set[int]:
    """By its checksums, before anything is read -> how many bytes its records have."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type or entry.flag_bits & 1 for entry in entries)
        if packed or len({entry.filename for entry in entries}) < len(entries):
            raise _bad(path, "it is a zip file with compressed, encrypted or doubled entries", HELP)
        if not any(entry.CRC for entry in entries):  # torch.serialization.set_crc32_options(False)
            log.info("%s was written without checksums: whether it is damaged cannot be told", path.name)
        elif spoiled := archive.testzip():
            raise _bad(path, f"it is damaged or cut short ({_plain(spoiled)})", AGAIN)
        return {entry.file_size for entry in entries}


def _names_in_legacy(path: Path) -> set[str]:
    with path.open("rb") as file:
        return set().union(*(get_globals_in_pkl(file) for _ in range(PICKLES_OF_LEGACY)))


def _refuse_attacks(path: Path, names: Iterable[str]) -> None:
    for name in sorted(names):
        if name not in HARMLESS and name.split(".")[0] in sys.stdlib_module_names:
            seen = f"loaded the usual way it would run {_plain(name)}"
            raise _bad(path, seen, "nothing of it was run; get the weights from somebody you trust")


def _meanings(names: Iterable[str]) -> Iterator[tuple[Callable, str]]:
    for name in names:
        yield (_deque if name == "collections.deque" else Inert), name


def _load(path: Path, zipped: bool) -> object:
    if zipped and path.suffix != ".safetensors":  # by that name, torch would take it for one
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _state_dict(content: object) -> dict[str, Tensor]:
    """The tensors to keep. Beside a model's, Lightning's files hold the optimizer's."""
    # Methods of `dict`, for a file may put others into an OrderedDict.
    if not isinstance(content, dict):
        return {}
    inner = dict.get(content, "state_dict")
    if isinstance(inner, dict):
        return {name: value for name, value in dict.items(inner) if isinstance(value, Tensor)}
    plain = all(isinstance(value, Tensor) for value in dict.values(content))
    return {name: value for name, value in dict.items(content)} if plain else {}


def _check(path: Path, weights: dict[str, Tensor], sizes: set[int] | None) -> None:
    if not weights:
        raise _bad(path, "there are no tensors inside, neither a state_dict nor a mapping from names to tensors", HELP)
    for name, weight in weights.items():
        if type(name) is not str or not name.isprintable() or len(name) > LONGEST:
            raise _bad(path, "the name of a tensor is no short plain text", AGAIN)
        if weight.layout is not torch.strided or weight.device.type != "cpu" or weight.is_nested:
            raise _bad(path, f"{name} is no plain tensor of a CPU", HELP)
        stored = weight.untyped_storage().nbytes()
        if sizes is not None and stored not in sizes:  # torch would go on reading in the next record
            raise _bad(path, f"the data of {name} have another length than it says, {stored} bytes", AGAIN)
        if weight.numel() * weight.itemsize > stored:
            seen = f"{name} has shape {list(weight.shape)} and stride {list(weight.stride())}, of fewer stored elements"
            raise _bad(path, seen, "save it again with contiguous tensors")
