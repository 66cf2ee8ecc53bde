"""Addresses of databases that cannot be right, and what the environment says of other servers, from the user's shell."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from era_dagster.storage.server import EmbeddedServer
from era_dagster_tests.cli.shell import Shell, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer

ELSEWHERE = {"PGSERVICE": "nix", "PGHOSTADDR": "192.0.2.1", "PGOPTIONS": "-c search_path=foo", "PGDATESTYLE": "German"}


@pytest.fixture
def embedded(tmp_path: Path, embedding_server: tuple[FakeEmbeddingServer, str]) -> Iterator[Shell]:
    """A shell with an embedded server of its own."""
    (tmp_path / "data" / "drop").mkdir(parents=True)
    yield Shell(
        tmp_path,
        {
            "ERA_HOME": str(tmp_path / "home"),
            "ERA_EMBEDDING_PROVIDER": "ollama",
            "ERA_EMBEDDING_URLS": embedding_server[1],
            "ERA_EMBEDDING_MODEL": "test-model",
        },
    )
    EmbeddedServer(tmp_path / "home").stop()


@pytest.mark.parametrize("setting", ["ERA_DATABASE_URL", "ERA_DAGSTER_DATABASE_URL"])
@pytest.mark.parametrize(
    "address",
    [
        "postgresql://postgres:s3cr#et9@/era?host=%2Ftmp%2Fera",
        "postgresql://postgres:s3[cr]et9@127.0.0.1/era",
        "host=127.0.0.1 dbname=era password=s3cret9",
    ],
)
def test_a_wrong_address_is_named_without_any_part_of_its_password(shell: Shell, setting: str, address: str) -> None:
    write_book(shell.folder / "data" / "drop", "Book")
    done = shell.era("ingest", **{setting: address})
    assert done.returncode == 2
    assert f"{setting} is not the address of a PostgreSQL database." in done.stderr
    asked = shell.era("doctor", **{setting: address})
    assert asked.returncode == 1
    assert f"{setting} is not the address of a PostgreSQL database." in " ".join(asked.stdout.split())
    for text in (done.stdout, done.stderr, asked.stdout, asked.stderr):
        assert "%XX" in text or not text.strip()
        assert "Unexpected" not in text
        assert "s3" not in text
        assert "et9" not in text


def test_the_embedded_server_works_on_whatever_the_environment_says_of_other_servers(embedded: Shell) -> None:
    write_book(embedded.folder / "data" / "drop", "Book")
    assert embedded.era("db", "start").returncode == 0
    before = embedded.json("db", "url")["embedded"]
    assert embedded.era("status", **ELSEWHERE).returncode == 0
    receipt = embedded.era("ingest", "--json", **ELSEWHERE)
    assert receipt.returncode == 0, receipt.stderr
    assert json.loads(receipt.stdout)["chapters"]["stored"] == 2
    looked = json.loads(embedded.era("db", "url", "--json", **ELSEWHERE).stdout)
    assert looked["embedded"]["pid"] == before["pid"] is not None
    assert embedded.json("db", "url")["embedded"] == before


def test_for_a_server_of_ones_own_they_count(shell: Shell) -> None:
    refused = shell.era("status", PGSERVICE="nix")
    assert refused.returncode != 0
    assert 'definition of service "nix" not found' in refused.stderr
