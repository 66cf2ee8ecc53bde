"""The rows of a space beside the live one: which chapters are due, their stored texts, and their vectors, chapter by chapter.

Nothing here reads a book. A chapter is current in a space when the fingerprint of its stored texts is the one its rows
were made from; so an ingest while a space is built, or after, makes exactly the chapters due that it changed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from pgvector import HalfVector
from psycopg import sql

from era_dagster.domain.errors import ConfigurationError
from era_dagster.storage.chapters import lock_chapter
from era_dagster.storage.database import Database
from era_dagster.storage.dead_letters import DeadText
from era_dagster.storage.vectors import CHUNK_TABLE, DOMAIN_TABLE, EVERY_TABLE, replace_rows

Vectors = Sequence[npt.NDArray[np.float32] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DueChapters:
    """What a space lacks: chapters to write (partition key to fingerprint of their texts), and chapters to remove."""

    write: dict[str, bytes]
    remove: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry:
    """A doctrine entry as stored; `domains` are sorted slugs."""

    doctrine_id: Any
    category: str
    text: str
    book: str
    chapter: int
    weight: float
    domains: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChapterTexts:
    """The texts of one chapter that get a vector, and their fingerprint; `chunks` are (position, text)."""

    partition_key: str
    fingerprint: bytes
    chunks: tuple[tuple[int, str], ...]
    entries: tuple[StoredEntry, ...]

    @property
    def texts(self) -> list[str]:
        """Chunks first, in order, then entries."""
        return [text for _, text in self.chunks] + [entry.text for entry in self.entries]


def due_chapters(database: Database, space_id: int) -> DueChapters:
    """What must be done until the space is complete; chapters with dead texts are due again each time."""
    with database.connection() as connection:
        write = connection.execute(
            "SELECT f.partition_key, f.fingerprint FROM chapter_fingerprints AS f LEFT JOIN space_chapters AS c"
            " ON c.space_id = %s AND c.partition_key = f.partition_key"
            " WHERE c.fingerprint IS DISTINCT FROM f.fingerprint OR c.dead <> '[]' ORDER BY 1",
            (space_id,),
        ).fetchall()
        remove = connection.execute(
            "SELECT partition_key FROM space_chapters WHERE space_id = %s"
            " AND partition_key NOT IN (SELECT partition_key FROM chapter_fingerprints) ORDER BY 1",
            (space_id,),
        ).fetchall()
    return DueChapters(write={key: bytes(fingerprint) for key, fingerprint in write}, remove=[key for (key,) in remove])


def stored_texts(database: Database, key: str) -> ChapterTexts | None:
    """The texts of a chapter with their fingerprint, in one snapshot; None when it has left."""
    with database.connection() as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        fingerprint = _fingerprint(connection, key)
        if fingerprint is None:
            return None
        chunks = connection.execute(
            "SELECT position, text FROM chapter_chunks WHERE partition_key = %s ORDER BY position", (key,)
        ).fetchall()
        entries = connection.execute(
            "SELECT doctrine_id, min(category), min(text), min(book), min(chapter), min(weight),"
            " array_agg(domain ORDER BY domain) FROM minister_entries WHERE partition_key = %s"
            " GROUP BY doctrine_id ORDER BY doctrine_id",
            (key,),
        ).fetchall()
    return ChapterTexts(
        partition_key=key,
        fingerprint=fingerprint,
        chunks=tuple((position, text) for position, text in chunks),
        entries=tuple(
            StoredEntry(
                doctrine_id=row[0],
                category=row[1],
                text=row[2],
                book=row[3],
                chapter=row[4],
                weight=row[5],
                domains=tuple(row[6]),
            )
            for row in entries
        ),
    )


def write_space_chapter(
    database: Database, space_id: int, chapter: ChapterTexts, vectors: Vectors, dead: Sequence[DeadText]
) -> bool:
    """Make the chapter's rows in the space exactly these; `vectors` belong to `chapter.texts`, None is a dead text.

    False, and nothing is written, when the texts changed since they were read: the chapter is still due. Its domain
    tables must exist. Raises `ConfigurationError` when the space was promoted or dropped meanwhile.
    """
    key = chapter.partition_key
    with database.connection() as connection:
        lock_chapter(connection, key)
        if _fingerprint(connection, key) != chapter.fingerprint:
            return False
        _enter(connection, space_id)
        chunks, entries = vectors[: len(chapter.chunks)], vectors[len(chapter.chunks) :]
        replace_rows(
            connection,
            CHUNK_TABLE,
            key,
            [
                (key, position, HalfVector(vector))
                for (position, _), vector in zip(chapter.chunks, chunks, strict=True)
                if vector is not None
            ],
        )
        rows = [
            (entry.domains, _entry_row(entry, key, vector))
            for entry, vector in zip(chapter.entries, entries, strict=True)
            if vector is not None
        ]
        replace_rows(connection, EVERY_TABLE, key, [(list(domains), *row) for domains, row in rows])
        replace_rows(connection, DOMAIN_TABLE, key, [(domain, *row) for domains, row in rows for domain in domains])
        given_up = _given_up(connection, space_id, key)
        noted = [replace(text, dropped=(text.text, text.fingerprint) in given_up) for text in dead]
        connection.execute(
            "INSERT INTO public.space_chapters (space_id, partition_key, fingerprint, dead) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (space_id, partition_key) DO UPDATE SET fingerprint = excluded.fingerprint,"
            " dead = excluded.dead, written_at = now()",
            (space_id, key, chapter.fingerprint, json.dumps([asdict(text) for text in noted])),
        )
    return True


def remove_space_chapter(database: Database, space_id: int, key: str) -> None:
    """Take the rows of a chapter that has left out of the space."""
    with database.connection() as connection:
        lock_chapter(connection, key)
        _enter(connection, space_id)
        for table in (CHUNK_TABLE, EVERY_TABLE, DOMAIN_TABLE):
            replace_rows(connection, table, key, [])
        connection.execute(
            "DELETE FROM public.space_chapters WHERE space_id = %s AND partition_key = %s", (space_id, key)
        )


def _entry_row(entry: StoredEntry, key: str, vector: npt.NDArray[np.float32]) -> tuple[Any, ...]:
    return (
        entry.doctrine_id,
        entry.category,
        entry.text,
        entry.book,
        entry.chapter,
        entry.weight,
        key,
        HalfVector(vector),
    )


def _given_up(connection: psycopg.Connection, space_id: int, key: str) -> set[tuple[str, str]]:
    """The texts of the chapter that were given up while the space was live, each with its failure's fingerprint."""
    return set(
        connection.execute(
            "SELECT t.text, t.fingerprint FROM public.space_chapters AS c,"
            " jsonb_to_recordset(c.dead) AS t (text text, fingerprint text, dropped boolean)"
            " WHERE c.space_id = %s AND c.partition_key = %s AND t.dropped",
            (space_id, key),
        ).fetchall()
    )


def _fingerprint(connection: psycopg.Connection, key: str) -> bytes | None:
    row = connection.execute("SELECT fingerprint FROM chapter_fingerprints WHERE partition_key = %s", (key,)).fetchone()
    return None if row is None else bytes(row[0])


def _enter(connection: psycopg.Connection, space_id: int) -> None:
    """From here to its end, the transaction's bare table names are those of the space."""
    row = connection.execute(
        "SELECT schema_name FROM embedding_spaces WHERE space_id = %s AND state <> 'live'", (space_id,)
    ).fetchone()
    if row is None:
        raise ConfigurationError(
            f"Embedding space {space_id} was promoted or dropped while it was being built.",
            hint="`era spaces list` shows what there is now.",
        )
    connection.execute(sql.SQL("SET LOCAL search_path = {}, public").format(sql.Identifier(row[0])))
