"""Vector indexes: exact search below a threshold, HNSW above it, per physical table, built after the load.

An exact scan of a small table is fast and finds everything. An index on a table that is being filled makes every insert pay,
so a large load drops it first and the end of the load builds it anew; until then look-ups are exact, slower and complete.
Runs outside transactions, because CREATE INDEX CONCURRENTLY must. Figures and reasons: docs/adr/0011-index-policy.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from era_dagster.storage.database import Database
from era_dagster.storage.spaces import LIVE_SCHEMA

# 20,000 rows of 384 dimensions, 10,000 of 768: an exact look-up there takes 10 ms of one core.
_EXACT_NUMBERS = 7_680_000
# A row costs 6 to 9 times as much when it is inserted into an index as when the index is built over it.
_SHARE_THAT_DROPS = 1 / 8
# PostgreSQL's own autovacuum comes by once a minute; a recall measured right after a load must not wait for it.
_CHANGED_SHARE = 0.1
_DEAD_SHARE = 0.05
_TABLES_OF_WORDS = ("minister_entries", "chapter_chunks")
_HNSW = (
    "FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid JOIN pg_am AS m ON m.oid = x.relam"
    " JOIN pg_class AS c ON c.oid = i.indrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE m.amname = 'hnsw' AND n.nspname = %s"
)


def exact_rows(dimension: int) -> int:
    """The number of rows from which a table of vectors of this dimension gets an index."""
    return max(1, _EXACT_NUMBERS // dimension)


def indexed_tables(database: Database, *, schema: str = LIVE_SCHEMA) -> list[str]:
    """The tables of `schema` that have a valid HNSW index."""
    return [table for table, valid in _tables_with_index(database, schema) if valid]


def drop_indexes_before_load(database: Database, *, chapters: int, schema: str = LIVE_SCHEMA) -> list[str]:
    """Drop the vector indexes when loading `chapters` would cost more with them than building them anew afterwards.

    That is when they are at least an eighth of the chapters stored. Returns the tables' names. Look-ups go on, exactly. An
    invalid index (left by a killed build) goes too: no look-up uses it, but every insert may pay for it.
    """
    with database.connection() as connection:
        row = connection.execute("SELECT count(*) FROM doctrine_sources").fetchone()
    if row is None or chapters < _SHARE_THAT_DROPS * row[0]:
        return []
    return [table for table, _ in _tables_with_index(database, schema) if _drop(database, schema, table)]


def load_goes_on(database: Database) -> bool:
    """Whether so many known chapters still wait to be stored that an index built now would only be dropped again."""
    with database.connection() as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM drop_chapters AS d WHERE NOT d.gone AND d.failure IS NULL AND NOT EXISTS"
            " (SELECT FROM doctrine_sources AS s WHERE s.partition_key = d.partition_key"
            " AND s.vector_tables_stamp IS NOT NULL)), (SELECT count(*) FROM doctrine_sources)"
        ).fetchone()
    waiting, stored = row or (0, 0)
    return waiting > 0 and waiting >= _SHARE_THAT_DROPS * stored


def build_vector_indexes(database: Database, *, schema: str = LIVE_SCHEMA, least_rows: int | None = None) -> list[str]:
    """Build the HNSW index of every vector table of `schema` that is large enough and has none; returns their names.

    Large enough: `least_rows`, or what `exact_rows` says. An invalid index (left by a killed build) is dropped first, and
    each table is analyzed after. Safe to call at any time and from several processes.
    """
    with database.connection() as connection:
        candidates = connection.execute(
            "SELECT c.relname, a.atttypmod FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'embedding'"
            " WHERE n.nspname = %s AND c.relkind = 'r' ORDER BY c.relname",
            (schema,),
        ).fetchall()
    indexed = set(indexed_tables(database, schema=schema))
    return [
        table
        for table, dimension in candidates
        if table not in indexed
        and _has_rows(database, schema, table, least_rows or exact_rows(dimension))
        and build_vector_index(database, table, schema=schema)
    ]


def vacuum_space(database: Database, *, schema: str) -> None:
    """Remove the dead rows of a space that was filled or caught up, and tell the planner how many rows its tables have."""
    for table in ("chunk_embeddings", "doctrine_embeddings_all", "doctrine_embeddings"):
        with _alone(database, schema, table) as connection:
            if connection is not None:
                connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(schema, table)))


def build_vector_index(database: Database, table: str, *, schema: str = LIVE_SCHEMA) -> bool:
    """Build the index of one table, whatever its size; False when another process is at it. Readers and writers go on."""
    # The longest table name has 60 of the 63 bytes a name may have: cut, two tables would share one index name.
    name = f"{table}_nn"
    with _alone(database, schema, table) as connection:
        if connection is None:
            return False
        connection.execute("SET maintenance_work_mem = '256MB'")
        connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(schema, name)))
        connection.execute(
            sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} USING hnsw (embedding halfvec_cosine_ops)").format(
                sql.Identifier(name), sql.Identifier(schema, table)
            )
        )
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, table)))
    return True


def tend_tables(database: Database) -> None:
    """Bring statistics up to date, and remove dead rows, where a load has changed much.

    The planner and the weights of words live on the statistics, and an HNSW index that holds many dead rows finds fewer of
    the living (recall .72 after everything was stored a second time).
    """
    with database.connection() as connection:
        tables = connection.execute(
            "SELECT s.schemaname, s.relname, s.n_dead_tup > %s * s.n_live_tup FROM pg_stat_user_tables AS s"
            " WHERE (s.schemaname = %s OR s.relname = ANY(%s)) AND s.n_live_tup + s.n_dead_tup > 1000"
            " AND (s.n_mod_since_analyze > %s * s.n_live_tup OR s.n_dead_tup > %s * s.n_live_tup)",
            (_DEAD_SHARE, LIVE_SCHEMA, list(_TABLES_OF_WORDS), _CHANGED_SHARE, _DEAD_SHARE),
        ).fetchall()
    for schema, table, dead in tables:
        with _alone(database, schema, table) as connection:
            if connection is not None:
                statement = sql.SQL("VACUUM (ANALYZE) {}" if dead else "ANALYZE {}")
                connection.execute(statement.format(sql.Identifier(schema, table)))


def _tables_with_index(database: Database, schema: str) -> list[tuple[str, bool]]:
    """The tables of `schema` that have an HNSW index, and whether it is valid."""
    with database.connection() as connection:
        return connection.execute(
            sql.SQL("SELECT c.relname, bool_or(i.indisvalid) " + _HNSW + " GROUP BY 1 ORDER BY 1"), (schema,)
        ).fetchall()


def _has_rows(database: Database, schema: str, table: str, rows: int) -> bool:
    with database.connection() as connection:
        found = connection.execute(
            sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT %s) AS t").format(sql.Identifier(schema, table)),
            (rows,),
        ).fetchone()
    return found is not None and found[0] >= rows


def _drop(database: Database, schema: str, table: str) -> bool:
    with _alone(database, schema, table) as connection:
        if connection is None:
            return False
        connection.execute(
            sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(schema, f"{table}_nn"))
        )
    return True


@contextmanager
def _alone(database: Database, schema: str, table: str) -> Iterator[psycopg.Connection | None]:
    """A connection without a transaction, while no other process works on this table's index; None when one does."""
    with database.connection() as connection:
        connection.commit()
        connection.autocommit = True
        try:
            locked = connection.execute(
                "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (f"index {schema}.{table}",)
            ).fetchone()
            yield connection if locked is not None and locked[0] else None
        finally:
            connection.execute("SELECT pg_advisory_unlock_all()")
            connection.execute("RESET maintenance_work_mem")
            connection.autocommit = False
