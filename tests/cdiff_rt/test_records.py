import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import pytest

from cdiff_rt.records import from_json


@dataclass(frozen=True)
class Round:
    radius: float


@dataclass(frozen=True)
class Angular:
    sides: tuple[int, ...]


@dataclass(frozen=True)
class Drawing:
    name: str
    ink: Literal["black", "red"]
    shapes: dict[str, Round | Angular]
    notes: list[str]
    size: tuple[int | str, ...]
    closed: bool = True


DRAWING = Drawing("a", "red", {"o": Round(1.5), "l": Angular((3, 4))}, ["n"], (1, "batch"))


def as_json(**changes):
    return json.loads(json.dumps(dataclasses.asdict(DRAWING))) | changes


def test_what_was_written_is_read_again():
    assert from_json(Drawing, as_json(), "drawing") == DRAWING


def test_whole_numbers_may_stand_for_fractions():
    assert from_json(Round, {"radius": 2}, "round") == Round(2)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"name": 5}, "drawing.name: 5"),
        ({"ink": "blue"}, "drawing.ink: 'blue'"),
        ({"ink": []}, "drawing.ink"),
        ({"shapes": []}, "drawing.shapes"),
        ({"shapes": {"o": {"radius": "1"}}}, "drawing.shapes.o.radius: '1'"),
        ({"shapes": {"o": {"colour": 1}}}, "drawing.shapes.o"),
        ({"notes": "n"}, "drawing.notes"),
        ({"notes": [1]}, "drawing.notes: 1"),
        ({"size": [1.5]}, "drawing.size: 1.5"),
        ({"closed": 1}, "drawing.closed: 1"),
        ({"extra": 1}, "extra"),
    ],
)
def test_another_type_is_refused_with_its_place(changes, place):
    with pytest.raises(TypeError, match=place):
        from_json(Drawing, as_json(**changes), "drawing")


@pytest.mark.parametrize("field", ["name", "closed"])
def test_a_missing_field_is_refused_even_with_a_default(field):
    data = as_json()
    del data[field]
    with pytest.raises(TypeError, match=field):
        from_json(Drawing, data, "drawing")
