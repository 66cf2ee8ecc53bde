"""Many look-ups at once while something does not answer: each is told in time, and what one gives up the next one has."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import psycopg
import pytest

from era_dagster import knowledge
from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable, EndpointUnavailable
from era_dagster.embedding import queries
from era_dagster.knowledge import AsyncKnowledgeBase, KnowledgeBase
from era_dagster.settings import Settings
from era_dagster.storage import database, migrations
from era_dagster.storage.access import Opening
from era_dagster.storage.database import Database
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving, vector_of
from era_dagster_tests.fakes.hanging_database import hanging_database
from era_dagster_tests.pipeline.workbench import Workbench, chapter
from era_dagster_tests.waiting import wait_until

DIMENSION = 16
POOL = 2
RULES = ("Sound the bell in fog.", "Tie up before the tide turns.", "Count the crew at dusk.")


@pytest.fixture
def server() -> Iterator[FakeEmbeddingServer]:
    yield FakeEmbeddingServer(dimension=DIMENSION)


@pytest.fixture
def asked(settings: Settings, database_url: str, server: FakeEmbeddingServer) -> Iterator[Settings]:
    """Settings for a knowledge base that holds RULES; its embedding server is up."""
    with serving(server) as url:
        with Database(database_url, pool_size=2) as opened:
            bench = Workbench(settings, opened, server)
            bench.drop("harbour", chapter(1, domains=["boats"], rules=list(RULES)))
            bench.look()
            bench.run()
        yield replace(bench.settings, embedding_urls=(url,), database_pool=POOL)


@pytest.fixture
def nothing_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not called one of the three functions yet."""
    monkeypatch.setattr(knowledge, "_shared_opening", Opening(knowledge._begin_shared))


def query() -> list[float]:
    return vector_of(RULES[0], DIMENSION).tolist()


