"""Which addresses are taken, and what is said when the pool has no connection to lend: all in use, or none given."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from psycopg import sql

from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable
from era_dagster.storage.database import Database, checked_address, with_database

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


def test_connections_that_were_all_lost_at_once_cost_the_next_caller_no_time(
    database_url: str, postgres_server: str
) -> None:
    """As after a restart of the server: each in turn cost a pause twice as long, and a look-up failed at a server that was up."""
    with Database(database_url, pool_size=5, longest_wait_seconds=2.0) as database:
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(database.connection())
        name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
        with psycopg.connect(postgres_server, autocommit=True) as admin:
            lost = admin.execute(
                "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = %s", (name,)
            ).fetchone()
        assert lost == (5,)
        assert asked(database) == 42


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process is made to hang by a signal")
def test_a_run_that_ends_does_not_wait_for_a_server_that_hangs(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took half a minute: what keeps a run present waited for a connection, which a closed pool gives nobody."""
    monkeypatch.setattr("era_dagster.storage.database._PRESENT_SECONDS", 0.01)
    database = Database(database_url, pool_size=1, run_id="a run", longest_wait_seconds=6.0)
    database.open()
    with database.connection() as connection:
        pid = connection.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(0.2)
        started = time.monotonic()
        database.close()
        assert time.monotonic() - started < 4.0
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://era:s3cr#et9@/era?host=%2Ftmp%2Fera",
        "postgresql://era:s3cr#et9@db.example:5432/era",
        "postgresql://era:12#et9@db.example:5432/era",
        "postgresql://era:s3[cr]et9@db.example/era",
        "postgresql://era:[s3cret9@db.example/era",
        "postgresql://era:s3cr/et9@db.example/era",
        "postgresql://era:12/s3cret9@db.example/era",
        "postgresql://era:12?s3cret9@db.example/era",
        "postgresql://era:s3cr@et9@db.example/era",
        "postgresql://era:s3cret9%@db.example/era",
        "postgresql://era:s3cret9%ff@db.example/era",
        "postgresql://era:s3cret9\udcff@db.example/era",
        "postgresql://era:s3cret9@db.example:/era",
        "postgresql://era:s3cret9@db.example:54320000/era",
        "postgresql://era:s3cret9@db.example/era#part",
        "postgresql://era:s3cret9@one.example:5432,two.example:5433/era",
        "postgresql+psycopg2://era:s3cret9@db.example/era",
        "mysql://era:s3cret9@db.example/era",
        "host=db.example dbname=era password=s3cret9",
        "s3cret9",
        "",
    ],
)
def test_an_address_that_two_readers_take_for_different_ones_is_refused_without_a_word_of_it(address: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        checked_address(address, "ERA_DATABASE_URL")
    assert refused.value.message == "ERA_DATABASE_URL is not the address of a PostgreSQL database."
    assert "%XX" in refused.value.hint
    assert refused.value.__cause__ is refused.value.__context__ is None


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://era@Db.Example:5432/era",
        "postgres://db.example/era",
        "postgresql://era:s3cr%23et%40%2F%5B9@db.example:5432/era?sslmode=require",
        "postgresql://era:s3;c:r+et9@db.example/era",
        "postgresql://era@[::1]:5433/a%20name",
        "postgresql://%2Ftmp%2FEra/era",
        "postgresql://postgres@/era?host=%2Ftmp%2FEra%2C%20too&port=5432",
        "postgresql://@/era?host=one,two&port=5432,5433&user=era&password=a+b%23",
        "postgresql://era@one,two/era?target_session_attrs=read-write",
        "postgresql://era@db.example?dbname=era&options=-c%20statement_timeout%3D5s",
        "postgresql:///era?host=/tmp",
        "postgresql://",
    ],
)
def test_an_address_that_all_read_alike_is_taken_and_another_database_of_its_server_found(address: str) -> None:
    assert checked_address(address, "ERA_DATABASE_URL") == address
    named = {"dbname": "another name"}
    beside = with_database(address, "another name")
    assert psycopg.conninfo.conninfo_to_dict(beside) == psycopg.conninfo.conninfo_to_dict(address) | named
