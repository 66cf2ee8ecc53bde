"""What every test may ask for: settings in a folder of its own, and a fresh, migrated database on a real PostgreSQL.

One server runs for all tests of a process; each test gets a database of its own, copied from a migrated template.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest

from era_dagster.settings import Settings, load_settings
from era_dagster.storage.database import Database, with_database
from era_dagster.storage.migrations import migrate
from era_dagster.storage.server import EmbeddedServer

_numbers = itertools.count(1)
# How long one example takes says more of what else the machine does than of the code.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")
# A shell that starts the tests in the background has them ignore interrupts, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of database "era" on an embedded server of this session."""
    server = EmbeddedServer(tmp_path_factory.mktemp("pg") / "home")
    url = server.ensure_running()
    with psycopg.connect(url, autocommit=True) as connection:
        # What a test stores need not outlive the machine, and a thousand databases would be synced to its disk.
        for setting in ("fsync = off", "full_page_writes = off", "max_wal_size = '128MB'"):
            connection.execute(f"ALTER SYSTEM SET {setting}")
        connection.execute("SELECT pg_reload_conf()")
    yield url
    pid = server.status().pid
    if pid is not None and hasattr(signal, "SIGQUIT"):
        # Nobody will read it again: without the last checkpoint, which syncs the files of a hundred databases.
        os.kill(pid, signal.SIGQUIT)
    server.stop()


@pytest.fixture(scope="session")
def database_template(postgres_server: str) -> str:
    name = f"template_era_{os.getpid()}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    migrate(with_database(postgres_server, name))
    return name


@pytest.fixture
def new_database_url(postgres_server: str, database_template: str) -> Iterator[Callable[[], str]]:
    """Makes fresh, migrated databases, which go when the test ends."""
    names: list[str] = []

    def make() -> str:
        names.append(f"era_{os.getpid()}_{next(_numbers)}")
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{names[-1]}" TEMPLATE "{database_template}"')
        return with_database(postgres_server, names[-1])

    yield make
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in names:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(new_database_url: Callable[[], str]) -> str:
    """The URL of a fresh, migrated database."""
    return new_database_url()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open `Database` on a fresh, migrated database."""
    with Database(database_url, pool_size=4) as opened:
        yield opened


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Settings whose folders lie in the test's own folder and whose database is fresh."""
    return load_settings(
        {},
        home=tmp_path / "home",
        data_dir=tmp_path / "data",
        drop_dir=tmp_path / "drop",
        database_url=database_url,
        settle_seconds=0.01,
    )
