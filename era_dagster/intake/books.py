"""The books a run has open: each source is read once for all its chapters, and let go when other books follow."""

from collections import OrderedDict
from pathlib import Path

from era_dagster.domain.doctrine import SourceChapter
from era_dagster.domain.errors import CorruptInput
from era_dagster.domain.identity import partition_key
from era_dagster.intake.reader import read_source

# Chapters come sorted by source, so two are enough: the one being finished and the one being started.
_OPEN_SOURCES = 2


class BookShelf:
    """Hands out single chapters of sources on disk; used by one thread."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, dict[str, tuple[SourceChapter, bytes]]] = OrderedDict()

    def chapter(self, source_path: str, key: str) -> tuple[SourceChapter, bytes]:
        """The chapter and the SHA-256 of its source. Raises `CorruptInput` when it cannot be read or is not there."""
        if source_path not in self._open:
            self._open[source_path] = {
                partition_key(book.slug, chapter.chapter): (chapter, book.sha256)
                for book in read_source(Path(source_path))
                for chapter in book.chapters
            }
            while len(self._open) > _OPEN_SOURCES:
                self._open.popitem(last=False)
        found = self._open[source_path].get(key)
        if found is None:
            raise CorruptInput(
                f"{source_path} no longer holds {key}.",
                path=Path(source_path),
                hint="The next look at the drop folder retires it.",
            )
        return found
