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


class _Once(logging.Filter):
    """Nothing is said twice within a block of a thread: a condition may be read for several reasons."""

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    @property
    def blocks(self) -> list[_Block]:
        """Those that this thread is in, the outermost first: what was said in any of them was said in that one."""
        blocks: list[_Block] = self._here.__dict__.setdefault("blocks", [])
        return blocks

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        repeated = any(line in block.said for block in self.blocks)
        for block in self.blocks:
            if record.levelno >= logging.WARNING and line not in block.said:
                block.warnings.append(line)
            block.said.add(line)
        return not repeated


_once = _Once()
log.addFilter(_once)


@contextmanager
def collected() -> Iterator[list[str]]:
    """What is warned of on this thread within the block, which says each line once."""
    block = _Block()
    _once.blocks.append(block)
    try:
        yield block.warnings
    finally:
        _once.blocks.pop()
