import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import pytest

from cdiff_rt.schema import from_json


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
    fill: Literal["black", "red"] | None
    shapes: dict[str, Round | Angular]
    notes: list[str]
    size: tuple[int | str, ...]
    closed: bool = True


DRAWING = Drawing("a", "red", None, {"o": Round(1.5), "l": Angular((3, 4))}, ["n"], (1, "batch"))


def as_json(**changes):
    return json.loads(json.dumps(dataclasses.asdict(DRAWING))) | changes


def test_what_was_written_is_read_again():
    assert from_json(Drawing, as_json(), "drawing") == DRAWING


def test_one_of_a_few_or_nothing_is_either():
    assert from_json(Drawing, as_json(fill="red"), "drawing") == dataclasses.replace(DRAWING, fill="red")


def test_whole_numbers_may_stand_for_fractions():
    found = from_json(Round, {"radius": 2}, "round")
    assert found == Round(2.0) and type(found.radius) is float


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"name": 5}, "drawing.name: 5"),
        ({"ink": "blue"}, "drawing.ink: 'blue'"),
        ({"ink": []}, "drawing.ink"),
        ({"fill": "blue"}, "drawing.fill: 'blue'"),
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


def test_a_missing_field_is_refused():
    data = as_json()
    del data["name"]
    with pytest.raises(TypeError, match="name"):
        from_json(Drawing, data, "drawing")


def test_a_missing_field_takes_its_default():
    data = as_json(closed=False)
    assert not from_json(Drawing, data, "drawing").closed
    del data["closed"]
    assert from_json(Drawing, data, "drawing").closed


def test_what_is_absent_is_null():
    @dataclass(frozen=True)
    class Frame:
        inside: Round | None

    assert from_json(Frame, {"inside": None}, "frame") == Frame(None)
    assert from_json(Frame, {"inside": {"radius": 1.0}}, "frame") == Frame(Round(1.0))
    with pytest.raises(TypeError, match=r"frame.inside: 1"):
        from_json(Frame, {"inside": 1}, "frame")
