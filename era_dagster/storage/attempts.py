"""Which chapters of the register (`storage.drops`) a run was requested for, and why it could not finish them."""

from collections.abc import Mapping, Sequence

import psycopg

from era_dagster.storage.database import Database
from era_dagster.storage.drops import KnownChapter


def note_requested(database: Database, keys: Sequence[str]) -> None:
    """A run was requested for these chapters now."""
    with database.connection() as connection:
        _lock(connection, keys)
        connection.execute(
            "UPDATE drop_chapters SET attempts = attempts + 1, requested_at = now() WHERE partition_key = ANY(%s)",
            (list(keys),),
        )


def note_stopped(database: Database, keys: Sequence[str]) -> None:
    """Somebody stopped a run of these chapters: it has not failed, and what it left is wanted again only after the first wait."""
    with database.connection() as connection:
        _lock(connection, keys)
        connection.execute(
            "UPDATE drop_chapters SET attempts = 1, requested_at = now() WHERE partition_key = ANY(%s)", (list(keys),)
        )


def note_failures(
    database: Database,
    tried: Sequence[KnownChapter],
    failures: Mapping[str, str],
    finished: Sequence[str],
    *,
    well: bool = True,
) -> None:
    """Remember why chapters could not be finished, and forget it for those that could; their attempts too, where the run
    did `well` and what is stored is what the register holds. Else they may be pending still.

    Of `tried`, what the register holds otherwise by now has failed in no run: it changed or moved meanwhile.
    """
    failed = [
        (each.partition_key, each.source_path, each.content_hash) for each in tried if each.partition_key in failures
    ]
    with database.connection() as connection:
        _lock(connection, [*failures, *finished])
        connection.cursor().executemany(
            "UPDATE drop_chapters SET failure = %s WHERE (partition_key, source_path, content_hash) = (%s, %s, %s)"
            " AND failure IS DISTINCT FROM %s",
            [(failures[each[0]], *each, failures[each[0]]) for each in failed],
        )
        connection.execute(
            "UPDATE drop_chapters AS d SET failure = NULL, attempts = CASE WHEN %s AND EXISTS (SELECT FROM doctrine_sources AS s"
            " WHERE (s.partition_key, s.content_hash) = (d.partition_key, d.content_hash)) THEN 0 ELSE attempts END"
            " WHERE partition_key = ANY(%s) AND (failure IS NOT NULL OR attempts > 0)",
            (well, list(finished)),
        )


def _lock(connection: psycopg.Connection, keys: Sequence[str]) -> None:
    """In one order, so that those who change the same chapters wait for each other and never in a ring."""
    connection.execute(
        "SELECT FROM drop_chapters WHERE partition_key = ANY(%s) ORDER BY partition_key FOR UPDATE", (list(keys),)
    )
