"""A file of jobs: one row of JSON for each image, checked as a whole before any of it runs.

    {"id": "man-01", "mask": "masks/1.png", "text": "This man has a long beard.", "seed": 7}

A row's keys are the model's modalities, and the settings that `cdiff-rt generate` has for one image.
"""

import codecs
import functools
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdiff_rt.controls import read_regions, read_weights
from cdiff_rt.errors import BadInput, CdiffError
from cdiff_rt.inputs import images
from cdiff_rt.inputs.label_orders import order_of
from cdiff_rt.inputs.modalities import KINDS, Condition, chosen_of
from cdiff_rt.manifest import Manifest, sha256
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.tiers import Sampling
from cdiff_rt.schema import unique
from cdiff_rt.settings import SETTINGS, Settings

LARGEST_FILE, LONGEST_LINE = 2**30, 2**20  # bytes
PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Job:
    """One image."""

    id: str  # its file's name without the suffix
    conditions: dict[str, Condition]  # by modality; a Path where it is a file
    settings: Settings

    def request(self, identity: dict) -> str:
        """sha256 of all that the image follows from: settings, conditions, the files' content, and what makes it."""
        conditions = {name: _content(value) for name, value in self.conditions.items()}
        settings = self.settings.told() | {"without": self.settings.without}
        settings.pop("tier", None)  # a name, and what it stands for may change
        whole = {"conditions": conditions, "settings": settings, "identity": identity}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _content(value: Condition) -> str | list[str]:
    if not isinstance(value, Path):
        return str(value)
    try:
        return [value.name, sha256(value)]
    except OSError as error:
        raise BadInput(str(value), f"it cannot be read ({error.strerror})", "check the path") from None


def read_jobs(path: Path, manifest: Manifest) -> list[Job]:
    """All rows. Paths in them start at the file's own folder. Raises BadInput, naming the line, if any row is wrong."""
    images.check_plain_file(path, "jobs", LARGEST_FILE)
    jobs: list[Job] = []
    lines: dict[str, int] = {}  # by id; some disks do not tell capital letters from small ones
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            job = _read_row(line, number, path.absolute().parent, manifest)
            if job.id.casefold() in lines:
                raise BadInput("id", f"{job.id!r} is that of line {lines[job.id.casefold()]} too", "give each its own")
        except CdiffError as error:
            raise BadInput(f"{path}, line {number}: {error.what}", error.seen, error.remedy) from None
        lines[job.id.casefold()] = number
        jobs.append(job)
    if not jobs:
        raise BadInput(f"jobs {path}", "it has no row", "write one object a line")
    return jobs


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            _check_encoding(path, file.read(4))
            file.seek(0)
            while line := file.readline(LONGEST_LINE + 1):
                yield line.removeprefix(codecs.BOM_UTF8)  # Windows begins a file with one
    except OSError as error:
        raise BadInput(f"jobs {path}", f"it cannot be read ({error.strerror})", "check the path") from None


def _check_encoding(path: Path, start: bytes) -> None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise BadInput(f"jobs {path}", "it is UTF-16 or UTF-32, as some editors and shells write", "save it as UTF-8")


def _read_row(line: bytes, number: int, folder: Path, manifest: Manifest) -> Job:
    row = _parse(line)
    name = row.pop("id", f"{number:06d}")
    name = str(name) if type(name) is int else name
    if not isinstance(name, str) or not PLAIN_ID.fullmatch(name):
        remedy = "take up to 200 letters, digits, dots, dashes and underscores, and begin with a letter or digit"
        raise BadInput("id", f"{name!r:.80}", remedy)
    modalities = {modality.name: modality for modality in manifest.modalities}
    written = {key: row.pop(key) for key in modalities if key in row}
    conditions = {key: value for key, value in written.items() if value is not None}
    job = Job(name, conditions, _settings(row, modalities, manifest, folder))
    _check(job, manifest)
    return replace(
        job, conditions={key: _find(value, key, modalities[key].kind, folder) for key, value in conditions.items()}
    )


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise BadInput("row", f"it is longer than {LONGEST_LINE} bytes", "a row is one image's, and ends with its line")
    try:
        text = line.decode("utf-8").strip()
        row = json.loads(text, object_pairs_hook=unique, parse_constant=_no_number, parse_float=_number)
    except UnicodeDecodeError:
        raise BadInput("row", "not UTF-8 text", "save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise BadInput("row", f"not JSON ({error})", _remedy(text)) from None
    if not isinstance(row, dict):
        raise BadInput("row", f"a {type(row).__name__}", "write one object a line")
    return row


def _remedy(text: str) -> str:
    """For a line that is no JSON: what people write instead."""
    if text.endswith(","):
        return "leave out the comma after it: each line is an object of its own"
    if re.search(r",\s*[}\]]", text):
        return "leave out the comma before the bracket that closes"
    if text[:1] in ("[", "]"):
        return "write one object a line, without a list around them"
    if text == "{" or not text.endswith("}"):
        return "write each object whole on one line"
    return "write one object a line"


def _number(text: str) -> float:
    """7.0 is 7, which is how other programs write a whole number."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _settings(row: dict[str, Any], modalities: Collection[str], manifest: Manifest, folder: Path) -> Settings:
    for name in row:
        if name not in SETTINGS or name == "batch":
            known = ", ".join(("id", *modalities, *(setting for setting in SETTINGS if setting != "batch")))
            raise BadInput("key", f"{name!r:.80}", f"a row has {known}")
    if "labels" in row:
        row["labels"] = order_of("labels", row["labels"], folder)
    if "influence" in row:
        row["influence"] = read_weights("influence", row["influence"], folder)
    if "region" in row:
        row["region"] = read_regions("region", row["region"], folder)
    return Settings(**row)


def _find(value: Any, name: str, kind: str, folder: Path) -> Condition:
    if not isinstance(value, str):
        raise BadInput(name, f"{value!r:.80}", "give a string")
    return KINDS[kind].find(value, name, folder)


def _check(job: Job, manifest: Manifest) -> None:
    """Raises what `Pipeline.generate` would, but for the content of files."""
    _check_sampling(job.settings.sampling(), manifest.schedule)
    chosen_of(manifest, job.conditions, job.settings.without)


@functools.lru_cache
def _check_sampling(how: Sampling, schedule: Schedule) -> None:
    how.table(schedule)  # not for each of a million rows
