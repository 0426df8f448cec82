"""A row of jobs as one image's request: its keys are the model's modalities, and the settings that `generate` has.

What a row leaves out it takes from the defaults that all rows share, and its seed, without one, from its own number.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cdiff_rt import schema
from cdiff_rt.controls import Region, read_regions, read_weights
from cdiff_rt.errors import BadInput, BadRequest
from cdiff_rt.inputs import images
from cdiff_rt.inputs.label_orders import order_of
from cdiff_rt.inputs.modalities import KINDS, Condition, check_names
from cdiff_rt.manifest import Manifest, sha256
from cdiff_rt.run import modalities_of
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import SolverTable
from cdiff_rt.sampling.tiers import Sampling
from cdiff_rt.settings import SETTINGS, Settings

PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
ID, META = "id", "meta"
KEYS = tuple(name for name in SETTINGS if name != "batch")  # a row is one image
SAMPLER = ("tier", "solver", "steps", "eta", "temperature")  # of which some exclude each other

Json = dict | list | str | int | float | bool | None


@dataclass(frozen=True)
class Row:
    line: int  # where it begins in the file
    number: int  # 1 for the first; empty ones count
    read: Callable[[], Mapping[str, Any]]  # its keys and values; raises BadInput


@dataclass(frozen=True)
class Job:
    """One image."""

    id: str  # its file's name without the suffix
    conditions: dict[str, Condition]  # by modality; a Path where it is a file
    settings: Settings
    meta: Json = None  # of the row, for the results
    line: int = 0  # of the file
    counted: bool = False  # its seed is that of its number

    def inputs(self) -> dict[str, str]:
        """sha256 of each file that was given, by what it is. Raises BadInput."""
        regions = {f"region.{place}": each.map for place, each in enumerate(self.settings.region)}
        found = self.settings.found  # of a row, that of a file
        weights = {"influence": Path(str(found))} if found else {}
        given = self.conditions | regions | weights
        return {name: _hash(value) for name, value in given.items() if isinstance(value, Path)}

    def request(self, identity: dict) -> str:
        """sha256 of all that the image follows from: settings, conditions, the files' content, and what makes it."""
        settings = self.settings.told() | {"without": self.settings.without}
        settings.pop("tier", None)  # a name, and what it stands for may change
        regions = (replace(each, map=Path(str(each.map)).name) for each in self.settings.region)
        settings["region"] = [str(each) for each in regions]
        settings["influence"] = [Path(str(each)).name for each in self.settings.influence]
        conditions = {name: getattr(value, "name", value) for name, value in self.conditions.items()}
        whole = {"conditions": conditions, "settings": settings, "inputs": self.inputs(), "identity": identity}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise BadInput(str(path), f"it cannot be read ({error.strerror})", "check the path") from None


@dataclass(frozen=True)
class Defaults:
    """What a row has that leaves it out."""

    conditions: dict[str, Condition] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, given: Mapping[str, Any], manifest: Manifest) -> "Defaults":
        """Of conditions and settings by name; paths start at the current folder. Raises BadRequest, BadInput."""
        check_names(manifest, set(given) - set(KEYS), "condition")
        kinds = {modality.name: modality.kind for modality in manifest.modalities}
        settings = _of_files({name: value for name, value in given.items() if name in SETTINGS}, Path())
        _table(Settings(**settings).sampling(), manifest.schedule)
        found = {name: _find(given[name], name, kinds[name], Path()) for name in given if name in kinds}
        return cls(found, settings)

    def under(self, own: Mapping[str, Any], number: int) -> dict[str, Any]:
        """These settings and a row's own, which win: what of these does not go with them is left out."""
        usual = self.settings | {"seed": self.settings.get("seed", 0) + number - 1}
        odd = _odd(*({name: given[name] for name in SAMPLER if name in given} for given in (usual, own)))
        return {name: value for name, value in usual.items() if name not in odd} | dict(own)


