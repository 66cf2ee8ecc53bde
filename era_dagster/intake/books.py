"""Hands out single books of the drop to a run that works chapter by chapter, reading each source once.

A small memory over `intake.reader`, for one thread; which chapters are wanted is the caller's business.
"""

from collections import OrderedDict
from pathlib import Path

from era_dagster.domain.errors import CorruptInput
from era_dagster.domain.identity import parse_partition_key
from era_dagster.intake.reader import BookRead, read_source

# A run takes chapters in the order of their keys, so one book at a time; the others wait for stragglers.
_SOURCES_KEPT = 4


class BookShelf:
    """Reads sources and keeps the last few, so that the chapters of one book cost one reading."""

    def __init__(self) -> None:
        self._sources: OrderedDict[str, tuple[BookRead, ...]] = OrderedDict()

    def book(self, source_path: str, partition_key: str) -> BookRead:
        """The book that holds `partition_key`; raises `CorruptInput` when the source cannot be read or lacks it."""
        slug, chapter = parse_partition_key(partition_key)
        if source_path in self._sources:
            self._sources.move_to_end(source_path)
        else:
            self._sources[source_path] = read_source(Path(source_path))
            if len(self._sources) > _SOURCES_KEPT:
                self._sources.popitem(last=False)
        for book in self._sources[source_path]:
            if book.slug == slug:
                return book
        raise CorruptInput(
            f"{source_path} no longer holds chapter {chapter} of {slug}.",
            path=Path(source_path),
            hint="The next look at the drop folder retires it.",
        )
