"""What a pickle describes, as data. A pickle is a program; nothing of it is run, whoever wrote it.

Each opcode moves entries of a stack, as the pickle protocols 0 to 5 say. Where it would make or call something, a
`Made` notes what would be called with what. Nothing is imported, called, hashed or compared, and nothing here recurses,
so neither what a pickle names nor how deep it nests matters. What it can still take is time, and that has bounds.
"""

import io
import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

LARGEST = 64 << 20  # bytes of a pickle
MOST_STEPS = 3_000_000  # opcodes; a tensor takes about 50

PERSISTENT = "persistent"  # the name of what a persistent id means

# module of the standard library -> what files of weights name of it. Of other modules' names all are harmless here.
_HARMLESS = {
    "_codecs": "encode",
    "_operator": "getitem",
    "argparse": "Namespace",
    "array": "_array_reconstructor array",
    # getattr is how members of some enums are pickled
    "builtins": "bool bytearray bytes complex dict float frozenset getattr int list object range set slice str tuple"
    " type Ellipsis NotImplemented Exception KeyError RuntimeError TypeError ValueError",
    "collections.abc": "Callable Iterable Iterator Mapping Sequence Set",
    "collections": "ChainMap Counter OrderedDict UserDict UserList UserString defaultdict deque",
    "copyreg": "__newobj__ __newobj_ex__ _reconstructor",
    "dataclasses": "_MISSING_TYPE",
    "datetime": "date datetime time timedelta timezone tzinfo",
    "decimal": "Decimal",
    "enum": "Enum Flag IntEnum IntFlag StrEnum",
    "fractions": "Fraction",
    "functools": "partial",
    "inspect": "Parameter Signature _ParameterKind _empty",
    "ipaddress": "IPv4Address IPv4Interface IPv4Network IPv6Address IPv6Interface IPv6Network",
    "itertools": "chain count cycle repeat",
    "logging": "Logger getLogger",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "random": "Random",
    "re": "_compile",
    "signal": "Signals",
    "string": "Template",
    "time": "struct_time",
    "types": "GenericAlias MappingProxyType NoneType SimpleNamespace UnionType",
    "typing": "Any Callable Dict ForwardRef FrozenSet Iterable Iterator List Literal Mapping Optional Sequence Set Tuple"
    " Type Union",
    "uuid": "SafeUUID UUID",
    "zoneinfo": "ZoneInfo ZoneInfo._unpickle",
}
HARMLESS = {f"{module}.{name}" for module, names in _HARMLESS.items() for name in names.split()}


class Attack(Exception):
    """The name of a thing that no weights need and that loading would run."""


@dataclass(eq=False, repr=False, slots=True)
class Name:
    """Of a class or function, e.g. "collections.OrderedDict"."""

    name: str


@dataclass(eq=False, repr=False, slots=True)
class Made:
    """What calling `name` with `args` would make, and the pairs that it would be filled with. A dict is one, too."""

    name: str
    args: tuple[Any, ...] = ()
    pairs: list[tuple[Any, Any]] | None = None


def content(file: io.BytesIO) -> tuple[Any, list[Any]]:
    """What the pickle that begins here describes, in lists, tuples, scalars, `Name`s and `Made`s; its persistent ids.

    Raises Attack, or any other exception if it is no whole pickle.
    """
    machine = _Machine()
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if steps > MOST_STEPS:
            raise ValueError(f"more than {MOST_STEPS} steps")
        if opcode.name == "STOP":
            return machine.stack.pop(), machine.persistent
        machine.step(opcode.name, argument)
    raise ValueError("it does not end")


def pairs_of(thing: object) -> Iterator[tuple[Any, Any]]:
    """A mapping's; of anything else none. Where a key comes twice, the later holds."""
    if isinstance(thing, Made):
        # Python 2 made an OrderedDict of a list of pairs.
        given = thing.args[0] if thing.args and thing.name.endswith("OrderedDict") else ()
        if isinstance(given, list):
            yield from (tuple(pair) for pair in given if isinstance(pair, list | tuple) and len(pair) == 2)
        yield from thing.pairs or ()


