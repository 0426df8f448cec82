"""JSON as dataclasses, strictly: no field is surplus, none without a default missing, each of its annotation's type.

A missing field takes its default, which is what a file meant that was written before the field was thought of.
"""

from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


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
    raise TypeError(f"{where}: {value!r}")


def _fits(kind: Any, value: Any) -> bool:
    if isinstance(kind, type) and is_dataclass(kind):
        return isinstance(value, dict) and _needed(kind) <= set(value) <= set(get_type_hints(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return type(value) is kind or (kind is float and type(value) is int)


def _needed(kind: type) -> set[str]:
    return {field.name for field in fields(kind) if field.default is field.default_factory is MISSING}


def _record(kind: type, value: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    if not _fits(kind, value):
        odd = (_needed(kind) - set(value)) | (set(value) - set(hints)) if isinstance(value, dict) else value
        raise TypeError(f"{where}: {odd!r}")
    return kind(**{name: from_json(hints[name], part, f"{where}.{name}") for name, part in value.items()})
