"""Reads back what is stored of chapters: text, entries and chunks, as plain values to compare. Read-only."""

from collections.abc import Sequence
from dataclasses import dataclass

from era_dagster.storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChapter:
    """One chapter as the tables have it. `entries`: (doctrine id, domain, category, text); `chunks`: (start, end, text)
    in order."""

    text: str
    entries: frozenset[tuple[str, str, str, str]]
    chunks: list[tuple[int, int, str]]


def stored_chapters(database: Database, keys: Sequence[str]) -> dict[str, StoredChapter]:
    """The chapters among `keys` that are stored, by partition key, in one snapshot."""
    if not keys:
        return {}
    entries: dict[str, set[tuple[str, str, str, str]]] = {}
    chunks: dict[str, list[tuple[int, int, str]]] = {}
    with database.connection() as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        texts = connection.execute(
            "SELECT partition_key, text FROM doctrine_sources WHERE partition_key = ANY(%s)", (list(keys),)
        ).fetchall()
        for key, *entry in connection.execute(
            "SELECT partition_key, doctrine_id::text, domain, category, text FROM minister_entries"
            " WHERE partition_key = ANY(%s)",
            (list(keys),),
        ):
            entries.setdefault(key, set()).add((entry[0], entry[1], entry[2], entry[3]))
        for key, start, end, text in connection.execute(
            "SELECT partition_key, start_offset, end_offset, text FROM chapter_chunks WHERE partition_key = ANY(%s)"
            " ORDER BY partition_key, position",
            (list(keys),),
        ):
            chunks.setdefault(key, []).append((start, end, text))
    return {
        key: StoredChapter(text=text, entries=frozenset(entries.get(key, ())), chunks=chunks.get(key, []))
        for key, text in texts
    }
