"""A shell with a fresh database and an embedding server for the tests of the `era` command."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from era_dagster_tests.cli.shell import Shell
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving


@pytest.fixture(scope="module")
def embedding_server() -> Iterator[tuple[FakeEmbeddingServer, str]]:
    server = FakeEmbeddingServer()
    with serving(server) as url:
        yield server, url


@pytest.fixture
def shell(
    tmp_path: Path, new_database_url: Callable[[], str], embedding_server: tuple[FakeEmbeddingServer, str]
) -> Shell:
    (tmp_path / "data" / "drop").mkdir(parents=True)
    return Shell(
        tmp_path,
        {
            "ERA_DATABASE_URL": new_database_url(),
            "ERA_EMBEDDING_PROVIDER": "ollama",
            "ERA_EMBEDDING_URLS": embedding_server[1],
            "ERA_EMBEDDING_MODEL": "test-model",
        },
    )
