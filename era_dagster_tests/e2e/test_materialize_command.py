"""`dagster asset materialize --select embeddings`, typed in a shell, on a real server; nothing but the module's name is set."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from era_dagster_tests.e2e.project import SAMPLES, Project, make_project, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeEmbeddingServer, str]]:
    fake = FakeEmbeddingServer()
    with serving(fake) as url:
        yield fake, url


@pytest.fixture
def project(tmp_path: Path, new_database_url: Callable[[], str], server: tuple[FakeEmbeddingServer, str]) -> Project:
    return make_project(
        tmp_path,
        {
            "ERA_DATABASE_URL": new_database_url(),
            "ERA_EMBEDDING_PROVIDER": "ollama",
            "ERA_EMBEDDING_URLS": server[1],
            "ERA_EMBEDDING_MODEL": "test-model",
        },
    )


def count(project: Project, table: str) -> int:
    with psycopg.connect(project.variables["ERA_DATABASE_URL"]) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return row[0]


def test_the_literal_command_embeds_everything_pending_with_nothing_else_set(tmp_path: Path) -> None:
    bare = make_project(tmp_path, {})
    shutil.copytree(SAMPLES / "Letters of a Go-Between", bare.drop / "Letters of a Go-Between")
    try:
        command = ("dagster", "asset", "materialize", "--select", "embeddings")
        done = bare.run(*command, DAGSTER_MODULE_NAME="era_dagster.definitions")
        assert done.returncode == 0, done.stderr
        url = bare.run("era", "db", "url").stdout.strip()
        with psycopg.connect(url) as connection:
            cached = connection.execute("SELECT count(*), min(model) FROM embedding_cache").fetchone()
            # 17 chunks and 49 entries, all different; the local model, since no Ollama answers here.
            assert cached == (66, "all-minilm-l6-v2")
        assert len(bare.materialized("embeddings")) == 6
        assert bare.materialized("vector_tables") == set()
    finally:
        bare.run("era", "db", "stop")


def test_a_second_command_finds_nothing_to_embed(project: Project, server: tuple[FakeEmbeddingServer, str]) -> None:
    write_book(project.drop, "Level", [1, 2, 3])
    assert project.materialize("--select", "embeddings").returncode == 0
    before = server[0].requests
    done = project.materialize("--select", "embeddings")
    assert done.returncode == 0, done.stderr
    assert server[0].requests == before


def test_a_partition_and_a_range_take_just_those_chapters(project: Project) -> None:
    write_book(project.drop, "level", [1, 2, 3, 4, 5])
    # Chapters are known once they were looked at; `chapters` alone needs no model.
    assert project.materialize("--select", "chapters").returncode == 0
    done = project.materialize("--select", "embeddings", "--partition", "level/0002")
    assert done.returncode == 0, done.stderr
    assert project.materialized("embeddings") == {"level/0002"}
    done = project.materialize("--select", "embeddings", "--partition-range", "level/0003...level/0004")
    assert done.returncode == 0, done.stderr
    assert project.materialized("embeddings") == {"level/0002", "level/0003", "level/0004"}
    # One chunk and two entries a chapter.
    assert count(project, "embedding_cache") == 9


def test_all_assets_together_fill_tables_and_files(project: Project) -> None:
    write_book(project.drop, "level", [1, 2])
    done = project.materialize("--select", "*")
    assert done.returncode == 0, done.stderr
    assert count(project, "doctrine_embeddings_all") == 4
    assert count(project, "doctrine_embeddings") == 8
    assert (project.folder / "data" / "ministers" / "truth" / "principles.json").exists()
    assert (project.folder / "data" / "combined_vector.index").exists()
    for asset in ("chapters", "chunks", "embeddings", "vector_tables", "minister_files"):
        assert project.materialized(asset) == {"level/0001", "level/0002"}


def test_one_chapter_that_cannot_be_embedded_fails_by_name_and_the_others_are_materialized(
    project: Project, server: tuple[FakeEmbeddingServer, str]
) -> None:
    write_book(project.drop, "level", [1, 2])
    write_book(project.drop, "poison", [1])
    server[0].poison.add("poison 1")
    try:
        done = project.materialize("--select", "*")
    finally:
        server[0].poison.clear()
    assert done.returncode != 0
    assert "poison/0001" in done.stderr + done.stdout
    assert project.materialized("vector_tables") == {"level/0001", "level/0002"}
    assert project.materialized("chapters") == {"level/0001", "level/0002", "poison/0001"}
    assert count(project, "doctrine_embeddings_all") == 4


def test_with_a_dagster_home_of_ones_own_the_marks_are_found_there(project: Project) -> None:
    """Without a `dagster.yaml` in it Dagster keeps its history in SQLite files, which know no batches."""
    home = project.folder / "dagster_home"
    home.mkdir()
    write_book(project.drop, "level", [1, 2, 3])
    done = project.materialize("--select", "chapters", DAGSTER_HOME=str(home))
    assert done.returncode == 0, done.stderr
    done = project.materialize("--select", "*", "--partition-range", "level/0001...level/0002", DAGSTER_HOME=str(home))
    assert done.returncode == 0, done.stderr
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert set(instance.get_materialized_partitions(dg.AssetKey("chapters"))) == {
            f"level/000{n}" for n in (1, 2, 3)
        }
        assert set(instance.get_materialized_partitions(dg.AssetKey("vector_tables"))) == {"level/0001", "level/0002"}
        assert instance.get_latest_materialization_event(dg.AssetKey("combined_index")) is not None


def test_an_unknown_asset_or_partition_is_refused_with_its_name(project: Project) -> None:
    write_book(project.drop, "level", [1])
    done = project.materialize("--select", "no_such_asset")
    assert done.returncode != 0
    assert "no_such_asset" in done.stderr + done.stdout
    done = project.materialize("--select", "embeddings", "--partition", "level/0099")
    assert done.returncode != 0
    assert count(project, "embedding_cache") == 0


def test_the_definitions_are_valid_and_load_without_a_database(tmp_path: Path) -> None:
    nowhere = make_project(tmp_path, {"ERA_DATABASE_URL": "postgresql://127.0.0.1:9/era"})
    (tmp_path / "dagster.yaml").unlink()
    done = nowhere.run("dagster", "definitions", "validate", "-m", "era_dagster.definitions")
    assert done.returncode == 0, done.stderr
