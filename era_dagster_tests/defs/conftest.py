"""A desk for the tests of the graph: a drop folder, a knowledge base, an embedding server and a real Dagster instance."""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from era_dagster.storage.database import Database
from era_dagster_tests.defs.desk import Desk
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving


@pytest.fixture
def server() -> Iterator[tuple[FakeEmbeddingServer, str]]:
    """The embedding server and its URL."""
    fake = FakeEmbeddingServer(dimension=16)
    with serving(fake) as url:
        yield fake, url


@pytest.fixture
def variables(
    tmp_path: Path,
    new_database_url: Callable[[], str],
    server: tuple[FakeEmbeddingServer, str],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, str]:
    """The project's variables, as set for this process."""
    drop = tmp_path / "data" / "drop"
    drop.mkdir(parents=True)
    chosen = {
        "ERA_HOME": str(tmp_path / "home"),
        "ERA_DATA_DIR": str(tmp_path / "data"),
        "ERA_DROP_DIR": str(drop),
        "ERA_DATABASE_URL": new_database_url(),
        "ERA_EMBEDDING_PROVIDER": "ollama",
        "ERA_EMBEDDING_URLS": server[1],
        "ERA_EMBEDDING_MODEL": "test-model",
        "ERA_RETRY_BUDGET_SECONDS": "0.5",
    }
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    return chosen


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Dagster's own temporary instance: SQLite in a folder."""
    with dg.instance_for_test() as opened:
        yield opened


@pytest.fixture
def desk(
    variables: dict[str, str], instance: dg.DagsterInstance, server: tuple[FakeEmbeddingServer, str]
) -> Iterator[Desk]:
    with Database(variables["ERA_DATABASE_URL"], pool_size=4) as database:
        yield Desk(variables=variables, instance=instance, database=database, server=server[0])
