"""Writes one chapter to every table it touches, in one transaction, by difference.

What is equal stays untouched (no new row version, no WAL); what is gone leaves. The caller decides which stages are
written; a stage's stamp is set in the same transaction as its rows, so a kill at any moment leaves whole chapters only.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector
from psycopg import sql

from era_dagster.domain.doctrine import Chapter, Chunk
from era_dagster.domain.errors import CorruptInput
from era_dagster.domain.identity import text_hash
from era_dagster.domain.language import language_of
from era_dagster.domain.receipt import ItemCounts
from era_dagster.domain.space import Space
from era_dagster.domain.stages import Stage
from era_dagster.storage.database import Database
from era_dagster.storage.dead_letters import DeadText, write_letters
from era_dagster.storage.spaces import SWITCH_LOCK, check_still_live
from era_dagster.storage.stamps import STAMP_COLUMNS
from era_dagster.storage.vectors import CHUNK_TABLE, DOMAIN_TABLE, EVERY_TABLE, Difference, replace_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ChapterWrite:
    """Everything one transaction writes. None means: this stage is not written now.

    `chunk_vectors[i]` belongs to `chunks[i]`, `entry_vectors[i]` to `chapter.entries[i]`; a None in them is a dead text.
    `cached` tells how many vectors are new in the cache and how many were there, `space` is the model that made them.
    `write_vector_tables` puts them into the vector tables too; `stamps`
    holds the stages that are complete with this write.
    """

    chapter: Chapter
    path: str
    file_hash: bytes | None
    run_id: str
    space: Space | None
    chunks: Sequence[Chunk] | None
    chunk_vectors: Sequence[np.ndarray | None] | None
    entry_vectors: Sequence[np.ndarray | None] | None
    cached: Difference = field(default_factory=Difference)
    write_vector_tables: bool
    dead: Sequence[DeadText]
    stamps: Mapping[Stage, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChapterWritten:
    """The outcome of one `ChapterWrite`; `domains` are those whose entries changed, so whose files are due.

    `items` is the chapter's receipt, as stored, and `space_id` the space that its vectors went into; None when none were
    written.
    """

    entries: Difference = field(default_factory=Difference)
    chunks: Difference = field(default_factory=Difference)
    chunk_vectors: Difference = field(default_factory=Difference)
    entry_vectors: Difference = field(default_factory=Difference)
    domain_vectors: Difference = field(default_factory=Difference)
    domains: frozenset[str] = frozenset()
    items: ItemCounts | None = None
    space_id: int | None = None


def write_chapter(database: Database, write: ChapterWrite, *, registered_only: bool = False) -> ChapterWritten:
    """Write one chapter; see the module. Domain tables must exist (`spaces.ensure_domain_tables`).

    Raises `ConfigurationError` when vectors are to be written and `write.space` is no longer the live one; with
    `registered_only`, `CorruptInput` for a chapter that the register of the drop holds no longer.
    """
    chapter = write.chapter
    with database.connection() as connection:
        lock_chapter(connection, chapter.partition_key)
        if registered_only and not _is_in_the_drop(connection, chapter.partition_key):
            raise CorruptInput(
                f"{chapter.partition_key} left {write.path} while it was being worked on, so it is not stored.",
                path=Path(write.path),
            )
        space_id = None
        if write.space is not None and write.entry_vectors is not None:
            space_id = check_still_live(connection, write.space)
        language = language_of(chapter.text)
        _write_source(connection, write, language)
        entries, domains = _write_entries(connection, chapter, language)
        chunks = Difference()
        if write.chunks is not None:
            if not (write.write_vector_tables and write.chunk_vectors is not None):
                _drop_stale_chunk_vectors(connection, chapter.partition_key, write.chunks)
            chunks = _write_chunks(connection, chapter, write.chunks, language)
        vectors = _write_vectors(connection, write)
        if write.entry_vectors is not None:
            write_letters(connection, chapter.partition_key, write.dead)
        items = _write_receipt(connection, write, vectors[:2] if write.write_vector_tables else [write.cached])
        _mark_changed(connection, domains)
    return ChapterWritten(
        entries=entries,
        chunks=chunks,
        chunk_vectors=vectors[0],
        entry_vectors=vectors[1],
        domain_vectors=vectors[2],
        domains=frozenset(domains),
        items=items,
        space_id=space_id,
    )


def retire_chapter(database: Database, key: str) -> frozenset[str] | None:
    """Remove a chapter that left the input from all tables; returns the domains whose files are due.

    None, and nothing is removed, when it has come back meanwhile.
    """
    with database.connection() as connection:
        lock_chapter(connection, key)
        if _is_in_the_drop(connection, key):
            return None
        domains = {
            domain
            for (domain,) in connection.execute(
                "DELETE FROM minister_entries WHERE partition_key = %s RETURNING domain", (key,)
            )
        }
        if _has_vector_tables(connection):
            for table in ("doctrine_embeddings", "doctrine_embeddings_all", "chunk_embeddings"):
                connection.execute(
                    sql.SQL("DELETE FROM {} WHERE partition_key = %s").format(sql.Identifier(table)), (key,)
                )
        connection.execute("DELETE FROM dead_letters WHERE partition_key = %s", (key,))
        connection.execute("DELETE FROM doctrine_sources WHERE partition_key = %s", (key,))
        connection.execute("DELETE FROM drop_chapters WHERE partition_key = %s AND gone", (key,))
        _mark_changed(connection, domains)
    return frozenset(domains)


def lock_chapter(connection: psycopg.Connection, key: str) -> None:
    """Be the only writer of this chapter until the transaction ends, and keep the live space what it is until then."""
    connection.execute(
        "SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0)), pg_advisory_xact_lock(hashtextextended(%s, 0))",
        (SWITCH_LOCK, f"chapter {key}"),
    )


def _is_in_the_drop(connection: psycopg.Connection, key: str) -> bool:
    return connection.execute("SELECT FROM drop_chapters WHERE partition_key = %s AND NOT gone", (key,)).rowcount > 0


def _has_vector_tables(connection: psycopg.Connection) -> bool:
    row = connection.execute("SELECT to_regclass('doctrine_embeddings_all') IS NOT NULL").fetchone()
    return bool(row and row[0])


def _write_source(connection: psycopg.Connection, write: ChapterWrite, language: str) -> None:
    chapter = write.chapter
    values: dict[str, Any] = {
        "partition_key": chapter.partition_key,
        "book": chapter.book,
        "book_slug": chapter.book_slug,
        "chapter": chapter.chapter,
        "title": chapter.title,
        "path": write.path,
        "file_hash": write.file_hash,
        "text": chapter.text,
        "language": language,
        "content_hash": chapter.content_hash,
        "notes": json.dumps([{"code": n.code, "message": n.message, "count": n.count} for n in chapter.notes]),
        "unusable": json.dumps(
            [{"category": u.category, "position": u.position, "reason": u.reason} for u in chapter.unusable]
        ),
        "repairs": json.dumps(dict(chapter.repairs)),
        "entry_count": len(chapter.entries),
        "pair_count": sum(len(entry.domains) for entry in chapter.entries),
        "recorded": False,
    }
    if write.chunks is not None:
        values["chunk_count"] = len(write.chunks)
    if write.entry_vectors is not None:
        values["dead_count"] = len(write.dead)
        values["model"] = write.space.model if write.space else None
        # Vectors that are written anew and not complete have no stamp: that of an earlier text must not come true again.
        values[STAMP_COLUMNS["embeddings"]] = None
        if write.write_vector_tables:
            values[STAMP_COLUMNS["vector_tables"]] = None
    values |= {STAMP_COLUMNS[stage]: stamp for stage, stamp in write.stamps.items()}
    connection.execute(_upsert_source(tuple(values)), values | {"run_id": write.run_id})


@lru_cache
def _upsert_source(names: tuple[str, ...]) -> bytes:
    """The statement that writes these columns of `doctrine_sources`; the run id and the time change only with them."""
    columns = [sql.Identifier(name) for name in names]
    changes = [
        sql.SQL("{0} = excluded.{0}").format(column)
        for name, column in zip(names, columns, strict=True)
        if name != "partition_key"
    ]
    return (
        sql.SQL(
            "INSERT INTO doctrine_sources AS s ({columns}, run_id) VALUES ({values}, %(run_id)s)"
            " ON CONFLICT (partition_key) DO UPDATE SET {changes}, run_id = excluded.run_id, updated_at = now()"
            " WHERE ({compared}) IS DISTINCT FROM ({incoming})"
        )
        .format(
            columns=sql.SQL(", ").join(columns),
            values=sql.SQL(", ").join(sql.Placeholder(name) for name in names),
            changes=sql.SQL(", ").join(changes),
            compared=sql.SQL(", ").join(sql.SQL("s.{}").format(column) for column in columns),
            incoming=sql.SQL(", ").join(sql.SQL("excluded.{}").format(column) for column in columns),
        )
        .as_bytes()
    )


def _write_entries(connection: psycopg.Connection, chapter: Chapter, language: str) -> tuple[Difference, set[str]]:
    pairs = [(entry, domain) for entry in chapter.entries for domain in entry.domains]
    columns = (
        [entry.doctrine_id for entry, _ in pairs],
        [domain for _, domain in pairs],
        [entry.category for entry, _ in pairs],
        [entry.position for entry, _ in pairs],
        [entry.text for entry, _ in pairs],
        [text_hash(entry.text) for entry, _ in pairs],
        [json.dumps(dict(entry.details), ensure_ascii=False, sort_keys=True) for entry, _ in pairs],
    )
    removed = connection.execute(
        "DELETE FROM minister_entries AS e WHERE e.partition_key = %s AND NOT EXISTS"
        " (SELECT FROM unnest(%s::uuid[], %s::text[]) AS i (id, domain) WHERE i.id = e.doctrine_id AND i.domain = e.domain)"
        " RETURNING e.domain",
        (chapter.partition_key, columns[0], columns[1]),
    ).fetchall()
    written = connection.execute(
        "INSERT INTO minister_entries AS e (doctrine_id, domain, category, position, text, content_hash, details,"
        " embedding_id, book, chapter, partition_key, language)"
        " SELECT i.*, i.id, %s, %s, %s, %s"
        " FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::int[], %s::text[], %s::bytea[], %s::jsonb[])"
        " AS i (id, domain, category, position, text, content_hash, details)"
        # The id is made of book, chapter, category and text: those differ only where somebody edited the row.
        " ON CONFLICT (doctrine_id, domain) DO UPDATE SET position = excluded.position, details = excluded.details,"
        " partition_key = excluded.partition_key, embedding_id = excluded.embedding_id, category = excluded.category,"
        " text = excluded.text, book = excluded.book, chapter = excluded.chapter, language = excluded.language,"
        " updated_at = now()"
        " WHERE (e.position, e.details, e.partition_key, e.embedding_id, e.category, e.text, e.book, e.chapter, e.language)"
        " IS DISTINCT FROM (excluded.position, excluded.details, excluded.partition_key, excluded.embedding_id,"
        " excluded.category, excluded.text, excluded.book, excluded.chapter, excluded.language)"
        " RETURNING e.domain",
        (chapter.book, chapter.chapter, chapter.partition_key, language, *columns),
    ).fetchall()
    changed = {row[0] for row in (*removed, *written)}
    return Difference(len(written), len(pairs) - len(written), len(removed)), changed


def _write_chunks(
    connection: psycopg.Connection, chapter: Chapter, chunks: Sequence[Chunk], language: str
) -> Difference:
    removed = connection.execute(
        "DELETE FROM chapter_chunks WHERE partition_key = %s AND position >= %s", (chapter.partition_key, len(chunks))
    ).rowcount
    written = connection.execute(
        "INSERT INTO chapter_chunks AS c (partition_key, language, position, start_offset, end_offset, text, text_hash)"
        " SELECT %s, %s, i.* FROM unnest(%s::int[], %s::int[], %s::int[], %s::text[], %s::bytea[])"
        " AS i (position, start_offset, end_offset, text, text_hash)"
        " ON CONFLICT (partition_key, position) DO UPDATE SET start_offset = excluded.start_offset,"
        " end_offset = excluded.end_offset, text = excluded.text, text_hash = excluded.text_hash,"
        " language = excluded.language WHERE (c.start_offset, c.end_offset, c.text_hash, c.language)"
        " IS DISTINCT FROM (excluded.start_offset, excluded.end_offset, excluded.text_hash, excluded.language)",
        (
            chapter.partition_key,
            language,
            [chunk.position for chunk in chunks],
            [chunk.start for chunk in chunks],
            [chunk.end for chunk in chunks],
            [chunk.text for chunk in chunks],
            [text_hash(chunk.text) for chunk in chunks],
        ),
    ).rowcount
    return Difference(written, len(chunks) - written, removed)


def _drop_stale_chunk_vectors(connection: psycopg.Connection, key: str, chunks: Sequence[Chunk]) -> None:
    """A vector stands beside its chunk by position: that of another text must not be found under the new one.

    Without it the vector tables are not what their stamp says, whatever text comes next.
    """
    if not _has_vector_tables(connection):
        return
    stale = connection.execute(
        "DELETE FROM chunk_embeddings AS v WHERE v.partition_key = %s AND NOT EXISTS"
        " (SELECT FROM unnest(%s::int[], %s::bytea[]) AS i (position, text_hash) JOIN chapter_chunks AS c"
        " USING (position, text_hash) WHERE c.partition_key = v.partition_key AND c.position = v.position)",
        (key, [chunk.position for chunk in chunks], [text_hash(chunk.text) for chunk in chunks]),
    ).rowcount
    if stale:
        connection.execute("UPDATE doctrine_sources SET vector_tables_stamp = NULL WHERE partition_key = %s", (key,))


def _write_vectors(connection: psycopg.Connection, write: ChapterWrite) -> tuple[Difference, Difference, Difference]:
    if (
        not write.write_vector_tables
        or write.chunks is None
        or write.chunk_vectors is None
        or write.entry_vectors is None
    ):
        return Difference(), Difference(), Difference()
    chapter = write.chapter
    key = chapter.partition_key
    chunk_rows = [
        (key, chunk.position, HalfVector(vector))
        for chunk, vector in zip(write.chunks, write.chunk_vectors, strict=True)
        if vector is not None
    ]
    stored = [
        (
            entry.domains,
            (
                entry.doctrine_id,
                entry.category,
                entry.text,
                chapter.book,
                chapter.chapter,
                1.0,
                key,
                HalfVector(vector),
            ),
        )
        for entry, vector in zip(chapter.entries, write.entry_vectors, strict=True)
        if vector is not None
    ]
    return (
        replace_rows(connection, CHUNK_TABLE, key, chunk_rows),
        replace_rows(connection, EVERY_TABLE, key, [(list(domains), *row) for domains, row in stored]),
        replace_rows(connection, DOMAIN_TABLE, key, [(domain, *row) for domains, row in stored for domain in domains]),
    )


def _write_receipt(
    connection: psycopg.Connection, write: ChapterWrite, vectors: Sequence[Difference]
) -> ItemCounts | None:
    """Account for every item: what the chapter has on one side, what the tables (or the cache) and letters took on the other."""
    if write.chunks is None or write.entry_vectors is None:
        return None
    unusable = len(write.chapter.unusable)
    items = ItemCounts(
        seen=len(write.chunks) + len(write.chapter.entries) + unusable,
        stored=sum(difference.written for difference in vectors),
        unchanged=sum(difference.unchanged for difference in vectors),
        dead=len(write.dead),
        unusable=unusable,
    )
    connection.execute(
        "INSERT INTO chapter_receipts (partition_key, run_id, seen, stored, unchanged, dead, unusable)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (partition_key, run_id) DO UPDATE SET seen = excluded.seen,"
        " stored = excluded.stored, unchanged = excluded.unchanged, dead = excluded.dead,"
        " unusable = excluded.unusable, written_at = now()",
        (write.chapter.partition_key, write.run_id, *astuple(items)),
    )
    return items


def _mark_changed(connection: psycopg.Connection, domains: Iterable[str]) -> None:
    # Last in the transaction and in one order, so that writers of shared domains wait for each other briefly, never in a ring.
    for domain in sorted(domains):
        connection.execute("UPDATE minister_domains SET changed_at = clock_timestamp() WHERE domain = %s", (domain,))
