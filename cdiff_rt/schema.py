"""JSON as dataclasses, strictly: no field is surplus, none without a default missing, each of its annotation's type.

A missing field takes its default, which is what a file meant that was written before the field was thought of.
"""

import json
import math
from collections import Counter
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DEEPEST, LONGEST_NUMBER = 50, 19  # objects and lists within each other; digits, and a sign


def parse(text: str) -> Any:
    """JSON in which no key stands twice and every number is finite, with words for what is not. Raises ValueError."""
    try:
        value = json.loads(
            text, object_pairs_hook=unique, parse_constant=_no_number, parse_int=_whole, parse_float=_finite
        )
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    _check_depth(value, DEEPEST)
    return value


def unique(pairs: list[tuple[str, object]]) -> dict:
    """The `object_pairs_hook` of json that takes no key twice. Raises ValueError."""
    name, count = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
    if count > 1:
        raise ValueError(f"{name!r:.80} stands twice")
    return dict(pairs)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text:.20} is no number that can be used")


def _whole(text: str) -> int:
    return int(text) if len(text.lstrip("-")) <= LONGEST_NUMBER else _no_number(text)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _check_depth(value: Any, left: int) -> None:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not left and parts:
        raise ValueError(f"nested more than {DEEPEST} deep")
    for part in parts:
        _check_depth(part, left - 1)


def from_json(kind: Any, value: Any, where: str) -> Any:
    """`value` as a `kind`: a dataclass, tuple, list, dict, Literal, union or scalar. Raises TypeError naming the place.

    Of a union, the one is meant that `value` fits.
    """
    if get_origin(kind) in (UnionType, Union):
        kind = next((part for part in get_args(kind) if _fits(part, value)), kind)
    parts, origin = get_args(kind), get_origin(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _record(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(from_json(parts[0], item, where) for item in value)
    if origin is list and isinstance(value, list):
        return [from_json(parts[0], item, where) for item in value]
    if origin is dict and isinstance(value, dict):
        return {name: from_json(parts[1], item, f"{where}.{name}") for name, item in value.items()}
    if _fits(kind, value):
        return float(value) if kind is float else value
    raise TypeError(f"{where}: {value!r:.80}")


def _fits(kind: Any, value: Any) -> bool:
    if isinstance(kind, type) and is_dataclass(kind):
        return isinstance(value, dict) and _needed(kind) <= set(value) <= set(get_type_hints(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return type(value) is kind or (kind is float and type(value) is int and abs(value) < 2**1000)


def _needed(kind: type) -> set[str]:
    return {field.name for field in fields(kind) if field.default is field.default_factory is MISSING}


def _record(kind: type, value: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    if not _fits(kind, value):
        odd = (_needed(kind) - set(value)) | (set(value) - set(hints)) if isinstance(value, dict) else value
        raise TypeError(f"{where}: {odd!r:.80}")
    return kind(**{name: from_json(hints[name], part, f"{where}.{name}") for name, part in value.items()})