def _odd(usual: dict[str, Any], own: dict[str, Any]) -> tuple[str, ...]:
    """The fewest of the usual settings without which one's own are possible."""
    names = [name for name in usual if name not in own] if own else []
    for count in range(len(names)):
        for left_out in itertools.combinations(names, count):
            if _agree({name: usual[name] for name in names if name not in left_out} | own):
                return left_out
    return tuple(names)


def _agree(sampler: dict[str, Any]) -> bool:
    try:
        Settings(**sampler)
    except BadRequest:
        return False
    return True


def job_of(row: Row, folder: Path, manifest: Manifest, usual: Defaults) -> Job:
    """Paths in it start at `folder`; a file's content may stand in place of its path. Raises BadInput, BadRequest."""
    given = {name: value for name, value in row.read().items() if value is not None}  # as tables are told in JSON
    check_keys(given, manifest)
    kinds = {modality.name: modality.kind for modality in manifest.modalities}
    own = _of_files({name: value for name, value in given.items() if name in SETTINGS}, folder)
    settings = Settings(**usual.under(own, row.number))
    conditions = {name: value for name, value in given.items() if name in kinds}
    name, meta = _id(given.get(ID, f"{row.number:06d}")), _meta(given[META]) if META in given else None
    check_names(manifest, settings.weighed, "influence")
    modalities_of(manifest, usual.conditions | conditions, settings, _table(settings.sampling(), manifest.schedule))
    found = {name: _find(value, name, kinds[name], folder) for name, value in conditions.items()}
    return Job(name, usual.conditions | found, settings, meta, row.line, "seed" not in own)


def check_keys(names: Collection[str], manifest: Manifest) -> None:
    """Raises BadInput for one that no row has."""
    known = (ID, *(modality.name for modality in manifest.modalities), *KEYS, META)
    for name in names:
        if name not in known:
            kept = f"what else it is to keep stands under {META}, in a table as {META}.NAME"
            raise BadInput("key", f"{name!r:.80}", f"a row has {', '.join(known)}; {kept}")


def _id(value: Any) -> str:
    name = str(value) if type(value) is int else value
    if isinstance(name, str) and PLAIN_ID.fullmatch(name):
        return name
    remedy = "take up to 200 letters, digits, dots, dashes and underscores, and begin with a letter or digit"
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", str(name)).lstrip("._-")
    if isinstance(name, str) and re.search(r"[/\\]", name) and PLAIN_ID.fullmatch(plain):
        remedy = f"an id has no folders: write {plain}, or give each folder a file of jobs, and an --out, of its own"
    raise BadInput("id", f"{name!r:.80}", remedy)


def _meta(value: Any) -> Json:
    """As it is, if others can read it again. Raises BadInput."""
    try:
        schema.parse(json.dumps(value, ensure_ascii=False).encode().decode())
    except (ValueError, RecursionError) as error:
        raise BadInput("meta", str(error)[:200], "write what is no plain JSON as a text") from None
    return value


def _of_files(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With what some of them name as files, from this folder on. Raises BadInput, BadRequest."""
    if "labels" in settings:
        settings["labels"] = order_of("labels", settings["labels"], folder)
    if "influence" in settings:
        settings["influence"] = read_weights("influence", settings["influence"], folder)
    if "region" in settings:
        regions = read_regions("region", settings["region"], folder)
        settings["region"] = [replace(each, map=_area(each)) for each in regions]
    return settings


def _area(region: Region) -> Path | bytes:
    name, path = f"region of {region.condition}", region.map
    if isinstance(path, bytes):
        return path
    if not isinstance(path, str | Path):
        raise BadInput(name, f"{path!r:.80}", "give the path of a picture")
    images.check_plain_file(Path(path), name)
    return Path(path)


def _find(value: Any, name: str, kind: str, folder: Path) -> Condition:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str | Path):
        raise BadInput(name, f"{value!r:.80}", "give a string")
    return KINDS[kind].find(str(value), name, folder)


@functools.lru_cache
def _table(how: Sampling, schedule: Schedule) -> SolverTable:
    """Not for each of a million rows."""
    return how.table(schedule)


def number_of(text: str) -> float:
    """7.0 is 7, which is how other programs write a whole number."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
