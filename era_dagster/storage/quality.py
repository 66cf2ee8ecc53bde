"""What the asset checks ask the database: one query for each claim, answered with the offenders by name. Read-only.

Whether an answer is a failure, and how it reads, is `pipeline.checks`.
"""

from collections.abc import Sequence
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from era_dagster.domain.domains import CANONICAL_DOMAINS
from era_dagster.storage.database import Database

Rows = list[dict[str, Any]]

_WITHOUT_VECTOR = """
SELECT s.partition_key AS chapter, count(*) AS texts FROM doctrine_sources AS s
JOIN (SELECT c.partition_key, c.text FROM chapter_chunks AS c WHERE NOT EXISTS
        (SELECT FROM {chunks} AS v WHERE (v.partition_key, v.position) = (c.partition_key, c.position))
      UNION ALL
      SELECT e.partition_key, e.text FROM (SELECT DISTINCT doctrine_id, partition_key, text FROM minister_entries) AS e
        WHERE NOT EXISTS (SELECT FROM {entries} AS v WHERE v.doctrine_id = e.doctrine_id)) AS t USING (partition_key)
WHERE s.vector_tables_stamp IS NOT NULL AND NOT EXISTS (SELECT FROM dead_letters AS d
    WHERE d.partition_key = t.partition_key AND d.payload = t.text AND d.state <> 'resolved')
GROUP BY 1 ORDER BY 1
"""
_UNBALANCED = """
SELECT * FROM (
  SELECT DISTINCT ON (partition_key) partition_key AS chapter, run_id, seen, stored, unchanged, dead, unusable
  FROM chapter_receipts ORDER BY partition_key, written_at DESC, run_id
) AS latest WHERE seen <> stored + unchanged + dead + unusable ORDER BY chapter
"""
_LAST_RUN = """
SELECT run_id, sum(stored)::bigint AS stored, sum(dead)::bigint AS dead FROM chapter_receipts
WHERE run_id = (SELECT run_id FROM chapter_receipts WHERE stored + dead > 0 ORDER BY written_at DESC LIMIT 1)
GROUP BY run_id
"""
_LAST_RUN_CHAPTERS = """
SELECT partition_key AS chapter, dead, stored FROM chapter_receipts WHERE run_id = %(run_id)s AND dead > 0 ORDER BY 1
"""
_NOTED = """
SELECT s.partition_key AS chapter, s.book, note ->> 'message' AS message, (note ->> 'count')::int AS count
FROM doctrine_sources AS s, jsonb_array_elements(s.notes) AS note WHERE note ->> 'code' = ANY(%(codes)s) ORDER BY 1
"""
_UNUSABLE = """
SELECT s.partition_key AS chapter, item ->> 'category' AS category, (item ->> 'position')::int AS position,
       item ->> 'reason' AS reason
FROM doctrine_sources AS s, jsonb_array_elements(s.unusable) AS item ORDER BY 1, 2, 3
"""
_BOOKS_WITHOUT_DOCTRINE = """
SELECT s.book, count(*) AS chapters, count(*) FILTER (WHERE s.notes @> '[{"code": "empty_doctrine"}]') AS suspicious,
       count(*) FILTER (WHERE s.entry_count > 0) AS with_doctrine
FROM doctrine_sources AS s GROUP BY 1
HAVING count(*) FILTER (WHERE s.notes @> '[{"code": "empty_doctrine"}]') > 0 OR sum(s.entry_count) = 0 ORDER BY 1
"""
_UNKNOWN_DOMAINS = """
SELECT e.domain, d.spellings, count(*) AS entries, count(DISTINCT e.partition_key) AS chapters
FROM minister_entries AS e JOIN minister_domains AS d USING (domain)
WHERE NOT e.domain = ANY(%(known)s) GROUP BY 1, 2 ORDER BY 3 DESC, 1
"""
_TEXT_LENGTHS = """
SELECT s.partition_key AS chapter, s.book, max(c.end_offset) AS characters
FROM doctrine_sources AS s JOIN chapter_chunks AS c USING (partition_key) GROUP BY 1, 2 ORDER BY 1
"""


def _rows(database: Database, query: sql.Composed | str, **values: Any) -> Rows:
    statement = query if isinstance(query, sql.Composed) else query.encode()
    with database.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, values).fetchall()


def texts_without_vector(database: Database) -> Rows:
    """Chapters whose stamp says that they are in the vector tables, with the number of their texts that are not.

    A text in an open or dropped dead letter is accounted for and not counted.
    """
    names = {"chunks": "chunk_embeddings", "entries": "doctrine_embeddings_all"}
    exists = _rows(database, "SELECT to_regclass('doctrine_embeddings_all') IS NOT NULL AS there")[0]["there"]
    if not exists:
        return []
    return _rows(
        database, sql.SQL(_WITHOUT_VECTOR).format(**{name: sql.Identifier(table) for name, table in names.items()})
    )


def unbalanced_receipts(database: Database) -> Rows:
    """The chapters in whose latest receipt items seen are not items stored, unchanged, dead and unusable."""
    return _rows(database, _UNBALANCED)


def last_run(database: Database) -> tuple[dict[str, Any] | None, Rows]:
    """Texts stored and dead in the last run that had any to store, and its chapters with dead ones."""
    found = _rows(database, _LAST_RUN)
    if not found:
        return None, []
    return found[0], _rows(database, _LAST_RUN_CHAPTERS, run_id=found[0]["run_id"])


def noted_chapters(database: Database, codes: Sequence[str]) -> Rows:
    """The chapters that carry a note with one of these codes, with its message and count."""
    return _rows(database, _NOTED, codes=list(codes))


def unusable_items(database: Database) -> Rows:
    """The doctrine items that hold no sentence: chapter, category, place in its list, and why (an object with its keys)."""
    return _rows(database, _UNUSABLE)


def books_without_doctrine(database: Database) -> Rows:
    """Books with long chapters whose doctrine is empty, or without any doctrine: chapters in all, suspicious, with doctrine."""
    return _rows(database, _BOOKS_WITHOUT_DOCTRINE)


def unknown_domains(database: Database) -> Rows:
    """The domains that are no minister domain, with their spellings and counts, the largest first."""
    return _rows(database, _UNKNOWN_DOMAINS, known=sorted(CANONICAL_DOMAINS))


def text_lengths(database: Database) -> Rows:
    """The characters of each chapter's cleaned text; chapters without text are absent."""
    return _rows(database, _TEXT_LENGTHS)


def quarantined(database: Database) -> Rows:
    """Everything that cannot be read: file, place, reason, since when."""
    return _rows(database, "SELECT file, location, reason, first_at::text FROM quarantine ORDER BY 1, 2, 3")
