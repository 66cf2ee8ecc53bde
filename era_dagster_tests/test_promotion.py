"""A space is promoted, and gone back from, while programs look up without a pause: none fails, and none gets a mixture.

Both models have one dimension, so that nothing but the code keeps a vector of one from the rows of the other; and every
answer is held against what each space alone answers, so that a mixture of any kind shows.
"""

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from era_dagster.domain.errors import ConfigurationError, StorageError
from era_dagster.knowledge import AsyncKnowledgeBase, KnowledgeBase
from era_dagster.pipeline.space_build import build_space
from era_dagster.settings import Settings
from era_dagster.storage.database import Database
from era_dagster.storage.search import OtherModel, SearchHit
from era_dagster.storage.space_switch import promote_space
from era_dagster_tests.fakes.embedding_server import serving
from era_dagster_tests.fakes.two_models import MODELS, TwoModels, made_by
from era_dagster_tests.pipeline.workbench import Workbench, chapter

DIMENSION = 16
QUESTIONS = [f"Rule {number} of the harbour." for number in range(24)]
Answer = tuple[tuple[str, float], ...]


@pytest.fixture
def server() -> TwoModels:
    return TwoModels(dimension=DIMENSION)


@pytest.fixture
def followed(settings: Settings, database: Database, server: TwoModels) -> Iterator[tuple[Settings, Database]]:
    """A knowledge base with a second space ready, and settings that name no model: programs follow the database."""
    with serving(server) as url:
        bench = Workbench(settings, database)
        bench.settings = replace(bench.settings, embedding_urls=(url,))
        bench.drop("harbour", *(chapter(i, rules=QUESTIONS[i * 6 : i * 6 + 6]) for i in range(4)))
        bench.look()
        bench.run(with_fake_server=False)
        other = replace(bench.settings, embedding_model=MODELS[1])
        assert build_space(other, database).chapters == 4
        yield replace(settings, embedding_urls=(url,)), database


def answer(hits: list[SearchHit]) -> Answer:
    return tuple((hit.doctrine_id, round(hit.score, 4)) for hit in hits)


def answers_of_each(settings: Settings, database: Database) -> dict[str, dict[str, Answer]]:
    """What each space alone answers to each question; the first is live again afterwards."""
    found: dict[str, dict[str, Answer]] = {}
    for model, space_id in zip((*MODELS, MODELS[0]), (None, 2, 1), strict=True):
        if space_id is not None:
            promote_space(database, space_id)
        with KnowledgeBase.open(settings) as base:
            found[model] = {text: answer(base.search(text, "risk", 10)) for text in QUESTIONS}
    assert all(found[MODELS[0]][text] != found[MODELS[1]][text] for text in QUESTIONS)
    return found


class Watchers:
    """Programs that look up as long as they are let, each at its own pace, and note what they get."""

    def __init__(self, wanted: dict[str, dict[str, Answer]]) -> None:
        self.wanted = wanted
        self.stop = threading.Event()
        self.seen: Counter[str] = Counter()
        self.wrong: list[object] = []
        self._lock = threading.Lock()

    def note(self, text: str, got: Answer, *, asked: str | None = None) -> None:
        """An answer is right when one space alone gives it; with `asked`, when that model's space gives it."""
        from_space = [model for model, answers in self.wanted.items() if answers[text] == got]
        with self._lock:
            if len(from_space) == 1 and asked in (None, from_space[0]):
                self.seen[from_space[0]] += 1
            else:
                self.wrong.append((text, asked, got))

    def run(self, work: Callable[[str], None], pause_seconds: float) -> threading.Thread:
        def loop() -> None:
            place = 0
            while not self.stop.is_set():
                try:
                    work(QUESTIONS[place % len(QUESTIONS)])
                except Exception as error:  # noqa: BLE001 (whatever a program would see)
                    with self._lock:
                        self.wrong.append(error)
                place += 1
                time.sleep(pause_seconds)

        thread = threading.Thread(target=loop)
        thread.start()
        return thread

    def until(self, model: str, answers: int) -> None:
        """Wait until so many more answers of this model were noted."""
        wanted = self.seen[model] + answers
        patience = time.monotonic() + 60
        while self.seen[model] < wanted:
            assert time.monotonic() < patience, (self.seen, self.wrong[:3])
            time.sleep(0.01)


def test_searches_go_on_through_promotions_and_ways_back_and_none_fails_or_mixes(
    followed: tuple[Settings, Database],
) -> None:
    settings, database = followed
    watchers = Watchers(answers_of_each(settings, database))

    async def look_up_async(base: AsyncKnowledgeBase) -> None:
        place = 0
        while not watchers.stop.is_set():
            texts = [QUESTIONS[(place + step) % len(QUESTIONS)] for step in range(4)]
            try:
                found = await asyncio.gather(*(base.search(text, "risk", 10) for text in texts))
            except Exception as error:  # noqa: BLE001 (whatever a program would see)
                watchers.wrong.append(error)
                return
            for text, hits in zip(texts, found, strict=True):
                watchers.note(text, answer(hits))
            place += 4
            await asyncio.sleep(0.04)

    async def asynchronous() -> None:
        async with AsyncKnowledgeBase.open(settings) as base:
            await look_up_async(base)

    with KnowledgeBase.open(settings) as base:
        threads = [
            watchers.run(lambda text: watchers.note(text, answer(base.search(text, "risk", 10))), 0.02)
            for _ in range(4)
        ]
        threads.append(threading.Thread(target=lambda: asyncio.run(asynchronous())))
        threads[-1].start()
        try:
            watchers.until(MODELS[0], 40)
            for space_id, model in ((2, MODELS[1]), (1, MODELS[0])) * 3:
                promote_space(database, space_id)
                watchers.until(model, 40)
        finally:
            watchers.stop.set()
            for thread in threads:
                thread.join()
    assert watchers.wrong == []
    assert min(watchers.seen.values()) >= 120


