"""Who decides where: how much each condition weighs over the run, and in which region of the image.

    --influence text=1.5@0.2-1.0 --region text=beard.png:at-least=0.8

Places are shares of the way from noise (0) to image (1), the same in every tier. Importing this loads no library.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

from cdiff_rt.errors import BadRequest, check_choice, check_range, real

if TYPE_CHECKING:
    import numpy as np

    from cdiff_rt.inputs.images import Picture

Rule = Literal["only", "weight", "at-least", "at-most"]
RULES = get_args(Rule)
MOST = 1000.0  # of a weight, either sign
MOST_KEYS = 1000
PAPER, AS_TRAINED, FIRST = "paper", "as-trained", "-first"  # presets; the last behind a condition's name
PRESETS = (PAPER, AS_TRAINED, f"NAME{FIRST}")
CALIBRATED = ".json"  # how the name of a file of weights ends
PREFERENCE = 4.0  # the weight of the condition that comes first
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_SPAN = re.compile(rf"(.*)@({_NUMBER})-({_NUMBER})", re.DOTALL | re.IGNORECASE)
_RULE = re.compile(rf"(.*):({'|'.join(RULES)})(?:=(.*))?", re.DOTALL)
WRITE_WEIGHT = "write a number, 1.5; with start and end, 1.5@0.2-1; or keyframes, 0@0,1@0.5"
WRITE_REGION = (
    "write a picture's path, then :only, :weight=2, :at-least=0.8 or :at-most=0.2, then @start-end if need be"
)


@dataclass(frozen=True)
class Weight:
    """How much a condition weighs: 1 is as ever, 0 not at all, below 0 the image moves away from it.

    Between keyframes the weight changes linearly; outside start and end it is 0. Raises BadRequest.
    """

    condition: str
    keys: tuple[tuple[float, float], ...] = ((0.0, 1.0),)  # (place, weight), places ascending
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        name = f"influence of {self.condition}"
        if not 1 <= len(self.keys) <= MOST_KEYS:
            raise BadRequest(name, f"{len(self.keys)} keyframes", f"give 1 to {MOST_KEYS}")
        for place, weight in self.keys:
            check_range(f"{name}, place", place, 0.0, 1.0)
            check_range(name, weight, -MOST, MOST)
        places = [place for place, _ in self.keys]
        if any(a >= b for a, b in pairwise(places)):
            raise BadRequest(name, f"keyframes at {', '.join(map(_number, places))}", "give each a later place")
        _check_span(name, self.start, self.end)

    def __str__(self) -> str:
        return f"{self.condition}={self.value}"

    @property
    def value(self) -> str:
        """As it is written behind the condition's name."""
        if len(self.keys) > 1:
            return ",".join(f"{_number(weight)}@{_number(place)}" for place, weight in self.keys)
        return _number(self.keys[0][1]) + _span(self.start, self.end)

    @classmethod
    def read(cls, condition: str, value: Any) -> "Weight":
        """Of a number, or of text as the command line has it. Raises BadRequest."""
        name = f"influence of {condition}"
        if not isinstance(value, str):
            return cls(condition, ((0.0, real(name, value)),))
        if span := _SPAN.fullmatch(value):
            weight, start, end = (_read(name, part, WRITE_WEIGHT) for part in span.groups())
            return cls(condition, ((0.0, weight),), start, end)
        keys = [part.partition("@") for part in value.split(",")]
        if len(keys) > 1 and not all(at for _, at, _ in keys):
            raise BadRequest(name, f"{value!r:.80}", WRITE_WEIGHT)
        return cls(
            condition,
            tuple(
                (_read(name, place, WRITE_WEIGHT) if at else 0.0, _read(name, weight, WRITE_WEIGHT))
                for weight, at, place in keys
            ),
        )


@dataclass(frozen=True, eq=False)
class Region:
    """What holds for a condition where a map is white, or 1, and the more the whiter where it is grey.

    "only": it has influence there only; "weight": it weighs `value` times as much there; "at-least", "at-most": its
    influence, a share of 1, is no less or no more there. Raises BadRequest.
    """

    condition: str
    map: "Picture"  # a path, a file's content, a picture, or an array of shares [H, W] or of the latents' shape
    rule: Rule = "only"
    value: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        name = f"region of {self.condition}"
        check_choice(name, self.rule, RULES)
        check_range(name, self.value, *((0.0, MOST) if self.rule == "weight" else (0.0, 1.0)))
        _check_span(name, self.start, self.end)

    def __str__(self) -> str:
        from cdiff_rt.inputs.images import name_of  # where it is needed, for pictures load numpy

        path = str(self.map) if isinstance(self.map, str | Path) else name_of(self.map)
        rule = "" if self.rule == "only" else f"={_number(self.value)}"
        return f"{self.condition}={path}:{self.rule}{rule}{_span(self.start, self.end)}"

    @classmethod
    def read(cls, condition: str, value: Any, folder: Path | None = None) -> "Region":
        """Of text as the command line has it, with the path from `folder` on, or of a map. Raises BadRequest."""
        name = f"region of {condition}"
        if not isinstance(value, str):
            return cls(condition, value)
        path, start, end = value, 0.0, 1.0
        if (span := _SPAN.fullmatch(value)) and _RULE.fullmatch(span[1]):
            path, start, end = span[1], *(_read(name, part, WRITE_REGION) for part in span.groups()[1:])
        rule: Any = "only"
        number = None
        if ruled := _RULE.fullmatch(path):
            path, rule, number = ruled.groups()
        if not path or (rule == "only") != (number is None):
            raise BadRequest(name, f"{value!r:.80}", WRITE_REGION)
        found = 1.0 if number is None else _read(name, number, WRITE_REGION)
        return cls(condition, str(folder / path) if folder else path, rule, found, start, end)


