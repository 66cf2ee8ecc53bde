"""Totals of the knowledge base for `era status`: read-only, one snapshot."""

from dataclasses import dataclass
from typing import Any

from psycopg.rows import dict_row

from era_dagster.storage.database import Database

_TOTALS = """
SELECT (SELECT count(DISTINCT book_slug) FROM doctrine_sources) AS books,
       (SELECT count(*) FROM doctrine_sources) AS chapters,
       (SELECT count(*) FROM chapter_chunks) AS chunks,
       (SELECT count(DISTINCT doctrine_id) FROM minister_entries) AS entries,
       (SELECT count(*) FROM minister_entries) AS entry_domain_rows,
       (SELECT count(DISTINCT domain) FROM minister_entries) AS domains,
       (SELECT count(*) FROM embedding_cache) AS cached_vectors,
       (SELECT count(*) FROM dead_letters WHERE state = 'open') AS open_dead_letters,
       (SELECT count(*) FROM quarantine) AS quarantined,
       (SELECT coalesce(sum(jsonb_array_length(unusable)), 0)::bigint FROM doctrine_sources) AS unusable_items
"""
_BOOKS = """
SELECT s.book, s.book_slug, count(*) AS chapters, coalesce(sum(s.chunk_count), 0)::bigint AS chunks,
       sum(s.entry_count)::bigint AS entries, coalesce(sum(s.dead_count), 0)::bigint AS dead,
       count(s.embeddings_stamp) AS embedded, count(s.vector_tables_stamp) AS in_tables,
       count(s.minister_files_stamp) AS in_files, sum(jsonb_array_length(s.notes))::bigint AS notes
FROM doctrine_sources AS s GROUP BY s.book, s.book_slug ORDER BY s.book
"""
_NOTES = """
SELECT note ->> 'code' AS code, count(*) AS chapters,
       (array_agg(s.partition_key ORDER BY s.partition_key))[:3] AS examples,
       (array_agg(note ->> 'message' ORDER BY s.partition_key))[1] AS message
FROM doctrine_sources AS s, jsonb_array_elements(s.notes) AS note GROUP BY 1 ORDER BY 2 DESC, 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Totals, one row per book, the notes by kind, the sources that need a look, and failed chapters."""

    totals: dict[str, int]
    books: list[dict[str, Any]]
    notes: list[dict[str, Any]]
    sources: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    dead_letters: list[dict[str, Any]]


def overview(database: Database) -> Overview:
    """Read everything `era status` shows."""
    with database.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        totals = cursor.execute(_TOTALS).fetchone() or {}
        return Overview(
            totals=dict(totals),
            books=cursor.execute(_BOOKS).fetchall(),
            notes=cursor.execute(_NOTES).fetchall(),
            sources=cursor.execute(
                "SELECT source_path, state, reason, notes FROM drop_sources"
                " WHERE state <> 'read' OR reason <> '' OR notes <> '{}' ORDER BY source_path"
            ).fetchall(),
            quarantine=cursor.execute(
                "SELECT source_path, file, location, reason FROM quarantine ORDER BY source_path, file, location"
            ).fetchall(),
            failed=cursor.execute(
                "SELECT partition_key, failure, attempts FROM drop_chapters WHERE failure IS NOT NULL ORDER BY 1"
            ).fetchall(),
            dead_letters=cursor.execute(
                "SELECT fingerprint, error_class, min(message) AS message, count(*) AS letters FROM dead_letters"
                " WHERE state = 'open' GROUP BY 1, 2 ORDER BY 4 DESC"
            ).fetchall(),
        )


def domain_counts(database: Database) -> dict[str, int]:
    """Entries by domain, most first."""
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT domain, count(*) FROM minister_entries GROUP BY 1 ORDER BY 2 DESC, 1"
        ).fetchall()
    return dict(rows)
