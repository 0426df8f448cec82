"""What the library says while it works: notes and warnings, through the logger "cdiff_rt"."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

log = logging.getLogger("cdiff_rt")


@dataclass(frozen=True)
class _Block:
    said: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)


class _Here(threading.local):
    """Of each thread: the blocks that it is in, the outermost first, and whether it is to be quiet."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.hushed = False


class _Once(logging.Filter):
    """Nothing is said twice within a block of a thread: a condition may be read for several reasons."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _here.hushed and record.levelno < logging.ERROR:
            return False
        line = record.getMessage()
        repeated = any(line in block.said for block in _here.blocks)
        for block in _here.blocks:
            if record.levelno >= logging.WARNING and line not in block.said:
                block.warnings.append(line)
            block.said.add(line)
        return not repeated


_here = _Here()
log.addFilter(_Once())


@contextmanager
def collected() -> Iterator[list[str]]:
    """What is warned of on this thread within the block, which says each line once."""
    block = _Block()
    _here.blocks.append(block)
    try:
        yield block.warnings
    finally:
        _here.blocks.pop()


@contextmanager
def hushed() -> Iterator[None]:
    """This thread tells nothing within the block but errors: what is asked there is nobody's own."""
    before, _here.hushed = _here.hushed, True
    try:
        yield
    finally:
        _here.hushed = before
