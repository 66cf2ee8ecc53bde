"""The embedding server goes away under `era ingest`: for a while, from the start, and for good. Real processes and ports."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from era_dagster_tests.cli.shell import Shell, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer
from era_dagster_tests.fakes.outage import Switch, switchable

# The same with a longer outage, by hand: 10 and 60 seconds.
SECONDS = float(os.environ.get("ERA_TEST_OUTAGE_SECONDS", "4"))
CHAPTERS = 60
# A chunk and four entries a chapter, no two of them alike.
TEXTS = CHAPTERS * 5

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a port is free again at once")


@pytest.fixture
def switch() -> Iterator[Switch]:
    server = FakeEmbeddingServer(dimension=16)
    server.seconds_per_text = 0.005
    with switchable(server) as opened:
        yield opened


@pytest.fixture
def shell(tmp_path: Path, new_database_url: Callable[[], str], switch: Switch) -> Shell:
    write_book(tmp_path / "data" / "drop", "Level Book", chapters=CHAPTERS)
    return Shell(
        tmp_path,
        {
            "ERA_DATABASE_URL": new_database_url(),
            "ERA_EMBEDDING_PROVIDER": "ollama",
            "ERA_EMBEDDING_URLS": switch.url,
            "ERA_EMBEDDING_MODEL": "test-model",
            "ERA_RETRY_BUDGET_SECONDS": str(SECONDS + 60),
        },
    )


def rows(shell: Shell, query: str) -> tuple:
    with psycopg.connect(shell.environment["ERA_DATABASE_URL"], options="-c search_path=public,vectors") as connection:
        return connection.execute(query.encode()).fetchone() or ()


def test_an_outage_in_mid_run_is_waited_out_and_no_text_is_embedded_twice(shell: Shell, switch: Switch) -> None:
    outage = switch.away_for(SECONDS, after_requests=8)
    started = time.monotonic()
    receipt = shell.json("ingest")
    outage.join()
    assert receipt["ok"] is True
    assert time.monotonic() - started > SECONDS
    assert receipt["items"]["stored"] == receipt["embedding"]["texts_embedded"] == TEXTS
    assert receipt["embedding"]["retries"] > 0
    assert shell.json("verify")["clean"] is True


def test_a_server_that_has_worked_before_is_waited_for_at_the_start(shell: Shell, switch: Switch) -> None:
    write_book(shell.folder / "first", "First Book", chapters=1)
    assert shell.json("ingest", "first")["ok"] is True
    switch.down()
    back = threading.Timer(SECONDS + 6, switch.up)  # longer than the patience with an unknown address
    back.start()
    receipt = shell.json("ingest")
    back.join()
    assert receipt["ok"] is True
    assert receipt["embedding"]["texts_embedded"] == TEXTS


def test_an_outage_for_good_keeps_what_is_done_and_the_next_run_embeds_only_the_rest(
    shell: Shell, switch: Switch
) -> None:
    outage = switch.away_for(8, after_requests=8)
    done = shell.era("ingest", "--json", ERA_RETRY_BUDGET_SECONDS="2")
    outage.join()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first = json.loads(done.stdout)
    assert switch.url in first["failure"]
    embedded = first["embedding"]["texts_embedded"]
    assert 0 < embedded < TEXTS
    assert rows(shell, "SELECT count(*) FROM embedding_cache") == (embedded,)
    second = shell.json("ingest")
    assert second["ok"] is True
    assert second["embedding"]["texts_embedded"] == TEXTS - embedded
    assert shell.json("verify")["clean"] is True


def test_with_no_server_at_all_everything_is_done_that_needs_none(shell: Shell, switch: Switch) -> None:
    switch.down()
    done = shell.era("ingest", "--json", ERA_RETRY_BUDGET_SECONDS="1")
    assert done.returncode == 1
    assert switch.url in json.loads(done.stdout)["failure"]
    assert rows(
        shell,
        "SELECT count(chapters_stamp), count(chunks_stamp), count(minister_files_stamp), count(embeddings_stamp)"
        " FROM doctrine_sources",
    ) == (CHAPTERS, CHAPTERS, CHAPTERS, 0)
    assert (shell.folder / "data" / "ministers" / "risk" / "rules.json").is_file()
    switch.up()
    assert shell.json("ingest")["embedding"]["texts_embedded"] == TEXTS
