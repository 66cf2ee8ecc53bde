"""What `era doctor` looks at: each fault, planted, is named with the next step, and looking changes nothing."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.space import Space
from era_dagster.pipeline import health
from era_dagster.pipeline.health import Finding
from era_dagster.settings import Settings, load_settings
from era_dagster.storage.database import Database
from era_dagster.storage.inspection import DatabaseFacts, inspect_database
from era_dagster.storage.spaces import complete_settings, ensure_space
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving

SPACE = Space(provider="ollama", model="test-model", digest=None, dimension=8, document_prefix="", query_prefix="")


@pytest.fixture
def facts(database_url: str) -> DatabaseFacts:
    return inspect_database(database_url)


def judged(facts: DatabaseFacts) -> dict[str, Finding]:
    return {finding.name: finding for finding in health.judge_database(facts, embedded=True)}


def test_a_database_as_we_make_it_is_well(facts: DatabaseFacts) -> None:
    found = judged(facts)
    assert {name: finding.level for name, finding in found.items()} == dict.fromkeys(
        ("database", "extension", "schema", "clock"), "ok"
    )
    assert all(not finding.next_step for finding in found.values())


@pytest.mark.parametrize(
    ("fault", "name", "level", "said"),
    [
        ({"server_number": 150008, "server_version": "15.8"}, "database", "failed", "Use PostgreSQL 16"),
        ({"vector_installed": None, "vector_available": None}, "extension", "failed", "Install pgvector"),
        ({"vector_installed": None}, "extension", "warning", "era db migrate"),
        ({"vector_installed": "0.7.4"}, "extension", "failed", "ALTER EXTENSION"),
        ({"vector_schema": "extensions"}, "extension", "failed", "SET SCHEMA public"),
        ({"encoding": "SQL_ASCII"}, "database", "failed", "ENCODING 'UTF8'"),
        ({"vector_installed": "0.8.1"}, "extension", "warning", "ALTER EXTENSION"),
        ({"pending": ("0009_more.sql",)}, "schema", "warning", "era db migrate"),
        ({"unknown": ("0099_from_later.sql",)}, "schema", "warning", "Use that release"),
        ({"clock_ahead_seconds": -90.0}, "clock", "warning", "same server"),
    ],
)
def test_a_fault_of_the_database_is_named_with_the_next_step(
    facts: DatabaseFacts, fault: dict[str, object], name: str, level: str, said: str
) -> None:
    finding = judged(replace(facts, **fault))[name]
    assert finding.level == level
    assert said in finding.next_step


def test_a_slow_connection_is_no_wrong_clock(facts: DatabaseFacts) -> None:
    assert judged(replace(facts, clock_ahead_seconds=3.0, clock_uncertainty_seconds=2.5))["clock"].level == "ok"


def test_looking_at_an_empty_database_leaves_it_empty(postgres_server: str) -> None:
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS looked_at")
        connection.execute("CREATE DATABASE looked_at")
    url = postgres_server.replace("/era?", "/looked_at?")
    found = judged(inspect_database(url))
    assert found["extension"].level == found["schema"].level == "warning"
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


def test_an_edited_migration_is_an_error_with_a_way_out(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE schema_migrations SET sha256 = 'x' WHERE name LIKE '0001%'")
    with pytest.raises(ConfigurationError, match="0001_knowledge_base"):
        inspect_database(database_url)


def test_a_vector_table_of_another_dimension_is_named(database: Database, database_url: str) -> None:
    ensure_space(database, SPACE)
    assert health.vector_tables(inspect_database(database_url), SPACE).level == "ok"
    with database.connection() as connection:
        connection.execute("ALTER TABLE chunk_embeddings ALTER embedding TYPE halfvec(4)")
    finding = health.vector_tables(inspect_database(database_url), SPACE)
    assert finding.level == "failed"
    assert "chunk_embeddings holds vectors of 4" in finding.found


def test_settings_for_other_programs_that_a_restored_database_lacks_are_named_and_set_by_the_owner(
    database: Database, database_url: str
) -> None:
    """A dump does not hold them: after the restore other programs did not find the tables, and nothing said so."""
    ensure_space(database, SPACE)
    name = conninfo_to_dict(database_url)["dbname"]
    theirs = database_url.replace("postgres@", f"{name}@")

    def of_the_tables() -> Finding:
        return health.vector_tables(inspect_database(theirs), SPACE)

    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN".encode())
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}".encode())
        connection.execute(f"ALTER DATABASE {name} RESET ALL".encode())
        connection.execute(f"ALTER DATABASE {name} SET hnsw.ef_search = '400'".encode())
        assert of_the_tables().level == "ok"  # it is not for this user to set them
        with Database(theirs, pool_size=1) as reading:
            assert complete_settings(reading) == ()
        connection.execute(f"ALTER DATABASE {name} OWNER TO {name}".encode())
        finding = of_the_tables()
        assert (finding.level, finding.next_step) == ("warning", "`era db migrate` sets them.")
        assert "lacks search_path, hnsw.iterative_scan for" in finding.found
        with Database(theirs, pool_size=1) as owning:
            assert complete_settings(owning) == ("search_path", "hnsw.iterative_scan")
            assert complete_settings(owning) == ()
        assert of_the_tables().level == "ok"
    with psycopg.connect(database_url) as other:
        other.execute("SELECT embedding <=> '[1,2,3,4,5,6,7,8]' FROM doctrine_embeddings")
        assert other.execute("SHOW hnsw.iterative_scan").fetchone() == ("strict_order",)
        assert other.execute("SHOW hnsw.ef_search").fetchone() == ("400",)  # the owner's own choice


def test_a_folder_without_space_or_rights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.folder("home folder", tmp_path / "not" / "yet").level == "ok"
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "no folder" in health.folder("home folder", tmp_path / "file" / "below").found
    monkeypatch.setattr(health, "LEAST_FREE_BYTES", 10**18)
    assert health.folder("home folder", tmp_path).next_step == "Free at least 1 GB."


def test_a_model_folder_that_is_filled_or_not_needed_may_be_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`era doctor` failed for it where the model answered from there, or from Ollama for a user without a home."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert health.folder("model folder", tmp_path, read_only_serves=True).level == "warning"
    assert health.folder("data folder", tmp_path).level == "failed"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="whoever runs this may read and write everything")
def test_a_closed_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        assert health.folder("home folder", tmp_path).level == "failed"
        assert health.drop_folder(tmp_path).level == "failed"
    finally:
        tmp_path.chmod(0o700)


def test_a_drop_folder_that_is_missing_is_a_warning_and_one_that_is_a_file_a_failure(tmp_path: Path) -> None:
    assert health.drop_folder(tmp_path / "drop").level == "warning"
    (tmp_path / "drop").write_text("x", encoding="utf-8")
    assert health.drop_folder(tmp_path / "drop").level == "failed"


@pytest.fixture
def with_server(tmp_path: Path) -> Callable[[str, str], Settings]:
    def settings(url: str, model: str) -> Settings:
        variables = {"ERA_EMBEDDING_PROVIDER": "ollama", "ERA_EMBEDDING_URLS": url, "ERA_EMBEDDING_MODEL": model}
        return load_settings(variables, home=tmp_path)

    return settings


def test_a_model_that_is_missing_other_or_of_another_length_is_named(
    with_server: Callable[[str, str], Settings],
) -> None:
    server = FakeEmbeddingServer()
    with serving(server) as url:
        settings = with_server(url, "test-model")
        assert [finding.level for finding in health.model(settings, None)] == ["ok", "ok"]
        longer = replace(SPACE, dimension=server.dimension + 1)
        model, dimension = health.model(settings, longer)
        assert (model.level, dimension.level) == ("ok", "failed")
        assert f"{server.dimension} dimensions" in dimension.found
        (other,) = health.model(settings, replace(SPACE, model="another"))
        assert other.level == "failed"
        assert "ERA_EMBEDDING_MODEL=another" in other.next_step
        (missing,) = health.model(with_server(url, "not-there"), None)
        assert missing.level == "failed"
        assert "not-there" in missing.found + missing.next_step


def test_a_server_that_is_away_is_named_with_its_address(with_server: Callable[[str, str], Settings]) -> None:
    (finding,) = health.model(with_server("http://127.0.0.1:9", "test-model"), None)
    assert finding.level == "failed"
    assert "http://127.0.0.1:9" in finding.found


def test_an_embedding_server_that_the_local_model_leaves_unused_is_told(
    with_server: Callable[[str, str], Settings],
) -> None:
    settings = replace(with_server("http://127.0.0.1:9", "all-minilm-l6-v2"), embedding_provider="local")
    model, dimension = health.model(settings, None)
    assert (model.level, dimension.level) == ("warning", "ok")
    assert "ERA_EMBEDDING_URLS is set and not used" in model.found
    (model, _) = health.model(replace(settings, embedding_urls=()), None)
    assert model.level == "ok"