def test_a_vector_of_the_old_model_is_refused_after_the_switch_never_compared(
    followed: tuple[Settings, Database],
) -> None:
    settings, database = followed
    watchers = Watchers(answers_of_each(settings, database))
    told: list[str] = []
    bases = [KnowledgeBase.open(settings)]

    def look_up(text: str) -> None:
        """A program that makes its own vectors: when it is told of another model it starts anew with that one."""
        base, model = bases[-1], MODELS[(len(bases) - 1) % 2]
        try:
            watchers.note(text, answer(base.lookup(made_by(model, text, DIMENSION), "risk", 10)), asked=model)
        except OtherModel as error:
            told.append(str(error))
            bases.append(KnowledgeBase.open(settings))

    thread = watchers.run(look_up, 0.0)
    try:
        watchers.until(MODELS[0], 40)
        for space_id, model in ((2, MODELS[1]), (1, MODELS[0])) * 3:
            promote_space(database, space_id)
            watchers.until(model, 40)
    finally:
        watchers.stop.set()
        thread.join()
        for base in bases:
            base.close()
    assert watchers.wrong == []
    assert len(told) == 6
    assert "second-model (16 dimensions" in told[0]
    assert "test-model (16 dimensions" in told[0]


def test_a_question_on_its_way_to_the_old_model_during_a_switch_is_answered_by_the_new_one(
    followed: tuple[Settings, Database], server: TwoModels
) -> None:
    settings, database = followed
    wanted = answers_of_each(settings, database)[MODELS[1]]
    server.held.add((MODELS[0], QUESTIONS[0]))
    with KnowledgeBase.open(settings) as base, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(base.search, QUESTIONS[0], "risk", 10)
        assert wait([asked], timeout=0.3).not_done
        promote_space(database, 2)
        assert answer(base.search(QUESTIONS[1], "risk", 10)) == wanted[QUESTIONS[1]]
        server.held.clear()
        assert answer(asked.result(timeout=10)) == wanted[QUESTIONS[0]]


def test_a_program_that_names_the_old_model_is_refused_with_the_way_out(followed: tuple[Settings, Database]) -> None:
    settings, database = followed
    named = replace(settings, embedding_provider="ollama", embedding_model=MODELS[0])
    with KnowledgeBase.open(named) as base:
        assert base.search(QUESTIONS[0])
        promote_space(database, 2)
        with pytest.raises(ConfigurationError, match=r"second-model .*test-model is configured") as refused:
            base.search(QUESTIONS[0])
        assert "era spaces promote" in refused.value.hint
    with KnowledgeBase.open(named) as base, pytest.raises(ConfigurationError, match="test-model is configured"):
        base.lookup(made_by(MODELS[0], QUESTIONS[0], DIMENSION))


def test_a_look_up_that_has_begun_ends_in_the_space_it_began_in(followed: tuple[Settings, Database]) -> None:
    """The promotion waits for it: its first statement and its last see the same tables."""
    _, database = followed
    with database.connection() as connection:
        connection.execute("SELECT 1 FROM embedding_spaces WHERE state = 'live'")
        promoting = threading.Thread(target=promote_space, args=(database, 2))
        promoting.start()
        promoting.join(0.5)
        assert promoting.is_alive()
        assert connection.execute("SELECT schema_name FROM embedding_spaces WHERE space_id = 1").fetchone() == (
            "vectors",
        )
    promoting.join(10)
    assert not promoting.is_alive()
    with database.connection() as connection:
        found = connection.execute("SELECT space_id FROM embedding_spaces WHERE state = 'live'").fetchone()
    assert found == (2,)


def test_an_account_that_may_only_read_reads_on_after_a_promotion(followed: tuple[Settings, Database]) -> None:
    settings, database = followed
    name = f"a reader of {os.getpid()}"
    schemas, reader = ("public", "vectors"), sql.Identifier(name)
    with psycopg.connect(database.url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(reader))
        for schema in map(sql.Identifier, schemas):
            admin.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, reader))
            admin.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(schema, reader))
        url = make_conninfo(database.url, user=name)
        admin.execute(sql.SQL("REVOKE USAGE ON SCHEMA vectors FROM {}").format(reader))
        with KnowledgeBase.open(settings, url=url) as base, pytest.raises(StorageError, match="refuses the account"):
            base.search(QUESTIONS[0])
        admin.execute("GRANT USAGE ON SCHEMA vectors TO PUBLIC")
    with KnowledgeBase.open(settings, url=url) as base:

        def everything() -> list[int]:
            asked = ({}, {"domain": "risk"}, {"within": "chunks"}, {"hybrid": True}, {"book": "harbour"})
            return [len(base.search(QUESTIONS[0], top_k=3, **more)) for more in asked]

        before = everything()
        for space_id in (2, 1, 2):
            promote_space(database, space_id)
            assert everything() == before
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM doctrine_embeddings_risk").fetchone() == (len(QUESTIONS),)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("DELETE FROM doctrine_embeddings_risk")
