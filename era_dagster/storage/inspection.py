"""What a database is like, read without changing it: versions, extension, schema, size, clock. Judged in `pipeline.health`."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from era_dagster.storage.database import driver_errors
from era_dagster.storage.migrations import compare
from era_dagster.storage.spaces import LIVE_SCHEMA, lacking_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """One look at a database.

    `server_number` as PostgreSQL gives it (170002 is 17.2). `encoding` is that of the database's text. `vector_installed` is
    the version of pgvector in this database, in `vector_schema`, `vector_available` the one its server could install; None:
    none. `pending` names our migrations that it lacks, `unknown` those it has from a newer release. `columns` maps each
    vector table to the dimension of its column; `lacking` names settings for programs that read them, where this user may
    set them.
    The clock is the database's less ours, and how far off that may be, both in seconds.
    """

    server_version: str
    server_number: int
    encoding: str
    vector_installed: str | None
    vector_schema: str | None
    vector_available: str | None
    pending: tuple[str, ...]
    unknown: tuple[str, ...]
    columns: Mapping[str, int]
    lacking: tuple[str, ...]
    size_bytes: int
    clock_ahead_seconds: float
    clock_uncertainty_seconds: float


def inspect_database(url: str) -> DatabaseFacts:
    """Connect and look. Raises `DatabaseUnavailable`, or `ConfigurationError` when an applied migration differs from ours."""
    # Named, because from a database without an encoding text would come as bytes.
    with (
        driver_errors(),
        psycopg.connect(url, connect_timeout=10, autocommit=True, client_encoding="UTF8") as connection,
    ):
        before = time.time()
        (clock,) = _row(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")
        after = time.time()
        version, number, encoding, installed, schema, available, size, owned = _row(
            connection,
            "SELECT current_setting('server_version'), current_setting('server_version_num')::integer,"
            " current_setting('server_encoding'),"
            " (SELECT extversion FROM pg_extension WHERE extname = 'vector'),"
            " (SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'),"
            " (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'),"
            " pg_database_size(current_database()),"
            " (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database())",
        )
        columns = connection.execute(
            # The type modifier of a vector column is its dimension.
            "SELECT c.relname, a.atttypmod FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND a.attname = 'embedding' AND c.relkind IN ('r', 'p')",
            (LIVE_SCHEMA,),
        ).fetchall()
        lacking = lacking_settings(connection) if owned else ()
        pending, unknown = compare(connection)
    return DatabaseFacts(
        server_version=version,
        server_number=number,
        encoding=encoding,
        vector_installed=installed,
        vector_schema=schema,
        vector_available=available,
        pending=pending,
        unknown=unknown,
        columns=dict(columns),
        lacking=lacking,
        size_bytes=size,
        clock_ahead_seconds=clock - (before + after) / 2,
        clock_uncertainty_seconds=(after - before) / 2,
    )


def _row(connection: psycopg.Connection, query: LiteralString) -> tuple[Any, ...]:
    return connection.execute(query).fetchall()[0]
