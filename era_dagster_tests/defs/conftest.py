"""A desk for the tests of the graph: a drop folder, a knowledge base, an embedding server and a real Dagster instance."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def stored_in(folder: Path) -> dict[str, Any]:
    """Dagster's own storages in SQLite, the events of all runs in one file: a file of each run's own costs more than the run."""
    classes = {
        "run_storage": ("runs", "SqliteRunStorage"),
        "event_log_storage": ("event_log", "ConsolidatedSqliteEventLogStorage"),
        "schedule_storage": ("schedules", "SqliteScheduleStorage"),
    }
    return {
        storage: {"module": f"dagster._core.storage.{module}", "class": name, "config": {"base_dir": str(folder)}}
        for storage, (module, name) in classes.items()
    }


@pytest.fixture(scope="session")
def empty_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables of a new instance."""
    folder = tmp_path_factory.mktemp("history")
    with dg.instance_for_test(overrides=stored_in(folder), set_dagster_home=False) as made:
        assert made.get_runs() == []
        assert made.all_instigator_state() == []
    return folder


@pytest.fixture
def instance(tmp_path: Path, empty_history: Path) -> Iterator[dg.DagsterInstance]:
    """A new instance of Dagster's own, in a folder."""
    history = tmp_path / "history"
    shutil.copytree(empty_history, history)
    with dg.instance_for_test(overrides=stored_in(history)) as opened:
        yield opened


@pytest.fixture
def desk(
    variables: dict[str, str], instance: dg.DagsterInstance, server: tuple[FakeEmbeddingServer, str]
) -> Iterator[Desk]:
    with Database(variables["ERA_DATABASE_URL"], pool_size=4) as database:
        yield Desk(variables=variables, instance=instance, database=database, server=server[0])
