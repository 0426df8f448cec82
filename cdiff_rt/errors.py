"""The one exception type for users: what was wrong, the value seen, what to do. The CLI prints it as one line."""

import errno
import math
import operator
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}  # no file's fault
# As C++, onnxruntime, openvino and torch say it.
_NO_MEMORY = re.compile(
    r"bad_alloc|bad array new length|out of memory|(can.?t|cannot|fail\w*|unable) (to )?alloc", re.IGNORECASE
)
# More than one letter, which would be a disk of Windows; a path has no two slashes in a row any more.
_ADDRESS = re.compile(r"(?!data:)[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)


class CdiffError(Exception):
    """`exit_code` is the command's: 2 usage, 3 bad input, 4 bad artefact, 5 environment, 6 resource."""

    exit_code = 1

    def __init__(self, what: str, seen: str, remedy: str) -> None:
        super().__init__(f"{what}: {seen}; {remedy}")
        self.what, self.seen, self.remedy = what, seen, remedy

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.what, self.seen, self.remedy)  # of one message pickle could not make three


class BadRequest(CdiffError):
    """A parameter of the call is out of range or contradicts another."""

    exit_code = 2


class BadInput(CdiffError):
    """A mask, an image or a text cannot be used."""

    exit_code = 3


class BadArtefact(CdiffError):
    """A bundle, a checkpoint or an engine is not what it should be."""

    exit_code = 4


class BadEnvironment(CdiffError):
    """Something this needs is not installed or does not work here."""

    exit_code = 5


class OutOfResource(CdiffError):
    """Memory, disk or time ran out."""

    exit_code = 6


def without_file(path: str | Path) -> tuple[str, str]:
    """What is said of a path at which no file is, and the remedy."""
    if not is_address(path):
        return "there is no such file", "check the path"
    if str(path).startswith("file:"):
        return "this is an address, not a path", "leave out file://"
    return "this is an address, and nothing is fetched from any", "download it, and give the path of the file"


def is_address(path: str | Path) -> bool:
    return bool(_ADDRESS.match(str(path)))


@contextmanager
def named_as(argument: str) -> Iterator[None]:
    """What is refused within the block was given as this argument, which its name alone would not say."""
    try:
        yield
    except CdiffError as error:
        raise type(error)(f"{argument} {error.what}", error.seen, error.remedy) from None


def ran_out(error: Exception) -> bool:
    """Whether an exception, of Python's or of a library, is for want of memory."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def as_told(error: Exception) -> CdiffError:
    """Any error as one for users: what nobody foresaw with its place, so that it can be reported."""
    if isinstance(error, CdiffError):
        return error
    if ran_out(error):
        return OutOfResource("memory", "it ran out", "choose a smaller batch or a larger machine")
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        return OutOfResource("this machine", str(error), "free what it lacks, and go on")
    if isinstance(error, ModuleNotFoundError):
        remedy = "`cdiff-rt doctor` lists what is there, and pyproject.toml the extra that brings it"
        return BadEnvironment("library", f"{error.name} is not installed", remedy)
    place = (traceback.extract_tb(error.__traceback__) or [None])[-1]
    where = f" in {Path(place.filename).name}:{place.lineno}" if place else ""
    seen = f"{type(error).__name__}{where}: {' '.join(str(error).split())[:500]}"
    return CdiffError("unforeseen", seen, "please report it; `cdiff-rt --debug` tells more")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BadRequest(name, repr(value), f"choose one of {', '.join(choices)}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or not math.isfinite(value):  # the second fails for very large whole numbers
        low_, high_ = (str(int(end)) if end == int(end) else f"{end:g}" for end in (low, high))
        raise BadRequest(name, f"{value} is outside {low_}-{high_}", "choose a number in that range")


def check_type(name: str, value: object, kind: Any, remedy: str) -> None:
    if not isinstance(value, kind):
        raise BadRequest(name, f"a {type(value).__name__}", remedy)


def whole(name: str, value: Any) -> int:
    """Any whole number, numpy's too, as Python's own; but neither True nor "7". Raises BadRequest."""
    try:
        return operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except TypeError:
        raise BadRequest(name, f"{value!r:.80}", "give a whole number") from None


def real(name: str, value: Any) -> float:
    """Any number, as Python's own; but neither a truth value, nor a text, nor an array of several."""
    kind, rank = str(getattr(value, "dtype", type(value).__name__)), getattr(value, "ndim", 0)  # as arrays have them
    try:
        if "bool" in kind or rank or isinstance(value, str) or not hasattr(value, "__float__"):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRequest(name, f"{value!r:.80}", "give a number") from None
