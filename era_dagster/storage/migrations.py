"""Schema migrations: numbered SQL files, applied once each, in order, by one process at a time.

A file that was applied and later edited is an error, not a silent difference: the SHA-256 of each applied file is kept.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import psycopg
from psycopg import sql

from era_dagster.domain.errors import ConfigurationError
from era_dagster.storage.database import driver_errors, set_lock_timeout

_ADVISORY_LOCK = 0x65726164  # "erad"
# For somebody's VACUUM FULL or restore; another process that migrates is waited for to its end.
_LONGEST_WAIT_MS = 10_000


def migrate(url: str) -> list[str]:
    """Bring the database at `url` to the current schema; returns the names of the files applied now (usually none).

    Safe when several processes call it at once. Raises `ConfigurationError` when an applied file differs from ours, the
    server has no pgvector, the database is not one for our texts or this user lacks the rights, `DatabaseUnavailable` when it
    cannot be reached.
    """
    files = _files()
    with driver_errors(), _lacking_rights(), psycopg.connect(url, connect_timeout=10) as connection:
        _check_encoding(connection)
        # A schema of the user's name, or a path that somebody set, would take our tables in: everything else looks in public.
        connection.execute("SET LOCAL search_path = public")
        set_lock_timeout(connection, _LONGEST_WAIT_MS)
        applied = _applied(connection)
        if applied is not None and all(name in applied for name, _ in files):
            _check_unchanged(files, applied)
            return []
        _check_vector_schema(connection)
        connection.execute("SET LOCAL lock_timeout TO DEFAULT")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (name text PRIMARY KEY, sha256 bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied = _applied(connection) or {}
        _check_unchanged(files, applied)
        done: list[str] = []
        for name, text in files:
            if name in applied:
                continue
            try:
                connection.execute(sql.SQL(text))  # pyright: ignore[reportArgumentType]
            except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported) as error:
                raise ConfigurationError(
                    "This PostgreSQL server has no pgvector extension.",
                    hint="Install pgvector 0.8 or newer there, or unset ERA_DATABASE_URL to use the embedded server.",
                ) from error
            connection.execute("INSERT INTO schema_migrations (name, sha256) VALUES (%s, %s)", (name, _sha256(text)))
            done.append(name)
        return done


def unfit_encoding(encoding: str) -> ConfigurationError | None:
    """Why a database with this encoding cannot hold our texts; None if it can.

    SQL_ASCII, which a server set up without a locale makes, gives bytes back; others have no place for most signs.
    """
    if encoding == "UTF8":
        return None
    return ConfigurationError(
        f"The database stores text as {encoding}; it must be UTF8.",
        hint="Make another one by CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0, and name that.",
    )


def unfit_vector_schema(schema: str) -> ConfigurationError | None:
    """Why pgvector is of no use in this schema, where an administrator may have put it; None if every session finds it there."""
    if schema in ("public", "pg_catalog"):
        return None
    return ConfigurationError(
        f"pgvector is in the schema {schema}, where nobody looks for it.",
        hint="Let a superuser say ALTER EXTENSION vector SET SCHEMA public in this database, then run again.",
    )


def _check_encoding(connection: psycopg.Connection) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    unfit = unfit_encoding(encoding) if encoding else None
    if unfit is not None:
        raise unfit


def _check_vector_schema(connection: psycopg.Connection) -> None:
    row = connection.execute(
        "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'"
    ).fetchone()
    unfit = None if row is None else unfit_vector_schema(row[0])
    if unfit is not None:
        raise unfit


@contextmanager
def _lacking_rights() -> Iterator[None]:
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"The schema cannot be made: {str(error).splitlines()[0]}.",
            hint="Let a superuser say CREATE EXTENSION vector in this database, and make it this user's own, then run again.",
        ) from error


def compare(connection: psycopg.Connection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of our files that this database lacks, and of those it has that we don't; changes nothing.

    Raises `ConfigurationError` when an applied file differs from ours.
    """
    files = _files()
    applied = _applied(connection) or {}
    _check_unchanged(files, applied)
    ours = [name for name, _ in files]
    return tuple(name for name in ours if name not in applied), tuple(sorted(set(applied) - set(ours)))


def _files() -> list[tuple[str, str]]:
    folder = resources.files("era_dagster.storage").joinpath("migrations")
    return [
        (entry.name, entry.read_text(encoding="utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".sql")
    ]


def _applied(connection: psycopg.Connection) -> dict[str, bytes] | None:
    row = connection.execute("SELECT to_regclass('public.schema_migrations') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    return {
        name: bytes(digest) for name, digest in connection.execute("SELECT name, sha256 FROM public.schema_migrations")
    }


def _check_unchanged(files: list[tuple[str, str]], applied: dict[str, bytes]) -> None:
    for name, text in files:
        if name in applied and applied[name] != _sha256(text):
            raise ConfigurationError(
                f"The migration {name} was applied to this database in another wording.",
                hint="Use the release that made this database, or start a new one.",
            )


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.replace("\r\n", "\n").encode("utf-8")).digest()
