"""Search by words: the entries and chunks that hold the rare words of a question, ranked by PostgreSQL.

Each text is stemmed in its chapter's language when it is written (migration 0004); a question is stemmed in every language
the books have. How rare a word is, PostgreSQL does not count in its ranks; it is added here.
"""

from collections.abc import Sequence
from typing import LiteralString

import psycopg
from psycopg import sql

from era_dagster.domain.asking import AskedWord, content_words, weighed_words
from era_dagster.domain.language import NO_LANGUAGE, language_of
from era_dagster.storage.database import Database

_LONGEST_QUESTION = 1_000
_ROWS_AT_ONCE = 200


def question_words(connection: psycopg.Connection, table: LiteralString, text: str) -> list[AskedWord]:
    """The words of `text` worth looking for in `table`, "minister_entries" or "chapter_chunks"."""
    found: dict[str, dict[str, list[int]]] = {}
    for language, stem, places in connection.execute(
        "SELECT l.language, w.lexeme, w.positions FROM"
        " (SELECT DISTINCT coalesce(language, %(none)s) AS language FROM doctrine_sources) AS l"
        " LEFT JOIN LATERAL unnest(to_tsvector(l.language::regconfig, %(text)s)) AS w ON true",
        {"text": text[:_LONGEST_QUESTION].replace("\0", " "), "none": NO_LANGUAGE},
    ):
        stems = found.setdefault(language, {})
        if stem is not None:
            stems[stem] = places
    words = content_words(found)
    texts = _rows(connection, table)
    shares = _shares(connection, table, sorted({stem for stems in words for stem in stems}), texts)
    return weighed_words(words, shares, texts)


def _rows(connection: psycopg.Connection, table: LiteralString) -> int:
    """How many rows `table` has, at least 1: by the planner's statistics, or counted where there are none yet."""
    row = connection.execute("SELECT reltuples::bigint FROM pg_class WHERE oid = %s::regclass", (table,)).fetchone()
    if row is None or row[0] <= 0:
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
    return max(1, row[0] if row else 0)


def _shares(connection: psycopg.Connection, table: LiteralString, stems: Sequence[str], rows: int) -> dict[str, float]:
    """The share of the rows of `table` that hold a stem: the common ones by the planner's statistics, others counted."""
    listed = dict(
        connection.execute(
            "SELECT e.stem, e.share FROM pg_stats AS s,"
            " unnest(s.most_common_elems::text::text[], s.most_common_elem_freqs) AS e (stem, share)"
            " WHERE s.schemaname = 'public' AND s.tablename = %s AND s.attname = 'words' AND e.stem = ANY(%s)",
            (table, list(stems)),
        ).fetchall()
    )
    rare = [stem for stem in stems if stem not in listed]
    counted = connection.execute(
        sql.SQL(
            "SELECT a.stem, (SELECT count(*) FROM {table} WHERE words @@ a.query::tsquery)"
            " FROM unnest(%s::text[], %s::text[]) AS a (stem, query)"
        ).format(table=sql.Identifier(table)),
        (rare, [_quoted(stem) for stem in rare]),
    ).fetchall()
    # Rows that came since the statistics were made may hold a word that was in none of them.
    return {**listed, **{stem: min(1.0, count / rows) for stem, count in counted}}


def words_match(words: Sequence[AskedWord]) -> tuple[sql.Composable, sql.Composable, dict[str, object]]:
    """For these words: a condition on the column `words`, a rank (higher is better), and the parameters of both.

    The condition holds for texts with a word that is sought; the rank counts them all.

    The rank is the sum over the words of weight times `ts_rank`, which for one word grows ever slower with its number of
    occurrences and is divided by 1 + the logarithm of the text's length: in kind what BM25 computes.
    """
    queries = [" | ".join(map(_quoted, word.stems)) for word in words]
    sought = [query for word, query in zip(words, queries, strict=True) if word.sought]
    parameters: dict[str, object] = {"any_word": " | ".join(sought)}
    ranks: list[sql.Composable] = []
    for number, (word, query) in enumerate(zip(words, queries, strict=True)):
        parameters |= {f"word{number}": query, f"weight{number}": word.weight}
        ranks.append(
            sql.SQL("{}::float8 * ts_rank(words, {}::tsquery, 1)").format(
                sql.Placeholder(f"weight{number}"), sql.Placeholder(f"word{number}")
            )
        )
    return sql.SQL("words @@ %(any_word)s::tsquery"), sql.SQL(" + ").join(ranks), parameters


def note_languages(database: Database) -> int:
    """Find the language of chapters stored before languages were looked at; returns how many there were."""
    done = 0
    while True:
        with database.connection() as connection:
            rows = connection.execute(
                "SELECT partition_key, text FROM doctrine_sources WHERE language IS NULL LIMIT %s FOR UPDATE SKIP LOCKED",
                (_ROWS_AT_ONCE,),
            ).fetchall()
            languages = [(language_of(text), key) for key, text in rows]
            for table in ("doctrine_sources", "minister_entries", "chapter_chunks"):
                connection.cursor().executemany(
                    sql.SQL("UPDATE {} SET language = %s WHERE partition_key = %s").format(sql.Identifier(table)),
                    languages,
                )
        done += len(rows)
        if len(rows) < _ROWS_AT_ONCE:
            return done


def _quoted(stem: str) -> str:
    """A stem as it stands in a tsquery: between quotes, its own quotes and backslashes doubled."""
    doubled = stem.replace("\\", "\\\\").replace("'", "''")
    return f"'{doubled}'"
