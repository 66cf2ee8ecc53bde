"""Writes what the knowledge base holds to files elsewhere, for other programs: item lists, and entries with vectors.

Reads the tables as they are at one moment and writes whole files only (`storage.atomic_files`); never into the folders that
an ingest keeps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psycopg

from era_dagster.domain.doctrine import CATEGORIES, Category
from era_dagster.domain.errors import ConfigurationError, TransientError
from era_dagster.domain.exports import render_items
from era_dagster.domain.ministers import MinisterEntry
from era_dagster.domain.space import Space
from era_dagster.storage.atomic_files import new_file, new_folder
from era_dagster.storage.database import Database
from era_dagster.storage.spaces import live_space, space_name

Progress = Callable[[int, int], None]
_FILES = frozenset(f"{category}.json" for category in CATEGORIES)
_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written: where, how many files, items (an entry counts once for each of its domains in lists of items,
    once among the vectors) and bytes; `model` made the vectors, None for lists."""

    path: Path
    files: int
    items: int
    bytes: int
    model: str | None = None


def export_items(
    database: Database, folder: Path, *, overwrite: bool = False, progress: Progress = lambda done, total: None
) -> Exported:
    """Write `<folder>/<domain>/<category>.json`, a list of items each; all four categories of every domain with entries.

    The folder is new, empty, or with `overwrite` a former export: it is replaced whole. `progress` hears domains done and
    in all. Raises `ConfigurationError` for a folder that must not be touched, `StorageError` when it cannot be written.
    """
    files = items = size = 0
    with (
        new_folder(folder, overwrite=overwrite, is_ours=_is_item_list) as temporary,
        database.connection() as connection,
    ):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        domains = [
            domain for (domain,) in connection.execute("SELECT DISTINCT domain FROM minister_entries ORDER BY domain")
        ]
        for done, domain in enumerate(domains, start=1):
            entries = _entries(connection, domain)
            target = temporary / domain
            target.mkdir()
            for category in CATEGORIES:
                content = render_items(domain, category, entries[category])
                (target / f"{category}.json").write_bytes(content)
                files, items, size = files + 1, items + len(entries[category]), size + len(content)
            progress(done, len(domains))
    return Exported(path=folder, files=files, items=items, bytes=size)


def export_vectors(
    database: Database, path: Path, *, overwrite: bool = False, progress: Progress = lambda done, total: None
) -> Exported:
    """Write one line of JSON for each entry of the live space: its id, text, category, domains, book, chapter, weight,
    the model, and its vector of length 1 (half precision, as it is compared), in the order of the ids.

    Memory stays flat. Raises `ConfigurationError` before anything is embedded and when `path` is there without
    `overwrite`, `StorageError` when it cannot be written.
    """
    items = size = 0
    with new_file(path, overwrite=overwrite) as file, _reading_live(database) as (space, total, rows):
        for row in rows:
            line = orjson.dumps(_record(space, row), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
            file.write(line)
            items, size = items + 1, size + len(line)
            if items % _ROWS_AT_ONCE == 0:
                progress(items, total)
        progress(items, total)
    return Exported(path=path, files=1, items=items, bytes=size, model=space.model)


def _is_item_list(path: Path) -> bool:
    return len(path.parts) == 2 and path.name in _FILES


def _entries(connection: psycopg.Connection, domain: str) -> dict[Category, list[MinisterEntry]]:
    entries: dict[Category, list[MinisterEntry]] = {category: [] for category in CATEGORIES}
    for category, identifier, text, book, chapter, weight, embedding_id in connection.execute(
        "SELECT category, doctrine_id::text, text, book, chapter, weight, embedding_id::text FROM minister_entries"
        ' WHERE domain = %s ORDER BY book COLLATE "C", chapter, position, doctrine_id',
        (domain,),
    ):
        entries[category].append(
            MinisterEntry(
                id=identifier, text=text, book=book, chapter=chapter, weight=weight, embedding_id=embedding_id
            )
        )
    return entries


@contextmanager
def _reading_live(database: Database) -> Iterator[tuple[Space, int, Iterator[tuple[Any, ...]]]]:
    """The live space, how many entries it has, and their rows as of one moment.

    Without a lock on the register of spaces, which would make a promotion wait for us: the tables are fixed when the
    cursor is opened, and asked before and after which space they were of.
    """
    space = live_space(database)
    if space is None:
        raise ConfigurationError("There are no vectors yet.", hint="`era ingest` makes them.")
    with database.connection() as connection, connection.cursor(name="every_entry", binary=True) as cursor:
        cursor.itersize = _ROWS_AT_ONCE
        count = connection.execute("SELECT count(*) FROM doctrine_embeddings_all").fetchone()
        cursor.execute(
            "SELECT doctrine_id::text, text, category, domains, source_book, source_chapter, weight, embedding"
            " FROM doctrine_embeddings_all ORDER BY doctrine_id"
        )
        now = live_space(database)
        if now is None or now.stamp != space.stamp:
            raise TransientError(
                f"The live space was switched from {space_name(space)} while the export began.", hint="Run it again."
            )
        yield space, count[0] if count else 0, iter(cursor)


def _record(space: Space, row: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "doctrine_id": row[0],
        "text": row[1],
        "category": row[2],
        "domains": row[3],
        "book": row[4],
        "chapter": row[5],
        "weight": row[6],
        "model": space.model,
        "embedding": np.asarray(row[7].to_numpy(), dtype=np.float32),
    }
