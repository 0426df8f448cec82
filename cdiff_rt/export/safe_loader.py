"""What a pickle holds, by torch's safe loader, whoever wrote it. A pickle is a program; nothing of it is run.

That loader imports nothing and calls what stands in a table, by names. Before, the pickle is scanned once: its steps are
counted, all names but those of plain tensors come to mean an `Inert`, and so does every dict, since keys that nest
deeply would end the process when they are hashed. Opcodes that the loader doesn't know are written in those it knows.
"""

import io
import pickletools
import sys
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import Any, Self

import torch
from torch._weights_only_unpickler import Unpickler
from torch.serialization import safe_globals

LARGEST = 64 << 20  # bytes of a pickle
MOST_STEPS = 1_000_000  # opcodes; a tensor takes about 50

# Modules of the standard library, each with what files of weights name of it. Other modules' names are all harmless.
_HARMLESS = """
_codecs encode; _operator getitem; argparse Namespace; array _array_reconstructor array; builtins bool bytearray bytes
complex dict float frozenset getattr int list object range set slice str tuple type Ellipsis NotImplemented Exception
KeyError RuntimeError TypeError ValueError; collections.abc Callable Iterable Iterator Mapping Sequence Set;
collections ChainMap Counter OrderedDict UserDict UserList UserString defaultdict deque; copyreg __newobj__
__newobj_ex__ _reconstructor; dataclasses _MISSING_TYPE; datetime date datetime time timedelta timezone tzinfo;
decimal Decimal; enum Enum Flag IntEnum IntFlag StrEnum; fractions Fraction; functools partial; inspect Parameter
Signature _ParameterKind _empty; ipaddress IPv4Address IPv4Interface IPv4Network IPv6Address IPv6Interface IPv6Network;
itertools chain count cycle repeat; logging Logger getLogger; pathlib Path PosixPath PurePath PurePosixPath
PureWindowsPath WindowsPath; pathlib._local Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath;
random Random; re _compile; signal Signals; string Template; time struct_time; types GenericAlias MappingProxyType
NoneType SimpleNamespace UnionType; typing Any Callable Dict ForwardRef FrozenSet Iterable Iterator List Literal Mapping
Optional Sequence Set Tuple Type Union; uuid SafeUUID UUID; zoneinfo ZoneInfo ZoneInfo._unpickle
"""
HARMLESS = {f"{module}.{name}" for row in _HARMLESS.split(";") for module, *names in [row.split()] for name in names}


class Attack(Exception):
    """The name of a thing that no weights need and that loading would run."""


