"""What became of each row, as lines of JSON in a folder: a file for each shard, and what they come to, `dataset.json`.

A run has its file to itself. Whoever begins or ends does so in turn, so that each sees what others have left.
"""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from cdiff_rt import schema
from cdiff_rt.jobs.rows import Json
from cdiff_rt.outputs import files

DATASET = "dataset.json"
TURN = "jobs"  # what one process at a time has of a folder, to begin or to end a run
_NAME = re.compile(r"results-([0-9]{1,9})-of-([0-9]{1,9})")


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a line of the results. It has an image's file, or an error."""

    id: str
    seed: int
    seconds: float
    file: str | None = None
    sha256: str | None = None  # of the file
    request: str | None = None  # see Job.request
    error: str | None = None
    warnings: tuple[str, ...] = ()
    beside: dict[str, str] = field(default_factory=dict)  # sha256 of what lies beside the file, see `digest`
    scale: int = 1  # of the pictures there
    meta: Json = None  # as the row has it
    parameters: dict | None = None  # as the image carries them

    def line(self) -> bytes:
        usual = {of.name: of.default if of.default_factory is MISSING else of.default_factory() for of in fields(self)}
        told = {name: value for name, value in vars(self).items() if value != usual[name]}
        return json.dumps(told).encode() + b"\n"


def name_of(index: int, count: int) -> str:
    return f"results-{index}-of-{count}.jsonl"


def results_in(out: Path, *, but: int = 0) -> list[Path]:
    """All results of a folder, in order, without those of `but` shards."""
    found = {path: _NAME.fullmatch(path.stem) for path in out.glob("results-*-of-*.jsonl")}
    numbers = {path: (int(match[2]), int(match[1])) for path, match in found.items() if match}
    return sorted((path for path, (count, _) in numbers.items() if count != but), key=numbers.__getitem__)


def read_results(path: Path) -> dict[str, Outcome]:
    """By id. A line that is not whole is left out: its run ended there."""
    found = {}
    with path.open("rb") as file:
        for line in file:
            try:
                outcome = schema.from_json(Outcome, schema.parse(line.decode()), "line")
            except (ValueError, TypeError):
                continue
            found[outcome.id] = outcome
    return found


def write_results(path: Path, outcomes: Iterable[Outcome]) -> None:
    with files.all_or_nothing(path) as new:
        (new / path.name).write_bytes(b"".join(outcome.line() for outcome in outcomes))


def stamp(path: Path) -> tuple[int, ...]:
    """Another one after every change of a file; empty if there is none."""
    try:
        about = path.stat()
    except OSError:
        return ()
    return about.st_ino, about.st_size, about.st_mtime_ns


def check_idle(paths: Iterable[Path]) -> None:
    """Raises BadRequest if a run is writing one of these results."""
    for path in paths:
        with files.own_folder(path.parent, path.stem):
            pass


def keep_only(path: Path, ids: Collection[str]) -> None:
    """Leaves the lines of these rows in the results of another split, or nothing."""
    before = read_results(path)
    left = [outcome for outcome in before.values() if outcome.id in ids]
    if not left:
        path.unlink()
    elif len(left) < len(before):
        write_results(path, left)


def write_dataset(out: Path, about: dict[str, Any], makers: Collection[str]) -> None:
    """Counts all results, and tells what their images share; `makers` are the parameters that say what made them."""
    told = about | _summary(results_in(out), makers)
    with files.all_or_nothing(out / DATASET) as new:
        (new / DATASET).write_text(json.dumps(told, indent=1) + "\n")


def _summary(paths: list[Path], makers: Collection[str]) -> dict[str, Any]:
    made, failed, made_by, shared = 0, 0, [], None
    for outcome in (outcome for path in paths for outcome in read_results(path).values()):
        made, failed = made + bool(outcome.file), failed + bool(outcome.error)
        if outcome.parameters is None:
            continue
        own = outcome.parameters
        maker = {name: own[name] for name in makers if name in own}
        made_by += [] if maker in made_by else [maker]
        usual = own if shared is None else shared
        shared = {name: value for name, value in usual.items() if name not in makers and own.get(name) == value}
    counts = {"made": made, "failed": failed, "results": [path.name for path in paths]}
    return counts | {"made_by": made_by, "shared": shared or {}}
