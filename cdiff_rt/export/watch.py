"""Who wants to know how far an export has come is told so: a checkpoint of some gigabytes takes minutes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

Watch = Callable[[int, str], AbstractContextManager[Callable[[], object]]]  # (how many, of what) -> called for each
Item = TypeVar("Item")


def unwatched(count: int, what: str) -> AbstractContextManager[Callable[[], object]]:
    return nullcontext(lambda: None)


def counted(items: Iterable[Item], done: Callable[[], object]) -> Iterator[Item]:
    """Calls `done` after each."""
    for item in items:
        yield item
        done()
