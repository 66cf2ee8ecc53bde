"""Runs that embed at the same endpoint know of each other, by the database they share."""

import asyncio
from collections.abc import Collection
from typing import cast

import pytest

from era_dagster.embedding.embedder import Embedder
from era_dagster.pipeline import sharing as module
from era_dagster.pipeline.sharing import sharing
from era_dagster.pipeline.space_build import build_space
from era_dagster.storage import company as company_module
from era_dagster.storage.company import Company
from era_dagster.storage.database import Database, with_database
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport, Reply
from era_dagster_tests.pipeline.workbench import Workbench, chapter
from era_dagster_tests.waiting import wait_until

URL = "http://127.0.0.1:11434"


class Hears:
    """In an embedder's place: where it sends to, and what it is told."""

    def __init__(self, *urls: str) -> None:
        self.urls = urls
        self.told: list[frozenset[str]] = []

    def told_of_others(self, urls: Collection[str]) -> None:
        self.told.append(frozenset(urls))

    async def last(self, expected: Collection[str]) -> None:
        async with asyncio.timeout(10):
            while self.told[-1:] != [frozenset(expected)]:
                await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_SECONDS", 0.05)


def shared(hears: Hears, database: Database):
    return sharing(cast(Embedder, hears), database)


def test_two_runs_are_told_of_each_other_until_one_of_them_has_ended(database: Database) -> None:
    async def both() -> None:
        one, other = Hears(URL), Hears(URL)
        async with shared(one, database):
            await one.last([])
            async with shared(other, database):
                await one.last([URL])
                await other.last([URL])
            await one.last([])

    asyncio.run(both())


def test_a_run_whose_model_is_in_its_own_process_tells_nobody(database: Database) -> None:
    async def alone() -> list[frozenset[str]]:
        local = Hears()
        async with shared(local, database):
            await asyncio.sleep(0.2)
        return local.told

    assert asyncio.run(alone()) == []


def test_without_the_database_a_run_counts_as_alone_and_goes_on(database_url: str) -> None:
    async def alone() -> list[frozenset[str]]:
        hears = Hears(URL)
        async with shared(hears, Database(with_database(database_url, "there is none"), pool_size=1)):
            await hears.last([])
        return hears.told

    assert set(asyncio.run(alone())) == {frozenset()}


def test_what_goes_wrong_inside_comes_out_and_leaves_nobody_behind(database: Database, database_url: str) -> None:
    async def fails() -> None:
        hears = Hears(URL)
        async with shared(hears, database):
            await hears.last([])
            raise RuntimeError("the run itself")

    with pytest.raises(RuntimeError, match="the run itself"):
        asyncio.run(fails())
    with Company(database_url, [URL]) as company:
        wait_until(lambda: not company.others())


def test_what_a_database_refuses_ends_no_run_that_is_done(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(company_module, "_LOCKS", "SELECT pg_refuse(%s::text[])")

    async def done() -> list[frozenset[str]]:
        hears = Hears(URL)
        async with shared(hears, database):
            await hears.last([])
            await asyncio.sleep(10 * module.ASK_SECONDS)
        return hears.told

    assert asyncio.run(done()) == [frozenset()], "asked once, and not again at once"


class Watched(FakeEmbeddingServer):
    """Answers the chapter's texts only when somebody else at the endpoint was seen, or not within two seconds."""

    company: Company
    seen: frozenset[str] = frozenset()

    async def handle(self, method: str, path: str, headers, body: bytes) -> Reply:
        if b"captain" in body:
            for _ in range(200):
                self.seen |= self.company.others()
                if self.seen:
                    break
                await asyncio.sleep(0.01)
        return await super().handle(method, path, headers, body)


def test_a_run_is_there_while_it_embeds_and_gone_after_it(bench: Workbench, database_url: str) -> None:
    bench.drop("Ferry", chapter(1, "The ferry captain counted the sacks twice.", ["risk"], rules=["Count twice."]))
    server = Watched(dimension=16)
    with Company(database_url, [URL]) as server.company:
        bench.server = server
        bench.ingest()
        assert server.seen == {URL}
        wait_until(lambda: not server.company.others())


def test_a_build_of_another_space_is_there_too(bench: Workbench, database_url: str) -> None:
    bench.drop("Ferry", chapter(1, "The ferry captain counted the sacks twice.", ["risk"], rules=["Count twice."]))
    bench.ingest()
    server = Watched(model="second-model", dimension=24)
    with Company(database_url, [URL]) as server.company:
        build_space(
            Workbench(bench.settings, bench.database, server=server).settings,
            bench.database,
            transport=FakeTransport(server),
        )
        assert server.seen == {URL}
        wait_until(lambda: not server.company.others())
