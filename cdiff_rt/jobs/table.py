"""Rows of a CSV file, as spreadsheets write it: the first line names the columns, and an empty cell is not given."""

import csv
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

from cdiff_rt import schema
from cdiff_rt.errors import BadInput, named_as
from cdiff_rt.jobs.rows import META, Row, number_of
from cdiff_rt.settings import ABOUT, SETTINGS

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}  # by suffix; the one that the first line has most of
OF_META = f"{META}."  # meta.camera is a column of its own, and a key of meta
NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?")
QUOTES = 'put a cell with delimiters or line ends in quotes, and write a quote in it as ""'
TRUTHS = {"true": True, "false": False}


def rows_of(
    lines: Iterable[str], delimiters: str, path: str, check: Callable[[Collection[str]], None]
) -> Iterator[Row]:
    """Those below the header, whose names `check` may refuse. Raises BadInput for a header that is none."""
    lines = iter(lines)
    above, first = next(((at, line) for at, line in enumerate(lines, 1) if line.strip()), (1, ""))
    delimiter = max(delimiters, key=first.count)
    with named_as(f"{path}, line {above}, which names the columns:"):
        header = _header(first, delimiter)
        check([META if name.startswith(OF_META) else name for name in header if name])
    reader, number = _reader(lines, delimiter), 0
    while True:
        line, number = above + reader.line_num + 1, number + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, number, partial(_refuse, f"not CSV ({error})", QUOTES))
            continue
        if any(cells):
            yield Row(line, number, partial(_read, header, cells))


def _reader(lines: Iterable[str], delimiter: str) -> Any:
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)


def _header(line: str, delimiter: str) -> list[str]:
    try:
        names = [cell.strip() for row in _reader([line], delimiter) for cell in row]
    except csv.Error as error:
        raise BadInput("columns", f"not CSV ({error})", QUOTES) from None
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if META in names and any(name.startswith(OF_META) for name in names):
        twice.append(META)
    if twice:
        raise BadInput("columns", f"{twice[0]!r:.80} stands twice", "give each its own name")
    return names


def _refuse(seen: str, remedy: str) -> Any:
    raise BadInput("row", seen, remedy)


def _read(header: list[str], cells: list[str]) -> dict[str, Any]:
    """The cells that are not empty, by name, as JSON would have them. Raises BadInput."""
    while len(cells) > len(header) and not cells[-1]:
        cells.pop()
    if len(cells) != len(header):
        _refuse(f"{len(cells)} cells, but {len(header)} columns have a name", QUOTES)
    if any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
        _refuse("not UTF-8 text", "save the file as UTF-8 (in a spreadsheet, as CSV UTF-8)")
    row: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=True):
        if cell and not name:
            _refuse(f"{cell!r:.80} in a column without a name", "give it one, or leave the column out")
        if cell and name.startswith(OF_META):
            row.setdefault(META, {})[name.removeprefix(OF_META)] = cell
        elif cell:
            row[name] = value_of(name, cell)
    return row


def value_of(name: str, cell: str, kind: type | None = None) -> Any:
    """A cell's text as its column wants it; what cannot be read stays a text, which is refused as any other would be.

    The `kind` of a setting is known.
    """
    kind = kind or (ABOUT[name].value_type if name in ABOUT else str)
    if cell[0] in "[{" and (name in SETTINGS or name == META):
        try:
            return schema.parse(cell)
        except ValueError as error:
            raise BadInput(name, f"not JSON ({error})", "what begins with a bracket is JSON") from None
    if kind in (int, float) and NUMBER.fullmatch(cell):
        return int(cell) if cell.lstrip("+-").isdigit() else number_of(cell)
    if kind is bool:
        return TRUTHS.get(cell.lower(), cell)
    return [cell] if isinstance(getattr(SETTINGS.get(name), "default", None), tuple) else cell
