"""What is said when the pool has no connection to lend: whether ours are all in use, or the server gives none."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from psycopg import sql

from era_dagster.domain.errors import DatabaseUnavailable
from era_dagster.storage.database import Database

WAIT_SECONDS = 0.5


@pytest.fixture
def small(database_url: str) -> Iterator[Database]:
    """A pool of two that waits for half a second."""
    with Database(database_url, pool_size=2, longest_wait_seconds=WAIT_SECONDS) as database:
        yield database


def asked(database: Database) -> int:
    with database.connection() as connection:
        return connection.execute("SELECT 42").fetchone()[0]  # type: ignore[index]


def test_a_pool_that_is_all_lent_says_so_and_lends_what_comes_back(small: Database) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(small.connection())
        started = time.monotonic()
        with pytest.raises(
            DatabaseUnavailable, match=r"No connection to PostgreSQL was free for 0\.5 s: all 2"
        ) as caught:
            asked(small)
        assert WAIT_SECONDS * 0.9 < time.monotonic() - started < 10
        assert "ERA_DATABASE_POOL" in caught.value.hint
    assert [asked(small) for _ in range(3)] == [42] * 3


def test_a_pool_that_failed_work_gave_its_connections_back_to_is_not_taken_for_lent(
    small: Database, database_url: str, postgres_server: str
) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), small.connection():
            _ = 1 / 0
    assert asked(small) == 42

    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(str(name))))
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        with pytest.raises(DatabaseUnavailable, match="PostgreSQL cannot be reached"):
            asked(small)
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(str(name))))
    assert asked(small) == 42