def _checked(module: str, name: str) -> Name:
    """In the words of Python 3. Raises Attack."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    found = f"{module}.{name}"
    if found not in HARMLESS and found.split(".")[0] in sys.stdlib_module_names:
        raise Attack(found)
    return Name(found)


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.persistent: list[Any] = []

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _STEPS:
            _STEPS[opcode](self, argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _VALUES:
            self.stack.append(argument)
        elif opcode not in _IGNORED:
            raise ValueError(f"unknown step {opcode}")

    def pop(self) -> Any:
        if self.marks and self.marks[-1] == len(self.stack):
            raise IndexError("nothing is on the stack")
        return self.stack.pop()

    def slice(self) -> list[Any]:
        """What lies above the last mark."""
        height = self.marks.pop()
        taken = self.stack[height:]
        del self.stack[height:]
        return taken

    def push(self, thing: Any) -> None:
        self.stack.append(thing)

    def last(self, count: int) -> None:
        taken = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(taken)))

    def drop(self) -> None:
        """One entry, or a mark that lies on top."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def call(self, args: Any, more: object = None) -> None:
        """What is on the stack, with these arguments."""
        called = self.pop()
        name = called.name if isinstance(called, Name) else "what it made"
        self.push(Made(name, args if isinstance(args, tuple) else ()))

    def refer(self, persistent: Any) -> None:
        """To what lies outside the pickle, by its id."""
        self.persistent.append(persistent)
        self.push(Made(PERSISTENT, (persistent,)))

    def fill(self, entries: list[Any]) -> None:
        """Keys and values, one after the other."""
        filled = self.stack[-1]
        if isinstance(filled, Made):
            filled.pairs = filled.pairs or []
            filled.pairs += zip(entries[::2], entries[1::2], strict=True)

    def extend(self, entries: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1] += entries

    def dict_of(self, entries: list[Any]) -> None:
        self.push(Made("builtins.dict"))
        self.fill(entries)

    def global_of(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.push(_checked(module, name))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name that is no text")
        self.push(_checked(module, name))

    def instance(self, argument: str) -> None:
        args = tuple(self.slice())
        self.global_of(argument)
        self.call(args)

    def object_of(self) -> None:
        called, *args = self.slice()
        self.push(called)
        self.call(tuple(args))


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = {  # what stands in the pickle itself, a number or a text
    code.name
    for code in pickletools.opcodes
    if code.arg and not code.stack_before and code.stack_after not in ([], [pickletools.anyobject])
}
_IGNORED = {"PROTO", "FRAME", "READONLY_BUFFER"}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.drop(),
    "POP_MARK": lambda m, _: m.slice().clear(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_SET": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push(Made("builtins.dict")),
    "LIST": lambda m, _: m.push(m.slice()),
    "FROZENSET": lambda m, _: m.push(m.slice()),
    "TUPLE": lambda m, _: m.push(tuple(m.slice())),
    "TUPLE1": lambda m, _: m.last(1),
    "TUPLE2": lambda m, _: m.last(2),
    "TUPLE3": lambda m, _: m.last(3),
    "DICT": lambda m, _: m.dict_of(m.slice()),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.slice()),
    "ADDITEMS": lambda m, _: m.extend(m.slice()),
    "SETITEM": lambda m, _: m.fill([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.fill(m.slice()),
    "GET": lambda m, index: m.push(m.memo[index]),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "PUT": lambda m, index: m.memo.update({index: m.stack[-1]}),
    "BINPUT": lambda m, index: m.memo.update({index: m.stack[-1]}),
    "LONG_BINPUT": lambda m, index: m.memo.update({index: m.stack[-1]}),
    "MEMOIZE": lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
    "PERSID": lambda m, name: m.refer(name),
    "BINPERSID": lambda m, _: m.refer(m.pop()),
    "GLOBAL": lambda m, name: m.global_of(name),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "INST": lambda m, name: m.instance(name),
    "OBJ": lambda m, _: m.object_of(),
    "REDUCE": lambda m, _: m.call(m.pop()),
    "NEWOBJ": lambda m, _: m.call(m.pop()),
    "NEWOBJ_EX": lambda m, _: m.call(*[m.pop(), m.pop()][::-1]),
    "BUILD": lambda m, _: m.pop() and None,
}
