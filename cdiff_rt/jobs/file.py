"""A file of jobs, as JSON Lines or a table: checked as a whole before any of it runs.

{"id": "man-01", "mask": "masks/1.png", "text": "This man has a long beard.", "seed": 7}
"""

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cdiff_rt.errors import BadInput, CdiffError
from cdiff_rt.inputs import images
from cdiff_rt.jobs import table
from cdiff_rt.jobs.rows import Defaults, Job, Row, check_keys, job_of, number_of
from cdiff_rt.manifest import Manifest
from cdiff_rt.notes import log
from cdiff_rt.schema import unique

LARGEST_FILE, LONGEST_LINE = 2**30, 2**20  # bytes
TOO_LONG = (f"it is longer than {LONGEST_LINE} bytes", "a row is one image's, and ends with its line")
MOST_NAMED = 20  # of what is wrong, each in a line of its own


def read_jobs(path: Path, manifest: Manifest, usual: Defaults | None = None) -> list[Job]:
    """All rows. Paths in them start at the file's own folder.

    Raises BadInput if any row is wrong: with its line if it is one, else each of the first is told, and then all
    are counted.
    """
    images.check_plain_file(path, "jobs", LARGEST_FILE)
    jobs: list[Job] = []
    wrong: list[BadInput] = []
    lines: dict[str, int] = {}  # by id; some disks do not tell capital letters from small ones
    read = partial(_job, path, manifest, usual or Defaults(), lines)
    for row in _rows(path, manifest):
        try:
            jobs.append(read(row))
        except CdiffError as error:
            told = BadInput(f"{path}, line {row.line}: {error.what}", error.seen, error.remedy)
            wrong.append(told if len(wrong) < MOST_NAMED else wrong[-1])  # of a million, few stay
    rows = len(jobs) + len(wrong)
    if not rows:
        raise BadInput(f"jobs {path}", "it has no row", "write one object a line, or one row below a table's header")
    _check(path, wrong, rows)
    return jobs


def _check(path: Path, wrong: list[BadInput], rows: int) -> None:
    if len(wrong) == 1:
        raise wrong[0]
    for error in wrong[:MOST_NAMED]:
        log.error("%s", error)
    if wrong:
        these = "the first of them are named above" if len(wrong) > MOST_NAMED else "they are named above"
        raise BadInput(f"jobs {path}", f"{len(wrong)} of {rows} rows are wrong", f"correct them, {these}")


def _job(path: Path, manifest: Manifest, usual: Defaults, lines: dict[str, int], row: Row) -> Job:
    """`lines` are those of the rows before, by id."""
    job = job_of(row, path.absolute().parent, manifest, usual)
    before = lines.setdefault(job.id.casefold(), row.line)
    if before != row.line:
        raise BadInput("id", f"{job.id!r} is that of line {before} too", "give each its own")
    return job


def _rows(path: Path, manifest: Manifest) -> Iterator[Row]:
    delimiters = table.DELIMITERS.get(path.suffix.lower())
    if not delimiters:
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                yield Row(number, number, partial(_parse, line))
        return
    yield from table.rows_of(_texts(path), delimiters, str(path), partial(check_keys, manifest=manifest))


def _texts(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if len(line) > LONGEST_LINE:
            raise BadInput(f"{path}, line {number}", *TOO_LONG)
        yield line.decode(errors="surrogateescape")


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            _check_encoding(path, file.read(4))
            file.seek(0)
            while line := file.readline(LONGEST_LINE + 1):
                yield line.removeprefix(codecs.BOM_UTF8)  # Windows begins a file with one
                while len(line) > LONGEST_LINE and not line.endswith(b"\n"):  # the rest of it is no line
                    line = file.readline(LONGEST_LINE + 1) or b"\n"
    except OSError as error:
        raise BadInput(f"jobs {path}", f"it cannot be read ({error.strerror})", "check the path") from None


def _check_encoding(path: Path, start: bytes) -> None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise BadInput(f"jobs {path}", "it is UTF-16 or UTF-32, as some editors and shells write", "save it as UTF-8")


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise BadInput("row", *TOO_LONG)
    try:
        text = line.decode("utf-8").strip()
        row = json.loads(text, object_pairs_hook=unique, parse_constant=_no_number, parse_float=number_of)
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
        return "write each object whole on one line (a table is a file whose name ends in .csv or .tsv)"
    return "write one object a line"


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")
