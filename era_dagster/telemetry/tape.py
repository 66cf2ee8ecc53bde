"""A record of decisions that does not grow: when it is full, every second one goes, and then every second one is kept. Pure."""

from typing import Generic, TypeVar

T = TypeVar("T")


class Tape(Generic[T]):
    """Keeps at most `most` of what it is given, spread evenly over all of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[T] = []
        self._every = 1
        self._seen = 0

    def add(self, record: T) -> None:
        """One more; it may be one of those that are left out."""
        if self._seen % self._every == 0:
            self._kept.append(record)
        self._seen += 1
        if len(self._kept) >= self._most:
            self._kept = self._kept[::2]
            self._every *= 2

    def kept(self) -> tuple[T, ...]:
        """What is kept, oldest first."""
        return tuple(self._kept)
