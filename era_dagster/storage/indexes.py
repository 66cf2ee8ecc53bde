"""Vector indexes: exact search below a threshold, HNSW above it, per physical table, built after the load.

Exact scans of a small table are faster than an index and find everything; an index on a table that is being filled makes
every insert pay. Runs outside a transaction, because CREATE INDEX CONCURRENTLY must.
"""

from psycopg import sql

from era_dagster.storage.database import Database
from era_dagster.storage.spaces import LIVE_SCHEMA

# Measured: below this many rows an exact scan costs a few milliseconds and has recall 1.
EXACT_ROWS = 20_000


def build_vector_indexes(database: Database, *, schema: str = LIVE_SCHEMA, exact_rows: int = EXACT_ROWS) -> list[str]:
    """Build the HNSW index of every vector table in `schema` (a space's; by default the live one's) above `exact_rows`
    rows that has none; returns the tables' names.

    An invalid index (left by a killed build) is dropped first. Safe to call at any time and from several processes.
    """
    built: list[str] = []
    for table in _candidates(database, schema):
        with database.connection() as connection:
            row = connection.execute(
                sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT %s) AS t").format(sql.Identifier(schema, table)),
                (exact_rows,),
            ).fetchone()
        if row is not None and row[0] >= exact_rows and _build(database, schema, table):
            built.append(table)
    return built


def analyze_space(database: Database, *, schema: str) -> None:
    """Tell the planner how many rows the tables of a space have: of one that was just filled it knows nothing."""
    with database.connection() as connection:
        for table in ("chunk_embeddings", "doctrine_embeddings_all", "doctrine_embeddings"):
            connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, table)))


def _candidates(database: Database, schema: str) -> list[str]:
    """Physical vector tables that could hold enough rows (by the planner's estimate of pages) and have no valid index."""
    with database.connection() as connection:
        return [
            name
            for (name,) in connection.execute(
                "SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
                " JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'embedding'"
                " WHERE n.nspname = %s AND c.relkind = 'r' AND pg_relation_size(c.oid) > 1000000"
                " AND NOT EXISTS (SELECT FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid"
                " JOIN pg_am AS m ON m.oid = x.relam WHERE i.indrelid = c.oid AND m.amname = 'hnsw' AND i.indisvalid)"
                " ORDER BY c.relname",
                (schema,),
            )
        ]


def _build(database: Database, schema: str, table: str) -> bool:
    """Build the index of one table; False when another process is at it."""
    # The longest table name has 60 of the 63 bytes a name may have: cut, two tables would share one index name.
    name = f"{table}_nn"
    with database.connection() as connection:
        connection.commit()
        connection.autocommit = True
        try:
            locked = connection.execute(
                "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (f"index {schema} {name}",)
            ).fetchone()
            if locked is None or not locked[0]:
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
        finally:
            connection.execute("SELECT pg_advisory_unlock_all()")
            connection.execute("RESET maintenance_work_mem")
            connection.autocommit = False
