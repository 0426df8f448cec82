"""What an ONNX graph of a bundle may be, seen before a library reads it: plain operators, on the bundle's weights.

A library that is given a graph reads whatever file or address the graph names, unrolls its functions, runs its loops
and makes tensors as large as it says. Networks that were exported here have none of these. Only as much of the format is read as that takes: fields of
a protobuf message, by the numbers that onnx.proto gives them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cdiff_rt.engines.weights import ENCODER, part_of, places
from cdiff_rt.errors import BadArtefact
from cdiff_rt.manifest import REBUILD, Bundle

_GRAPH, _IMPORT, _TRAINING, _FUNCTIONS = 7, 8, 20, 25  # of a model
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15  # of a graph
_OPERATOR, _ATTRIBUTE = 4, 5  # of a node
_TENSORS, _NOT_PLAIN = (5, 10), (6, 11, 22, 23)  # of an attribute: tensors; graphs and sparse tensors
_SHAPE, _TYPE, _NAME, _EXTERNAL, _LOCATED = 1, 2, 8, 13, 14  # of a tensor
_KEY, _VALUE = 1, 2  # of an entry that says where a tensor lies

_NEVER = (
    *(b"If", b"Loop", b"Scan", b"SequenceMap"),  # run graphs within the graph
    *(b"ConstantOfShape", b"OneHot", b"RandomNormal", b"RandomUniform", b"Range", b"Tile"),  # a few bytes, any size
)
_SUSPECT = (*_NEVER, b"location")  # nodes without these bytes need no closer look
_DOMAINS = ("", "ai.onnx")  # a library knows the operators of those alone that a graph imports
_DTYPES = {1: "F32", 2: "U8", 3: "I8", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 16: "BF16"}
_IN_MEMORY = "*/_ORT_MEM_ADDR_/*"  # where onnxruntime and openvino read an address from the offset


@dataclass(frozen=True)
class Graph:
    """A network's ONNX file and the file of weights that it points into, as they were read and hashed."""

    file: str
    model: bytes
    weights: str
    data: bytes  # of the weights

    @classmethod
    def of(cls, content: Mapping[str, bytes], file: str, weights: str, part: str = "", own: str = "") -> "Graph":
        """Its tensors are its own, or among the weights whose names begin with `part`, if any begin so, or with `own`.

        Raises BadArtefact.
        """
        try:
            _check(content[file], weights, content[weights], part, own or part)
        except ValueError as error:
            raise BadArtefact(f"network {file}", str(error), REBUILD) from None
        return cls(file, content[file], weights, content[weights])


def graph_of(bundle: Bundle, network: str, file: str = "") -> Graph:
    """One network's, or another file of the same. Raises BadArtefact."""
    file = file or bundle.manifest.networks[network].file
    part = f"{part_of(network)}."
    own = (
        f"{part}{ENCODER}." if network.startswith("condition.") else part
    )  # one with an encoder of its own reads no other's
    return Graph.of(bundle.content, file, bundle.manifest.weights, part, own)


@dataclass(frozen=True)
class _Tensor:
    """An initializer that lies in another file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    entries: dict[str, str]


def _check(model: bytes, weights: str, data: bytes, part: str, own_part: str) -> None:
    tensors = list(_outside(model))
    stored = {(p.offset, p.length): (name, p) for name, p in places(data).items()} if tensors else {}
    own = any(name.startswith(own_part) for name, _ in stored.values())  # a modality may use the networks of another
    for tensor in tensors:
        if tensor.entries.get("location") != weights:
            where = tensor.entries.get("location", "nowhere")
            raise ValueError(f"{tensor.name!r:.80} lies in {where!r:.80} instead of {weights}")
        name, place = stored.get((_number(tensor, "offset"), _number(tensor, "length")), ("", None))
        if place is None or (place.dtype, place.shape) != (tensor.dtype, tensor.shape):
            raise ValueError(f"{tensor.name!r:.80} is none of the weights")
        if own and not name.startswith(part):
            raise ValueError(f"it is another network's: {tensor.name!r:.80} is {name!r:.80}")


def at_address(graph: bytes, address: int) -> bytes:
    """A graph that was checked, whose weights' file lies at `address` in memory."""

    def entry(data: bytes) -> bytes:
        key, value = _entry(data)
        moved = {"location": _IN_MEMORY, "offset": str(address + int(value)) if key == "offset" else ""}.get(key, value)
        return _encoded(_KEY, key.encode()) + _encoded(_VALUE, moved.encode())

    def initializer(data: bytes) -> bytes:
        return _replaced(data, _EXTERNAL, entry)

    return _replaced(graph, _GRAPH, lambda data: _replaced(data, _INITIALIZER, initializer))


