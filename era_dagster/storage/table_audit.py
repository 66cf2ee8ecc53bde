"""Compares the tables with each other and their vectors with what a vector must be, and changes nothing.

One query for each kind of fault, answered by chapter. What the files of the drop say is compared in `pipeline.verify`, the
minister files in `storage.minister_audit`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import LiteralString

import numpy as np
import psycopg
from psycopg import sql

from era_dagster.storage.database import Database
from era_dagster.storage.spaces import live_space

_NORM_TOLERANCE = 0.01
_CACHE_ROWS_AT_ONCE = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFault:
    """So many rows with one kind of fault. `chapter` is their partition key; `stored` tells whether that chapter is."""

    kind: str
    chapter: str
    table: str
    rows: int
    stored: bool = True


# A text in such a letter has a reason to be without a vector.
_LETTER: LiteralString = (
    "EXISTS (SELECT FROM dead_letters AS d WHERE d.partition_key = {row}.partition_key"
    " AND d.payload = {row}.text AND d.state <> 'resolved')"
)
_ENTRIES: LiteralString = (
    "(SELECT doctrine_id, min(partition_key) AS partition_key, min(category) AS category, min(text) AS text,"
    " min(book) AS book, min(chapter) AS chapter, array_agg(domain ORDER BY domain) AS domains"
    " FROM minister_entries GROUP BY doctrine_id)"
)
# Each answers (chapter, table, rows).
_VECTOR_QUERIES: dict[str, LiteralString] = {
    "orphan_vector": (
        "SELECT v.partition_key, 'chunk_embeddings', count(*) FROM chunk_embeddings AS v WHERE NOT EXISTS"
        " (SELECT FROM chapter_chunks AS c WHERE (c.partition_key, c.position) = (v.partition_key, v.position))"
        " GROUP BY 1 UNION ALL"
        " SELECT v.partition_key, 'doctrine_embeddings_all', count(*) FROM doctrine_embeddings_all AS v WHERE NOT EXISTS"
        " (SELECT FROM minister_entries AS e WHERE e.doctrine_id = v.doctrine_id) GROUP BY 1 UNION ALL"
        " SELECT v.partition_key, 'doctrine_embeddings', count(*) FROM doctrine_embeddings AS v WHERE NOT EXISTS"
        " (SELECT FROM minister_entries AS e WHERE (e.doctrine_id, e.domain) = (v.doctrine_id, v.domain)) GROUP BY 1"
    ),
    "missing_vector": (
        "SELECT c.partition_key, 'chunk_embeddings', count(*) FROM chapter_chunks AS c"
        " JOIN doctrine_sources AS s USING (partition_key) WHERE s.vector_tables_stamp IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM chunk_embeddings AS v WHERE (v.partition_key, v.position) = (c.partition_key, c.position))"
        " AND NOT {chunk_letter} GROUP BY 1 UNION ALL"
        " SELECT e.partition_key, 'doctrine_embeddings', count(*) FROM minister_entries AS e"
        " JOIN doctrine_sources AS s USING (partition_key) WHERE s.vector_tables_stamp IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM doctrine_embeddings AS v WHERE (v.doctrine_id, v.domain) = (e.doctrine_id, e.domain))"
        " AND NOT {entry_letter} GROUP BY 1"
    ),
    "unresolvable_embedding_id": (
        "SELECT e.partition_key, 'minister_entries', count(*) FROM minister_entries AS e"
        " JOIN doctrine_sources AS s USING (partition_key) WHERE s.vector_tables_stamp IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM doctrine_embeddings_all AS v WHERE v.doctrine_id = e.embedding_id)"
        " AND NOT {entry_letter} GROUP BY 1"
    ),
    "unsound_vector": (
        "SELECT partition_key, 'chunk_embeddings', count(*) FROM chunk_embeddings"
        " WHERE l2_norm(embedding) NOT BETWEEN {low} AND {high} GROUP BY 1 UNION ALL"
        " SELECT partition_key, 'doctrine_embeddings_all', count(*) FROM doctrine_embeddings_all"
        " WHERE l2_norm(embedding) NOT BETWEEN {low} AND {high} GROUP BY 1 UNION ALL"
        " SELECT partition_key, 'doctrine_embeddings', count(*) FROM doctrine_embeddings"
        " WHERE l2_norm(embedding) NOT BETWEEN {low} AND {high} GROUP BY 1"
    ),
    "different_row": (
        "SELECT e.partition_key, 'doctrine_embeddings_all', count(*) FROM {entries} AS e"
        " JOIN doctrine_embeddings_all AS v USING (doctrine_id)"
        " WHERE (e.partition_key, e.category, e.text, e.book, e.chapter)"
        " IS DISTINCT FROM (v.partition_key, v.category, v.text, v.source_book, v.source_chapter)"
        " OR NOT (e.domains @> v.domains AND v.domains @> e.domains) GROUP BY 1 UNION ALL"
        " SELECT e.partition_key, 'doctrine_embeddings', count(*) FROM minister_entries AS e"
        " JOIN doctrine_embeddings AS v USING (doctrine_id, domain)"
        " JOIN doctrine_embeddings_all AS a USING (doctrine_id)"
        " WHERE (e.partition_key, e.category, e.text, e.book, e.chapter)"
        " IS DISTINCT FROM (v.partition_key, v.category, v.text, v.source_book, v.source_chapter)"
        " OR v.embedding <> a.embedding GROUP BY 1"
    ),
}
_TEXT_QUERIES: dict[str, LiteralString] = {
    "duplicate_entry": (
        "SELECT partition_key, 'minister_entries', count(*) - count(DISTINCT (domain, category, text))"
        " FROM minister_entries GROUP BY 1 HAVING count(*) > count(DISTINCT (domain, category, text))"
    ),
    "different_count": (
        "SELECT s.partition_key, 'doctrine_sources', 1 FROM doctrine_sources AS s WHERE s.pair_count <>"
        " (SELECT count(*) FROM minister_entries AS e WHERE e.partition_key = s.partition_key)"
        " OR s.chunk_count <> (SELECT count(*) FROM chapter_chunks AS c WHERE c.partition_key = s.partition_key)"
    ),
    "stale_letter": (
        "SELECT d.partition_key, 'dead_letters', count(*) FROM dead_letters AS d WHERE d.state = 'open' AND NOT EXISTS"
        " (SELECT FROM chapter_chunks AS c WHERE c.partition_key = d.partition_key AND c.text = d.payload)"
        " AND NOT EXISTS"
        " (SELECT FROM minister_entries AS e WHERE e.partition_key = d.partition_key AND e.text = d.payload) GROUP BY 1"
    ),
    "chapter_without_source": (
        "SELECT s.partition_key, 'doctrine_sources', 1 FROM doctrine_sources AS s"
        " WHERE NOT EXISTS (SELECT FROM drop_chapters AS d WHERE d.partition_key = s.partition_key)"
    ),
}


def table_faults(database: Database) -> list[TableFault]:
    """Every fault of the tables, by kind and chapter, in one snapshot.

    "wrong_model": the chapter's vectors are of another model than the live one. Rows of chapters that were never brought
    as far as the vector tables are not missing.
    """
    live = live_space(database)
    faults: list[TableFault] = []
    with database.connection() as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for kind, query in _TEXT_QUERIES.items():
            faults += _answers(connection, kind, sql.SQL(query))
        if live is not None:
            parts = {
                "chunk_letter": sql.SQL(_LETTER).format(row=sql.Identifier("c")),
                "entry_letter": sql.SQL(_LETTER).format(row=sql.Identifier("e")),
                "entries": sql.SQL(_ENTRIES),
                "low": sql.Literal(1 - _NORM_TOLERANCE),
                "high": sql.Literal(1 + _NORM_TOLERANCE),
            }
            for kind, query in _VECTOR_QUERIES.items():
                faults += _answers(connection, kind, sql.SQL(query).format(**parts))
            faults += _answers(
                connection,
                "wrong_model",
                sql.SQL(
                    "SELECT partition_key, 'doctrine_sources', 1 FROM doctrine_sources WHERE vector_tables_stamp IS NOT NULL"
                    " AND (position(':' || %s IN vector_tables_stamp) = 0 OR model IS DISTINCT FROM %s)"
                ),
                (live.stamp, live.model),
            )
        stored = {key for (key,) in connection.execute("SELECT partition_key FROM doctrine_sources")}
    return [
        TableFault(
            kind=fault.kind, chapter=fault.chapter, table=fault.table, rows=fault.rows, stored=fault.chapter in stored
        )
        for fault in faults
    ]


def damaged_cache_keys(database: Database) -> list[bytes]:
    """The keys of cached vectors that are no vectors: of a wrong length, not finite, zero, or not normalised."""
    bad: list[bytes] = []
    with (
        database.connection() as connection,
        connection.cursor(name="every_vector", binary=True) as cursor,
    ):
        cursor.itersize = _CACHE_ROWS_AT_ONCE
        cursor.execute("SELECT cache_key, dimension, embedding FROM embedding_cache ORDER BY cache_key")
        for key, dimension, data in cursor:
            vector = np.frombuffer(data, dtype="<f4") if len(data) == 4 * dimension else np.zeros(1, np.float32)
            norm = float(np.linalg.norm(vector))
            if not abs(norm - 1) <= _NORM_TOLERANCE:  # false for NaN too
                bad.append(bytes(key))
    return bad


def forget_vectors(database: Database, keys: Sequence[bytes]) -> None:
    """Remove vectors from the cache: the texts are embedded again when they are wanted."""
    with database.connection() as connection:
        connection.execute("DELETE FROM embedding_cache WHERE cache_key = ANY(%b)", (sorted(keys),))


def _answers(
    connection: psycopg.Connection, kind: str, query: sql.SQL | sql.Composed, values: tuple[str, ...] | None = None
) -> Iterator[TableFault]:
    for chapter, table, rows in connection.execute(query, values).fetchall():
        yield TableFault(kind=kind, chapter=chapter, table=table, rows=rows)