class _LikeDict(type):
    """The loader sets items only of what has a class that equals dict."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is dict

    __hash__ = type.__hash__


class Inert(dict, metaclass=_LikeDict):
    """Stands for all that is no tensor. It can be made and filled; of all that, it keeps items."""

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def __init__(self, given: object = (), *_: object, **__: object) -> None:
        for pair in given if isinstance(given, list) else ():  # Python 2 made an OrderedDict of them
            if isinstance(pair, list | tuple) and len(pair) == 2:
                self[pair[0]] = pair[1]

    def __setitem__(self, key: object, value: object) -> None:
        if not isinstance(key, tuple):  # to hash many tuples in one another overflows the stack
            super().__setitem__(key, value)

    def __setstate__(self, _: object) -> None: ...

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class NoPlainTensor(Inert):
    """Sparse, nested, quantised, or without data."""


_PLAIN = {f"torch._utils._rebuild_tensor{more}" for more in ("", "_v2", "_v3")}
_MEANINGS: dict[str, Callable[..., object]] = {
    "inert": Inert,
    "no_plain_tensor": NoPlainTensor,
    "builtins.getattr": lambda *_: Inert,  # a class within a class, or a method that is called next
    "collections.deque": lambda *_: [],  # the loader appends to nothing but a list
    **{f"torch._utils._rebuild_parameter{more}": lambda data, *_: data for more in ("", "_with_state")},
    **{f"torch._tensor._rebuild_from_type{more}": lambda made, _, args, *__: made(*args) for more in ("", "_v2")},
}
_ALLOWED: list[Any] = [(meaning, f"cdiff_rt.{name}") for name, meaning in _MEANINGS.items()]

# What the loader reads for opcodes that it doesn't know. No weight is in bytes, sets or huge numbers.
_INSTEAD = {"EMPTY_SET": b"]", "ADDITEMS": b"e", "FROZENSET": b"t", "NEWOBJ_EX": b"\x86\x81"}
_INSTEAD |= dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "LONG4"), b")")
_INSTEAD |= dict.fromkeys(("PROTO", "FRAME"), b"")
_OURS = b"ccdiff_rt\n%s\n"
_INSTEAD["EMPTY_DICT"] = _OURS % b"inert" + b")\x81"
_NAMING = {"GLOBAL", "STACK_GLOBAL", "INST"}


def _meant(found: str) -> bytes:
    """What loads what stands for this name. Raises Attack."""
    if found not in HARMLESS and found.split(".")[0] in sys.stdlib_module_names:
        raise Attack(found)
    module, name = found.rsplit(".", 1)
    known = vars(torch).get(name) if module == "torch" else None
    if found in _PLAIN or isinstance(known, torch.dtype) or (known and name.endswith("Storage")):
        return f"c{module}\n{name}\n".encode()
    tensor = found.startswith(("torch._utils._rebuild", "torch._tensor._rebuild"))
    return _OURS % (found if found in _MEANINGS else "no_plain_tensor" if tensor else "inert").encode()


def _rewritten(file: io.BytesIO) -> tuple[bytes, list[str]]:
    """The pickle that begins here, for the loader; the names in it, as Python 3 has them. Raises Attack."""
    whole, out, names = file.getbuffer(), bytearray(), list[str]()
    memo: dict[int, str | None] = {}  # index -> the text, if it is one. Texts are written again where they are used.
    texts: list[tuple[int, str]] = []  # that were pushed last, and where in `out`
    argument: Any
    for steps, (opcode, argument, begin) in enumerate(pickletools.genops(file)):
        if steps > MOST_STEPS or len(out) > 2 * LARGEST:
            raise ValueError(f"more than {MOST_STEPS} steps, or too long")
        code = opcode.name
        text = memo[argument] if code.endswith("GET") else None if code in _NAMING else argument
        if code.endswith("PUT") or code == "MEMOIZE":
            index = len(memo) if code == "MEMOIZE" else argument
            memo[index] = texts[-1][1] if texts else None
            out += b"" if texts else b"r" + index.to_bytes(4, "little")
        elif isinstance(text, str):
            encoded = text.encode("utf-8", "surrogatepass")
            texts.append((len(out), text))
            out += b"X" + len(encoded).to_bytes(4, "little") + encoded
        else:
            step: bytes | memoryview = _INSTEAD.get(code, whole[begin : file.tell()])
            if code == "STACK_GLOBAL":
                (begin, module), (_, name) = texts[-2:]
                del out[begin:]
                argument = f"{module} {name}"
            if code in _NAMING:
                names.append(_of_python_3(*argument.split(" ", 1)))
                meant = _meant(names[-1])
                step = step if code == "INST" else meant  # the loader refuses it
            out += step
            texts = []
    return bytes(out), names


def _of_python_3(module: str, name: str) -> str:
    return ".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))


class _Loader(Unpickler):
    """Makes tensors on the "meta" device, where storages grow with them; so what is `stated` of each is kept: key, bytes."""

    element_sizes: dict[str, int]

    def persistent_load(self, pid: tuple[Any, ...]) -> torch.TypedStorage:
        _, kind, key, _, count, *view = pid
        if type(key) is not str or any(view):
            raise ValueError("a reference to no storage, or to a part of one")
        dtype = getattr(kind, "dtype", torch.uint8)
        self.element_sizes[key] = dtype.itemsize
        untyped = torch.UntypedStorage(count * dtype.itemsize, device="meta")
        untyped.stated = key, count * dtype.itemsize  # type: ignore[attr-defined]
        return torch.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


def content(file: io.BytesIO) -> tuple[Any, list[str], dict[str, int]]:
    """What the pickle that begins here describes, its names, and by key the bytes of an element of each storage.

    Raises Attack, or any other exception if it is no whole pickle.
    """
    with safe_globals(_ALLOWED), warnings.catch_warnings(action="ignore"):  # about what is odd
        rewritten, names = _rewritten(file)
        loader = _Loader(io.BytesIO(rewritten), encoding="utf-8")
        loader.element_sizes = {}
        return loader.load(), names, loader.element_sizes
