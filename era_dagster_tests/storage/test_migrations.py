"""Migrations on a real PostgreSQL: once each, by one process at a time, never in two wordings."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable
from era_dagster.storage.database import Database, with_database
from era_dagster.storage.inspection import inspect_database
from era_dagster.storage.migrations import migrate

MIGRATE = "import sys; from era_dagster.storage.migrations import migrate; print(len(migrate(sys.argv[1])))"


@pytest.fixture
def empty_url(postgres_server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database without any table."""
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute('CREATE DATABASE "unmigrated"')
        yield with_database(postgres_server, "unmigrated")
        connection.execute('DROP DATABASE "unmigrated" WITH (FORCE)')


def test_an_empty_database_gets_the_schema_once(empty_url: str) -> None:
    first = migrate(empty_url)
    assert first == sorted(first)
    assert first[0] == "0001_knowledge_base.sql"
    assert migrate(empty_url) == []
    with Database(empty_url, pool_size=1) as database, database.connection() as connection:
        row = connection.execute("SELECT similarity('[1,0]'::halfvec, '[1,1]'::halfvec)").fetchone()
        assert row is not None
        assert row[0] == pytest.approx(0.7071, abs=1e-4)


def test_processes_that_migrate_at_once_do_it_once(empty_url: str) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, empty_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(4)
    ]
    applied: list[int] = []
    for process in running:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        applied.append(int(out))
    assert sorted(applied)[:3] == [0, 0, 0]
    assert max(applied) > 0


def test_a_migration_applied_in_another_wording_is_an_error(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE schema_migrations SET sha256 = '\\x00' WHERE name LIKE '0001%'")
    with pytest.raises(ConfigurationError, match=r"0001_knowledge_base\.sql"):
        migrate(database_url)


def test_a_migration_that_fails_leaves_nothing(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute("CREATE TABLE dead_letters (in_the_way integer)")
    with pytest.raises(psycopg.errors.DuplicateTable):
        migrate(empty_url)
    with psycopg.connect(empty_url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert found == [("dead_letters",)]


def test_an_extension_that_an_administrator_put_elsewhere_is_named_with_what_moves_it(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute("CREATE SCHEMA extensions")
        connection.execute("CREATE EXTENSION vector SCHEMA extensions")
    with pytest.raises(ConfigurationError, match="in the schema extensions"):
        migrate(empty_url)
    assert inspect_database(empty_url).vector_schema == "extensions"
    with psycopg.connect(empty_url) as connection:
        connection.execute("ALTER EXTENSION vector SET SCHEMA public")
    assert migrate(empty_url)


def test_a_database_whose_text_has_no_encoding_is_refused_before_anything_is_made(postgres_server: str) -> None:
    """What a server set up without a locale makes: text came back as bytes, and the first ingest failed on them."""
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE bytes_alone TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'"
        )
        try:
            url = with_database(postgres_server, "bytes_alone")
            with pytest.raises(ConfigurationError, match="SQL_ASCII; it must be UTF8") as raised:
                migrate(url)
            assert raised.value.hint is not None and "ENCODING 'UTF8'" in raised.value.hint
            facts = inspect_database(url)
            assert (facts.encoding, len(facts.pending) > 0) == ("SQL_ASCII", True)
        finally:
            connection.execute("DROP DATABASE bytes_alone WITH (FORCE)")


def test_a_database_that_is_not_there_is_said_in_one_sentence(postgres_server: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
        migrate(with_database(postgres_server, "nowhere"))


@pytest.mark.parametrize(
    "path", ["CREATE SCHEMA {}", 'CREATE SCHEMA app; ALTER DATABASE "unmigrated" SET search_path = app, public']
)
def test_the_schema_is_made_in_public_whatever_the_search_path_is(empty_url: str, path: str) -> None:
    """Else everything was made in the other schema, where nothing looks for it, and no later command worked."""
    with psycopg.connect(empty_url, autocommit=True) as connection:
        user = sql.Identifier(connection.info.user)
        connection.execute(sql.SQL(path).format(user) if "{}" in path else path.encode())
    assert migrate(empty_url) != []
    assert migrate(empty_url) == []
    with psycopg.connect(empty_url) as connection:
        found = connection.execute(
            "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^(pg_|information_)'"
        )
        assert found.fetchall() == [("public",)]
