"""Dagster's own tables: complete after any kill, the same as Dagster would make, untouched when an older Dagster made them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import sqlalchemy as db
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster_postgres import DagsterPostgresStorage

from era_dagster.defs.dagster_tables import complete_tables


@pytest.fixture
def url(new_database_url: Callable[[], str]) -> str:
    return sqlalchemy_url(new_database_url())


def sqlalchemy_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


def schema_of(url: str) -> set[tuple[str, ...]]:
    """Every column, index, revision and finished migration."""
    queries = (
        "SELECT 'column', table_name, column_name, data_type, column_default FROM information_schema.columns"
        " WHERE table_schema = 'public'",
        "SELECT 'index', indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT 'revision', version_num FROM alembic_version",
        "SELECT 'migration', name FROM secondary_indexes WHERE migration_completed IS NOT NULL",
    )
    with psycopg.connect(url.replace("+psycopg2", "")) as connection:
        return {tuple(map(str, row)) for query in queries for row in connection.execute(query).fetchall()}


@pytest.fixture
def as_dagster_makes_it(new_database_url: Callable[[], str]) -> set[tuple[str, ...]]:
    made_by_dagster = sqlalchemy_url(new_database_url())
    DagsterPostgresStorage(postgres_url=made_by_dagster)
    return schema_of(made_by_dagster)


@pytest.mark.parametrize("made", [0, 1, 9, 12, 16])
def test_a_storage_left_half_made_by_a_kill_is_completed(
    url: str, as_dagster_makes_it: set[tuple[str, ...]], made: int
) -> None:
    """Dagster makes its tables one by one and believes them complete from the first: such a storage failed every run."""
    tables = [*RunStorageSqlMetadata.sorted_tables, *SqlEventLogStorageMetadata.sorted_tables][:made]
    engine = db.create_engine(url)
    with engine.begin() as connection:
        for table in tables:
            table.create(connection, checkfirst=True)
    engine.dispose()
    complete_tables(url)
    assert schema_of(url) == as_dagster_makes_it


def test_several_processes_that_start_at_once_make_the_tables_together(
    url: str, as_dagster_makes_it: set[tuple[str, ...]]
) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(complete_tables, [url] * 6))
    assert schema_of(url) == as_dagster_makes_it


def test_a_storage_of_an_older_dagster_is_left_to_its_own_migration(url: str) -> None:
    DagsterPostgresStorage(postgres_url=url)
    with psycopg.connect(url.replace("+psycopg2", "")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '3b529ad30626'")
        connection.execute("DROP TABLE asset_check_executions")
    before = schema_of(url)
    complete_tables(url)
    assert schema_of(url) == before
