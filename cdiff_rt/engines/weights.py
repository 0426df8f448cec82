"""A bundle's weights where they lie in the bytes of its safetensors file, so that nobody needs a second copy."""

import functools
import json
import math
from dataclasses import dataclass

import numpy as np

ENCODER = "encoder"  # of a condition: what the names of its weights go on with behind their part
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_STORED = {"F16": np.float16, "F32": np.float32}


@dataclass(frozen=True)
class Place:
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    offset: int
    length: int  # in bytes


def part_of(network: str) -> str:
    """What the names of a network's weights begin with: "vae" or "experts.<modality>"."""
    kind, _, name = network.partition(".")
    return "vae" if kind == "vae" else f"experts.{name}"


def fp32(content: bytes, place: Place) -> np.ndarray:
    """A copy of a tensor. Raises ValueError for a type that no bundle has."""
    if place.dtype not in _STORED:
        raise ValueError(f"weights of type {place.dtype}")
    flat = np.frombuffer(content, _STORED[place.dtype], math.prod(place.shape), place.offset)
    return flat.astype(np.float32).reshape(place.shape)


def places(content: bytes) -> dict[str, Place]:
    """By name. Raises ValueError for what is no safetensors file, or has tensors beyond its end."""
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= len(content) - 8:
        raise ValueError("the weights are no safetensors file, or were cut")
    found = _listed(content[8 : 8 + size])
    if max((place.offset + place.length for place in found.values()), default=0) > len(content):
        raise ValueError("the weights were cut")
    return found


@functools.lru_cache(maxsize=4)  # every network of a bundle asks
def _listed(header: bytes) -> dict[str, Place]:
    try:
        entries = json.loads(header)
        return {n: _place(entry, 8 + len(header)) for n, entry in entries.items() if n != "__metadata__"}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"the weights' header is damaged ({type(error).__name__} {error!s:.80})") from None


def _place(entry: dict, start: int) -> Place:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    whole = [*shape, begin, end]
    if not all(type(n) is int and n >= 0 for n in whole) or end - begin != math.prod(shape) * _SIZES[entry["dtype"]]:
        raise TypeError(f"{entry!r:.80}")
    return Place(entry["dtype"], shape, start + begin, end - begin)
