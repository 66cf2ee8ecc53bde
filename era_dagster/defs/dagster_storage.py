"""Dagster's own storage (runs, events, sensor state) beside the knowledge base: a database of its own on the same server.

`dagster.yaml` names the classes below, so that `dagster dev`, the CLI and `era` share one history without any set-up: the
embedded server is started on demand. With `ERA_DAGSTER_DATABASE_URL` Dagster's data goes to that database instead.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import DagsterPostgresException
from psycopg import errors as pg_errors
from psycopg import sql
from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import OperationalError

from era_dagster.defs.dagster_tables import are_there, complete_tables
from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable, StorageError
from era_dagster.settings import Settings, load_settings
from era_dagster.storage.database import checked_address, database_url, driver_errors, with_database

_OWN = "ERA_DAGSTER_DATABASE_URL"
# Dagster tries to connect six times, in about this time, for each thing that it reads or writes, of which the end of a run alone
# has ten. Between two of them a run may wait for its own connections for half a minute.
_PATIENCE_SECONDS = 15.0
_LONGEST_PAUSE_SECONDS = 60.0


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what Dagster's storage raises when its database is away, or its disk full, into one of our errors."""
    try:
        yield
    except (DagsterPostgresException, OperationalError) as error:
        cause = error.__cause__ or error
        if getattr(cause, "pgcode", None) == pg_errors.DiskFull.sqlstate:
            raise StorageError(
                f"Dagster's database refuses to write: {_first_line(cause)}.",
                hint="What was finished is stored. Free space, then run again.",
            ) from error
        raise _away(cause) from error


def _away(error: BaseException) -> DatabaseUnavailable:
    return DatabaseUnavailable(
        f"Dagster's database cannot be reached: {_first_line(error)}.",
        hint="What was finished is stored. Run `era doctor`, then again.",
    )


def _first_line(error: BaseException) -> str:
    said = str(error.orig if isinstance(error, OperationalError) else error).strip()
    return (said.splitlines() or [type(error).__name__])[0].rstrip(".")


class Outage:
    """For how long a database has let nobody in."""

    def __init__(self) -> None:
        self._began = self._last = -math.inf

    def refused(self, now: float) -> bool:
        """A connection could not be made; whether none could for so long that who tries again and again only waits."""
        if now > self._last + _LONGEST_PAUSE_SECONDS:
            self._began = now
        self._last = now
        return now >= self._began + _PATIENCE_SECONDS

    def ended(self) -> None:
        """A connection was made."""
        self._last = -math.inf


_outage = Outage()


def _not_connected(context: ExceptionContext) -> DatabaseUnavailable | None:
    """A connection that cannot be made: webserver and daemon show SQLAlchemy's error as it is, over and over.

    The error that is returned takes its place; on that one Dagster does not try again.
    """
    error = context.sqlalchemy_exception
    if context.connection is not None or not isinstance(error, OperationalError):
        return None
    if _outage.refused(time.monotonic()):
        return _away(error)
    error.add_detail(
        "Run `era doctor`: it starts an embedded server that was ended, or says what is wrong with the database."
        " Dagster goes on by itself then."
    )
    return None


def _connected(*_: object) -> None:
    _outage.ended()


class KnowledgeBaseDagsterStorage(DagsterPostgresStorage):
    """PostgreSQL storage whose URL comes from the project's settings, not from `dagster.yaml`."""

    @classmethod
    def config_type(cls) -> Any:
        """No options: everything comes from `ERA_*` variables."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "KnowledgeBaseDagsterStorage":
        """Called by Dagster when it opens the instance."""
        url = dagster_url(load_settings(os.environ))
        complete_tables(url)
        if not event.contains(Engine, "handle_error", _not_connected):
            event.listen(Engine, "handle_error", _not_connected)
            event.listen(Engine, "connect", _connected)
        return cls(postgres_url=url, should_autocreate_tables=False, inst_data=inst_data)


class HomeComputeLogs(LocalComputeLogManager):
    """The output of runs under the project's home: without DAGSTER_HOME, Dagster keeps it in a temporary folder."""

    @classmethod
    def config_type(cls) -> Any:
        """No options: the folder is `<ERA_HOME>/dagster/logs`."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "HomeComputeLogs":
        """Called by Dagster when it opens the instance."""
        return cls(base_dir=str(load_settings(os.environ).home / "dagster" / "logs"), inst_data=inst_data)


def dagster_url(settings: Settings) -> str:
    """The SQLAlchemy URL of Dagster's database; creates the database when it stands beside the knowledge base.

    The driver is named in the URL: with SQLAlchemy 2.1 a plain `postgresql://` selects psycopg 3, on which
    dagster-postgres 0.29 fails at its first NOTIFY.
    """
    if settings.dagster_database_url is None:
        return _for_dagster(_beside(database_url(settings)))
    return _for_dagster(checked_address(settings.dagster_database_url, _OWN))


def storage_is_there(settings: Settings) -> bool:
    """Has Dagster's storage been made? Only looks, where `dagster_url` and opening an instance would make it.

    Raises `ConfigurationError` where they could not.
    """
    url = settings.dagster_database_url
    with driver_errors():
        if url is None:
            url = database_url(settings)
            with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
                name = _name_beside(connection)
                if not _exists(connection, name):
                    if not _may_make_databases(connection):
                        raise _needs_a_database(name)
                    return False
            url = with_database(url, name)
        else:
            psycopg.connect(checked_address(url, _OWN), connect_timeout=10).close()
    return are_there(_for_dagster(url))


def _for_dagster(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1).replace("postgres://", "postgresql+psycopg2://", 1)


def _name_beside(connection: psycopg.Connection) -> str:
    row = connection.execute("SELECT current_database()").fetchone()
    return f"{row[0] if row else 'era'}_dagster"


def _exists(connection: psycopg.Connection, name: str) -> bool:
    return connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is not None


def _beside(url: str) -> str:
    with driver_errors(), psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        name = _name_beside(connection)
        if not _exists(connection, name):
            # What the server's own template holds, and whoever is connected to it, is none of ours; UTF8 goes with any C locale.
            made = "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C'"
            try:
                connection.execute(sql.SQL(made).format(sql.Identifier(name)))
            except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                pass  # another process was faster
            except psycopg.errors.InsufficientPrivilege as error:
                raise _needs_a_database(name) from error
    return with_database(url, name)


def _may_make_databases(connection: psycopg.Connection) -> bool:
    asked = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
    return connection.execute(asked).fetchone() == (True,)


def _needs_a_database(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"Dagster needs a database of its own, and this user may not create {name}.",
        hint="Create it, or set ERA_DAGSTER_DATABASE_URL to a database it may use.",
    )