@runtime_checkable
class Found(Protocol):
    """Weights of all experts at every step and place, such as a `Calibration`, in place of what they say themselves."""

    def scales(self, names: Sequence[str], alpha_bars: "np.ndarray", latent: tuple[int, ...]) -> "np.ndarray":
        """[S, M, *latent], of sum 1 over the M experts. Raises BadRequest."""
        ...


Weights = tuple[str | Weight | Found, ...]  # at most one of them the name of a preset, or found
Regions = tuple[Region, ...]


def read_weights(name: str, value: Any, folder: Path | None = Path()) -> Weights:
    """Of a preset's name, of "text=1.5", of a list of such, or of a dict {"text": 1.5}. Raises BadRequest.

    What `calibrate` found is a preset too, and so is its file, whose path starts at `folder`; without one, none is read.
    """
    found: list[str | Weight | Found] = []
    for condition, what in _pairs(name, value):
        if isinstance(what, Weight | Found):
            found.append(what)
        elif condition:
            found.append(Weight.read(condition, what))
        elif isinstance(what, str) and (what in (PAPER, AS_TRAINED) or what.removesuffix(FIRST) not in ("", what)):
            found.append(what)
        elif isinstance(what, str) and what.endswith(CALIBRATED) and folder:
            from cdiff_rt.sampling.calibrated import Calibration  # where it is needed, for it loads numpy

            found.append(Calibration.load(folder / what))
        else:
            remedy = f"write a condition's weight, text=1.5, or one of {', '.join(PRESETS)}"
            raise BadRequest(name, f"{what!r:.80}", remedy)
    presets = [each for each in found if not isinstance(each, Weight)]
    if len(presets) > 1:
        raise BadRequest(name, " and ".join(map(str, presets[:2])), "give one preset, and weights beside it")
    given = [each.condition for each in found if isinstance(each, Weight)]
    if twice := next((each for each in given if given.count(each) > 1), None):
        raise BadRequest(name, f"{twice} stands twice", "give one weight for each condition, or keyframes")
    return tuple(found)


def weights_of(asked: Weights) -> list[Weight]:
    """Those that were given, and those that a preset means."""
    given = [each for each in asked if isinstance(each, Weight)]
    first = [each.removesuffix(FIRST) for each in asked if isinstance(each, str) and each.endswith(FIRST)]
    weighed = {each.condition for each in given}
    return given + [Weight(name, ((0.0, PREFERENCE),)) for name in first if name not in weighed]


def read_regions(name: str, value: Any, folder: Path | None = None) -> Regions:
    """Of "text=beard.png:only", of a list of such, of Regions, or of a dict from names to one or several of these."""
    found = []
    for condition, what in _pairs(name, value):
        if isinstance(what, Region):
            found.append(replace(what, condition=condition or what.condition))
        elif condition:
            found.append(Region.read(condition, what, folder))
        else:
            remedy = "write the condition's name before it, text=beard.png"
            raise BadRequest(name, f"{what!r:.80}", remedy)
    return tuple(found)


def _pairs(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """(condition, what is said of it); without a condition for what names none."""
    if isinstance(value, Mapping):
        for condition, several in value.items():
            if not isinstance(condition, str) or not condition:
                raise BadRequest(name, f"{condition!r:.80}", "give the name of a condition")
            for what in several if isinstance(several, list | tuple) else [several]:
                yield condition, what
        return
    if isinstance(value, str | Weight | Region | Found):
        value = [value]
    value = () if value is None else value
    if not isinstance(value, list | tuple):
        raise BadRequest(name, f"a {type(value).__name__}", "give a text, a list of texts, or a dict by condition")
    for each in value:
        condition, equals, what = each.partition("=") if isinstance(each, str) else ("", "", each)
        yield (condition.strip(), what.strip()) if equals else ("", each)


def _read(name: str, text: str, remedy: str) -> float:
    if not re.fullmatch(_NUMBER, text.strip(), re.IGNORECASE):
        raise BadRequest(name, f"{text!r:.80} is no number", remedy)
    return float(text)


def _check_span(name: str, start: float, end: float) -> None:
    for place in (start, end):
        check_range(f"{name}, place", place, 0.0, 1.0)
    if start >= end:
        raise BadRequest(name, f"it starts at {_number(start)} and ends at {_number(end)}", "let it end later")


def _number(value: float) -> str:
    """The shortest text that is this number again."""
    return str(int(value)) if value == int(value) else repr(value)


def _span(start: float, end: float) -> str:
    return "" if (start, end) == (0.0, 1.0) else f"@{_number(start)}-{_number(end)}"