@pytest.mark.usefixtures("nothing_shared")
def test_callers_of_the_functions_that_wait_for_the_same_opening_share_its_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a database that hangs the first was told after ten seconds, the fourth after forty."""

    def ask() -> None:
        with pytest.raises(DatabaseUnavailable):
            knowledge.semantic_similarity_lookup(query(), None)

    with hanging_database(seconds=0.3) as (url, connected), ThreadPoolExecutor(4) as threads:
        monkeypatch.setenv("ERA_DATABASE_URL", url)
        for attempts in (1, 2):
            for told in [threads.submit(ask) for _ in range(4)]:
                told.result(timeout=30)
            assert len(connected) == attempts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
@pytest.mark.usefixtures("nothing_shared")
def test_a_process_forked_while_a_thread_opens_the_knowledge_base_opens_its_own(
    asked: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for ever, for a thread that it does not have."""

    def ask() -> None:
        with suppress(DatabaseUnavailable):
            knowledge.semantic_similarity_lookup(query(), None)

    with hanging_database(seconds=3.0) as (url, connected), ThreadPoolExecutor(1) as threads:
        monkeypatch.setenv("ERA_DATABASE_URL", url)
        told = threads.submit(ask)
        wait_until(lambda: len(connected) == 1)
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads that the child has not, which is what this is about
            child = os.fork()
        if child == 0:
            try:
                signal.alarm(20)
                os.environ["ERA_DATABASE_URL"] = database_url
                os.write(writer, f"{len(knowledge.semantic_similarity_lookup(query(), 'boats'))} found".encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as said:
            assert said.read() == f"{len(RULES)} found"
        assert os.waitpid(child, 0)[1] == 0
        told.result(timeout=30)


LATE = """
import sys, threading, time
from era_dagster.knowledge import semantic_similarity_lookup
from era_dagster_tests.fakes.embedding_server import vector_of

def look():
    threading.main_thread().join()
    print(len(semantic_similarity_lookup(vector_of(sys.argv[1], int(sys.argv[2])), "boats")), "found")

threading.Thread(target=look).start()
"""


@pytest.mark.usefixtures("asked")
def test_a_thread_that_outlives_the_main_thread_opens_the_knowledge_base(database_url: str) -> None:
    """ "cannot schedule new futures after interpreter shutdown" was what it got."""
    done = subprocess.run(
        [sys.executable, "-c", LATE, RULES[0], str(DIMENSION)],
        env=os.environ | {"ERA_DATABASE_URL": database_url},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{len(RULES)} found\n", "")


def test_all_who_search_while_the_embedding_server_is_silent_are_told_at_the_same_time(
    asked: Settings, server: FakeEmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are connections after twenty seconds, as many more after forty, and so on."""
    monkeypatch.setattr(queries, "_LONGEST_ANSWER_SECONDS", 1.0)

    async def ask() -> None:
        async with AsyncKnowledgeBase.open(asked) as base:

            async def told(number: int) -> float:
                with pytest.raises(EndpointUnavailable):
                    await base.search(f"Which bell is the {number}th?")
                return time.monotonic()

            await base.search(RULES[0])
            server.stalled = True
            at = await asyncio.gather(*map(told, range(3 * POOL)))
            assert max(at) - min(at) < 1.0

    asyncio.run(ask())


def test_look_ups_go_on_while_searches_wait_for_the_embedding_server_and_closing_ends_those(
    asked: Settings, server: FakeEmbeddingServer
) -> None:
    """They waited behind the searches, though a vector needs no embedding server."""

    async def ask() -> None:
        async with AsyncKnowledgeBase.open(asked) as base:
            await base.search(RULES[0])
            server.stalled = True
            waiting = [asyncio.create_task(base.search(f"Which bell is the {number}th?")) for number in range(3 * POOL)]
            await asyncio.sleep(0.1)
            async with asyncio.timeout(10):
                assert len(await base.lookup(query())) == len(RULES)
            assert not any(task.done() for task in waiting)
        for answer in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(answer, ConfigurationError)
            assert "closed before the question was answered" in answer.message

    asyncio.run(ask())


def test_a_search_that_is_cancelled_leaves_its_place_to_the_next_and_the_persona_as_it_is(
    asked: Settings, server: FakeEmbeddingServer
) -> None:
    """Its thread waited on for twenty seconds, and whoever came meanwhile behind it."""

    async def ask() -> None:
        async with AsyncKnowledgeBase.open(asked) as base:
            await base.search(RULES[0])
            server.stalled = True
            persona = SimpleNamespace()
            for number in range(POOL + 1):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(base.enrich_context_with_doctrine(persona, f"Bell {number}?"), 0.1)
            server.stalled = False
            async with asyncio.timeout(10):
                assert len(await base.search("When does it ring?")) == len(RULES)
            assert vars(persona) == {}

    asyncio.run(ask())


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process is made to hang by a signal")
def test_look_ups_that_the_database_was_at_when_it_hung_are_told_and_the_pool_is_whole_again(
    asked: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They waited for ever: a pool of connections later no look-up was answered any more."""
    monkeypatch.setattr(knowledge, "_LONGEST_WAIT_SECONDS", 2.0)
    monkeypatch.setattr(database, "_WAITS_FOR_A_STATEMENT", 1.5)
    waiting = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with (
        KnowledgeBase.open(asked) as base,
        ThreadPoolExecutor(POOL) as threads,
        psycopg.connect(database_url, autocommit=True) as admin,
    ):
        assert [len(found) for found in threads.map(base.lookup, [query()] * POOL)] == [len(RULES)] * POOL
        hung: list[int] = []
        try:
            with psycopg.connect(database_url) as locking:
                locking.execute("LOCK TABLE vectors.doctrine_embeddings_all IN ACCESS EXCLUSIVE MODE")
                asking = [threads.submit(base.lookup, query()) for _ in range(POOL)]
                wait_until(lambda: len(admin.execute(f"SELECT pid {waiting}").fetchall()) == POOL)
                hung = [pid for (pid,) in admin.execute(f"SELECT pid {waiting}")]
                for pid in hung:
                    os.kill(pid, signal.SIGSTOP)
            for lookup in asking:
                with pytest.raises(DatabaseUnavailable, match="it has not answered for 3 s"):
                    lookup.result(timeout=30)
            assert len(base.lookup(query())) == len(RULES)
        finally:
            for pid in hung:
                os.kill(pid, signal.SIGCONT)


def test_look_ups_in_line_behind_those_that_find_the_database_away_are_told_with_them(
    asked: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are connections after five seconds, as many more after ten, and so on."""
    monkeypatch.setattr(knowledge, "_LONGEST_WAIT_SECONDS", 2.0)

    async def ask() -> None:
        async with AsyncKnowledgeBase.open(asked) as base:

            async def told() -> float:
                with pytest.raises(DatabaseUnavailable, match="gave no lock in time"):
                    await base.lookup(query())
                return time.monotonic()

            await asyncio.gather(*(base.lookup(query()) for _ in range(POOL)))
            with psycopg.connect(database_url) as locking:
                locking.execute("LOCK TABLE vectors.doctrine_embeddings_all IN ACCESS EXCLUSIVE MODE")
                at = await asyncio.gather(*(told() for _ in range(6 * POOL)))
                assert max(at) - min(at) < 2 * 2.0
            assert [len(found) for found in await asyncio.gather(*(base.lookup(query()) for _ in range(50)))] == [
                3
            ] * 50

    asyncio.run(ask())


def test_an_opening_that_waits_for_a_lock_says_so(
    asked: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for as long as somebody's restore held the table that tells which migrations were applied."""
    monkeypatch.setattr(migrations, "_LONGEST_WAIT_MS", 500)
    with ThreadPoolExecutor(1) as threads:
        with psycopg.connect(database_url) as locking:
            locking.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
            opening = threads.submit(KnowledgeBase.open, asked)
            with suppress(TimeoutError):
                opening.exception(timeout=20)
        with pytest.raises(DatabaseUnavailable, match="gave no lock in time"):
            opening.result()


def test_look_ups_behind_an_opening_that_takes_its_time_are_not_told_of_an_outage_that_is_over(
    asked: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were told what the last one before it had found, be it an hour ago."""
    monkeypatch.setattr(knowledge, "_LONGEST_WAIT_SECONDS", 1.0)

    async def ask() -> None:
        base = AsyncKnowledgeBase.open(asked)
        with psycopg.connect(database_url) as locking, monkeypatch.context() as hasty:
            locking.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
            hasty.setattr(migrations, "_LONGEST_WAIT_MS", 200)
            with pytest.raises(DatabaseUnavailable):
                await base.lookup(query())
        with psycopg.connect(database_url) as locking:
            locking.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
            asking = [asyncio.create_task(base.lookup(query())) for _ in range(3 * POOL)]
            await asyncio.sleep(1.5)
        assert [len(found) for found in await asyncio.gather(*asking)] == [len(RULES)] * (3 * POOL)
        await base.close()

    asyncio.run(ask())
