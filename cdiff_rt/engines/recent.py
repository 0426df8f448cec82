"""What was made last and may be needed again, and no more of it than a few: each size that a run has is another."""

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


class Recent(Generic[Key, Made]):
    """At most `most` things by key. What was asked for longest ago is let go of first."""

    def __init__(self, most: int) -> None:
        self._most, self._kept = most, dict[Key, Made]()

    def __iter__(self) -> Iterator[Made]:
        return iter(self._kept.values())

    def get(self, key: Key, make: Callable[[], Made]) -> Made:
        """What is kept under a key; made first if there is none."""
        kept = self.take(key)
        made = make() if kept is None else kept
        self.put(key, made)
        return made

    def take(self, key: Key) -> Made | None:
        """Out of here, for whoever is not to share it until it is put back."""
        return self._kept.pop(key, None)

    def put(self, key: Key, made: Made) -> None:
        self._kept.pop(key, None)
        while len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = made

    def clear(self) -> None:
        self._kept.clear()
