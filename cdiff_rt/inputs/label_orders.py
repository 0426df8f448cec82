"""What the numbers of a mask mean: an order that is known by name, or one that a user writes down.

    0 = background
    17 = hair

Such a file has a line for each number of the mask, with the class or label that it means here; or classes alone, the
first of which is number 0. In JSON it is an object or a list. An order is kept as one line, `0=background,17=hair`.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cdiff_rt.errors import BadInput, BadRequest
from cdiff_rt.inputs.images import check_plain_file
from cdiff_rt.inputs.palette import CLASSES, ORDERS, USUAL_ORDER

LARGEST_FILE, LARGEST_NUMBER = 2**16, 2**16 - 1  # bytes, and what 16 bits hold
HELP = "write `number = class` in each line, or one class a line from number 0 on (docs/masks.md)"


def order_of(name: str, value: Any, folder: Path | None = None) -> str:
    """An order's name, or the content of a file, from the folder on, in one line; such a line stays as it is.

    Raises BadRequest, BadInput.
    """
    path = (folder or Path()) / value if isinstance(value, str | Path) and str(value) else None
    written = "=" in str(value)
    if path is None or not (written or str(value) in ORDERS or os.path.lexists(path)):
        remedy = f"give {' or '.join(ORDERS)}, a file of the labels' order, or such as 0=background,17=hair"
        raise BadRequest(name, f"{value!r:.80} is no order and no file", remedy)
    if str(value) in ORDERS:
        return str(value)
    pairs = list(_pairs(name, _content(name, path) if os.path.lexists(path) or not written else str(value)))
    numbers = [number for number, _ in pairs]
    twice = [number for number in numbers if numbers.count(number) > 1]
    if twice or not pairs or max(numbers) > LARGEST_NUMBER:
        seen = f"{twice[0]} is given twice" if twice else f"{max(numbers)} is too large" if pairs else "it has no line"
        raise BadInput(f"{name} {value!s:.80}", seen, f"give each number from 0 to {LARGEST_NUMBER} once; {HELP}")
    return ",".join(f"{number}={word}" for number, word in pairs)


def labels_by_number(order: str, classes: int) -> dict[int, int]:
    """The model's label of each number that a mask in this order may have. Raises BadRequest for a class it lacks."""
    if order == USUAL_ORDER:
        return {label: label for label in range(classes)}
    pairs = list(enumerate(ORDERS[order]) if order in ORDERS else _pairs("labels", order))
    known = {str(label): label for label in range(classes)}
    known |= {name: label for label, name in enumerate(CLASSES[:classes])}
    strange = next((word for _, word in pairs if word not in known), None)
    if strange is not None:
        raise BadRequest(
            "labels", f"{strange!r:.80}", f"name labels of 0-{classes - 1}, {', '.join(CLASSES[:classes])}"
        )
    return {number: known[word] for number, word in pairs}


def _content(name: str, path: Path) -> str:
    check_plain_file(path, name, LARGEST_FILE)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{name} {path.name}", f"it cannot be read as text ({error})", HELP) from None


def _pairs(name: str, text: str) -> Iterable[tuple[int, str]]:
    """(number, word) of JSON, of lines, or of the one line that an order is kept as."""
    try:
        read: Any = json.loads(text)
    except (ValueError, RecursionError):
        lines = [line.split("#")[0].strip() for line in text.replace(",", "\n").splitlines()]
        words = [re.split(r"\s*[=:]\s*|\s+", line) for line in lines if line]
        read = [each[0] for each in words] if all(len(each) == 1 for each in words) else words
    read = list(read.items()) if isinstance(read, Mapping) else read if isinstance(read, list) else [[]]
    if not any(isinstance(each, list | tuple) for each in read):
        read = list(enumerate(read))
    for each in read:
        number, word = map(str, each) if isinstance(each, list | tuple) and len(each) == 2 else ("", "")
        if not re.fullmatch(r"[0-9]{1,9}", number) or not re.fullmatch(r"[\w-]{1,80}", word := word.strip().lower()):
            raise BadInput(name, f"{each!r:.80}", HELP)
        yield int(number), word