def _number(tensor: _Tensor, key: str) -> int:
    text = tensor.entries.get(key, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1


def _outside(model: bytes) -> Iterator[_Tensor]:
    """The initializers that lie in other files. Raises ValueError for what no exported network has."""
    for number, _, _, graph in _fields(model):
        if number in (_TRAINING, _FUNCTIONS):
            raise ValueError("it has functions or a training of its own")
        if number == _IMPORT and (domain := _entry(_message(graph))[0]) not in _DOMAINS:
            raise ValueError(f"it has operators of {domain!r:.80}")
        if number != _GRAPH:
            continue
        for kind, _, _, data in _fields(_message(graph)):
            if kind == _SPARSE:
                raise ValueError("it has sparse weights")
            if kind == _NODE:
                node = _message(data)
                if any(word in node for word in _SUSPECT):
                    _check_node(node)
            elif kind == _INITIALIZER and (tensor := _tensor(_message(data))):
                yield tensor


def _check_node(node: bytes) -> None:
    for number, _, _, value in _fields(node):
        if number == _OPERATOR and value in _NEVER:
            raise ValueError(f"it has the operator {_message(value).decode()}")
        if number == _ATTRIBUTE:
            for kind, _, _, part in _fields(_message(value)):
                if kind in _NOT_PLAIN or (kind in _TENSORS and _tensor(_message(part))):
                    raise ValueError("an operator has a graph or weights of its own")


def _tensor(data: bytes) -> _Tensor | None:
    """None if its values are in the graph itself."""
    if b"location" not in data:  # which most initializers are spared by
        return None
    name, dtype, shape, entries, outside = "", "", list[int](), dict[str, str](), False
    for number, _, _, value in _fields(data):
        if number == _SHAPE:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif number == _TYPE:
            dtype = _DTYPES.get(value, "") if isinstance(value, int) else ""
        elif number == _NAME:
            name = _message(value).decode(errors="replace")
        elif number == _LOCATED:
            outside = outside or bool(value)
        elif number == _EXTERNAL:
            key, text = _entry(_message(value))
            if key in entries:
                raise ValueError(f"an initializer has its {key!r:.80} twice")
            entries[key] = text
    return _Tensor(name, dtype, tuple(shape), entries) if outside or entries else None


def _entry(data: bytes) -> tuple[str, str]:
    found = {n: value.decode(errors="replace") for n, _, _, value in _fields(data) if isinstance(value, bytes)}
    return found.get(_KEY, ""), found.get(_VALUE, "")


# --- protobuf --------------------------------------------------------------------------------------------------------


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int | bytes]]:
    """Number, beginning, end and value of each field. Raises ValueError for what is no message."""
    place, end = 0, len(message)
    while place < end:
        start = place
        tag, place = _varint(message, place)
        value: int | bytes
        if tag & 7 == 0:
            value, place = _varint(message, place)
        elif tag & 7 in (1, 2, 5):
            size, place = _varint(message, place) if tag & 7 == 2 else (8 if tag & 7 == 1 else 4, place)
            value, place = message[place : place + size], place + size
        else:
            raise ValueError("it is no ONNX file")
        if place > end:
            raise ValueError("it is no ONNX file, or was cut")
        yield tag >> 3, start, place, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number, and where it ends."""
    if place < len(message) and message[place] < 0x80:  # most are as small as that
        return message[place], place + 1
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        value, place = value | (byte & 0x7F) << shift, place + 1
        if byte < 0x80:
            return value, place
    raise ValueError("it is no ONNX file, or was cut")


def _varints(packed: bytes) -> list[int]:
    found, place = [], 0
    while place < len(packed):
        value, place = _varint(packed, place)
        found.append(value)
    return found


def _message(value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    raise ValueError("it is no ONNX file")


def _encoded(number: int, data: bytes) -> bytes:
    """A field of bytes; its number is below 16."""
    size, length = bytearray(), len(data)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes((number << 3 | 2, *size, length)) + data


def _replaced(message: bytes, number: int, change: Callable[[bytes], bytes]) -> bytes:
    """The message with each of these fields changed."""
    parts, kept = [], 0
    for found, start, end, value in _fields(message):
        if found == number:
            parts += [message[kept:start], _encoded(number, change(_message(value)))]
            kept = end
    return b"".join((*parts, message[kept:]))
