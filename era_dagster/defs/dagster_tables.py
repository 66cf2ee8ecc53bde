"""Creates the tables of Dagster's own storage so that a process killed in between leaves nothing half made.

Dagster creates them one by one, outside a transaction, and takes them all to be there as soon as the first one is: a
process killed meanwhile leaves a storage in which every later run fails ("requires a database schema migration"). Here
they come in one transaction, under a lock, and what an earlier start left incomplete is completed.
"""

import sqlalchemy as db
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.migration import ASSET_DATA_MIGRATIONS, EVENT_LOG_DATA_MIGRATIONS
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.migration import OPTIONAL_DATA_MIGRATIONS, REQUIRED_DATA_MIGRATIONS
from dagster._core.storage.runs.schema import RunStorageSqlMetadata, SecondaryIndexMigrationTable
from dagster._core.storage.schedules.migration import (
    OPTIONAL_SCHEDULE_DATA_MIGRATIONS,
    REQUIRED_SCHEDULE_DATA_MIGRATIONS,
)
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from dagster._core.storage.sql import stamp_alembic_rev
from dagster_postgres import event_log
from dagster_postgres.utils import pg_alembic_config
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

_TABLES = (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata)
# Ways of reading that Dagster takes once an old storage was migrated to them: a new one has nothing to migrate.
_MIGRATIONS = frozenset().union(
    REQUIRED_DATA_MIGRATIONS,
    OPTIONAL_DATA_MIGRATIONS,
    EVENT_LOG_DATA_MIGRATIONS,
    ASSET_DATA_MIGRATIONS,
    REQUIRED_SCHEDULE_DATA_MIGRATIONS,
    OPTIONAL_SCHEDULE_DATA_MIGRATIONS,
)
_LOCK = 0x6461_6773_7465_7231  # "dagster1"


def complete_tables(url: str) -> None:
    """Create what is missing of Dagster's tables in the database at the SQLAlchemy `url`; one look when nothing is.

    The storage of an older Dagster, which `dagster instance migrate` brings up to date, is left as it is.
    """
    engine = db.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        if _complete(connection):
            return
    with engine.begin() as connection:
        connection.execute(db.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        if not _complete(connection) and not _older(connection):
            _create(connection)


def are_there(url: str) -> bool:
    """Does the database at the SQLAlchemy `url` hold a whole storage, of this Dagster or of an older one? Only looks."""
    with db.create_engine(url, poolclass=NullPool).connect() as connection:
        return _complete(connection) or _older(connection)


def _complete(connection: Connection) -> bool:
    expected = {name for metadata in _TABLES for name in metadata.tables}
    return expected <= _tables(connection) and _marked(connection) >= _MIGRATIONS


def _tables(connection: Connection) -> set[str]:
    return set(
        connection.scalars(db.text("SELECT tablename FROM pg_tables WHERE schemaname = ANY (current_schemas(false))"))
    )


def _marked(connection: Connection) -> set[str]:
    return set(connection.scalars(db.select(SecondaryIndexMigrationTable.c.name)))


def _older(connection: Connection) -> bool:
    revision = MigrationContext.configure(connection).get_current_revision()
    return revision is not None and revision != ScriptDirectory.from_config(_alembic()).as_revision_number("head")


def _create(connection: Connection) -> None:
    for metadata in _TABLES:
        metadata.create_all(connection)
    stamp_alembic_rev(_alembic(), connection)
    missing = sorted(_MIGRATIONS - _marked(connection))
    if missing:
        marks = [{"name": name, "migration_completed": db.func.now()} for name in missing]
        connection.execute(SecondaryIndexMigrationTable.insert().values(marks))


def _alembic() -> Config:
    return pg_alembic_config(event_log.__file__)
