"""The books a run has open: each source is read once for all its chapters, and let go when other books follow."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from era_dagster.domain.doctrine import SourceChapter
from era_dagster.domain.errors import CorruptInput
from era_dagster.domain.identity import partition_key
from era_dagster.intake.reader import BookRead, Problem, read_source

# Chapters come sorted by source, so two are enough: the one being finished and the one being started.
_OPEN_SOURCES = 2


class _Source:
    """What was read of one source: its chapters with the SHA-256 of its files, and why others were left out, by key."""

    def __init__(self, books: Sequence[BookRead]) -> None:
        self.chapters: dict[str, tuple[SourceChapter, bytes]] = {
            partition_key(book.slug, chapter.chapter): (chapter, book.sha256)
            for book in books
            for chapter in book.chapters
        }
        self.left_out: dict[str, Problem] = {
            problem.partition_key: problem for book in books for problem in book.problems if problem.partition_key
        }


class BookShelf:
    """Hands out single chapters of sources on disk; used by one thread."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Source] = OrderedDict()

    def chapter(self, source_path: str, key: str) -> tuple[SourceChapter, bytes]:
        """The chapter and the SHA-256 of its source. Raises `CorruptInput` when it cannot be read or is not there."""
        if source_path not in self._open:
            self._open[source_path] = _Source(read_source(Path(source_path)))
            while len(self._open) > _OPEN_SOURCES:
                self._open.popitem(last=False)
        source = self._open[source_path]
        found = source.chapters.get(key)
        if found is None and key in source.left_out:
            problem = source.left_out[key]
            raise CorruptInput(
                f"{problem.path} at {problem.location}: {problem.reason}.",
                path=problem.path,
                hint="Mend it there; until then the chapter stays as it was stored last, if it was.",
            )
        if found is None:
            raise CorruptInput(
                f"{source_path} no longer holds {key}.",
                path=Path(source_path),
                hint="The next look at the drop folder retires it.",
            )
        return found
