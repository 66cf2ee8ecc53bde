"""Questions while the embedding server cannot be opened, or is silent."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from era_dagster.domain.errors import BadVectors, ConfigurationError, EndpointUnavailable
from era_dagster.domain.space import Space
from era_dagster.embedding import endpoint
from era_dagster.embedding import queries as queries_module
from era_dagster.embedding.provider import CANARY
from era_dagster.embedding.queries import Answer, QueryEmbedder
from era_dagster.questions import answer_of
from era_dagster.settings import load_settings
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, Fault, serving
from era_dagster_tests.storage.chapter_rows import SPACE
from era_dagster_tests.waiting import wait_until

KNOWN = replace(SPACE, model="test-model", digest=FakeEmbeddingServer(model="test-model").digest)


@contextmanager
def asking(url: str, provider: str = "ollama") -> Iterator[QueryEmbedder]:
    questions = QueryEmbedder(load_settings({"ERA_EMBEDDING_URLS": url}, embedding_provider=provider))
    try:
        yield questions
    finally:
        questions.close()


def embed(questions: QueryEmbedder, text: str, known: Space) -> Answer:
    return answer_of(questions.ask(text, known))


def test_all_who_wait_for_a_server_that_does_not_answer_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other each waited for a time-out of its own: the fourth caller four minutes."""
    opened: list[str] = []

    @asynccontextmanager
    async def silent(*_: object, **__: object) -> AsyncIterator[None]:
        opened.append("asked")
        await asyncio.sleep(0.01)
        raise EndpointUnavailable("No answer.")
        yield

    monkeypatch.setattr(queries_module, "open_embedder", silent)

    async def ask() -> list[object]:
        questions = QueryEmbedder(load_settings({}))
        first = await asyncio.gather(*(questions._embed("?", SPACE) for _ in range(4)), return_exceptions=True)
        assert opened == ["asked"]
        again = await asyncio.gather(questions._embed("?", SPACE), return_exceptions=True)
        return [*first, *again]

    assert [type(answer) for answer in asyncio.run(ask())] == [EndpointUnavailable] * 5
    assert opened == ["asked", "asked"]


def test_a_server_that_falls_silent_is_said_and_answers_the_next_question_when_it_speaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each question waited for the time-out of a request, a minute."""
    server = FakeEmbeddingServer(dimension=16)
    with serving(server) as url, asking(url) as questions:
        assert embed(questions, "Who keeps the lock?", KNOWN)[0].shape == (16,)
        server.stalled = True
        with monkeypatch.context() as hasty:
            hasty.setattr(queries_module, "_LONGEST_ANSWER_SECONDS", 0.2)
            with pytest.raises(EndpointUnavailable, match=rf"{url} made no vector of the question within 0\.2 s"):
                embed(questions, "When does it open?", KNOWN)
        server.stalled = False
        assert embed(questions, "When does it open?", KNOWN)[0].shape == (16,)


def test_a_server_that_loads_its_model_longer_than_a_question_waits_is_not_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ollama stops loading for somebody who is gone: were the request dropped, no question would ever be answered."""
    server = FakeEmbeddingServer(dimension=16)
    with serving(server) as url, asking(url) as questions:
        with monkeypatch.context() as hasty:
            hasty.setattr(queries_module, "_LONGEST_ANSWER_SECONDS", 0.0)
            with pytest.raises(EndpointUnavailable, match="loading its model"):
                embed(questions, "Who keeps the lock?", KNOWN)
        wait_until(lambda: server.requests == 2)  # asked for its second vector after the first
        assert embed(questions, "Who keeps the lock?", KNOWN)[0].shape == (16,)
        assert server.texts.count("Who keeps the lock?") == 1
        assert server.requests == 3


def test_when_the_server_holds_the_model_of_before_again_the_next_question_gets_its_vector() -> None:
    """What was open had met the other model, and refused all questions until the program was started again."""
    server = FakeEmbeddingServer(dimension=16)
    with serving(server) as url, asking(url) as questions:
        server.digest = "another"
        assert embed(questions, "Who keeps the lock?", KNOWN)[1].digest == "another"
        server.digest = KNOWN.digest or ""
        for _ in range(3):
            assert embed(questions, "Who keeps the lock?", KNOWN)[1].space.same_model(KNOWN)
    assert server.texts.count(CANARY) == 2 * 2


def test_a_model_that_is_exchanged_between_two_questions_gets_no_more_of_them_until_the_one_of_before_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where neither a digest nor an earlier run tells which it was."""

    class Changeable(FakeEmbeddingServer):
        weights = ""

        def _encoded_vector(self, text: str, dimension: int) -> bytes:
            return super()._encoded_vector(self.weights + text, dimension)

    monkeypatch.setattr(endpoint, "_KNOWN_FOR_SECONDS", 0.2)
    server = Changeable(dimension=16)
    with serving(server) as url, asking(url, "openai") as questions:
        known = replace(KNOWN, provider="openai", digest=None)
        first, _ = embed(questions, "Who keeps the lock?", known)
        server.weights = "others "
        time.sleep(0.25)
        for _ in range(3):
            with pytest.raises(BadVectors, match=f"{url} answers other vectors than test-model"):
                embed(questions, "When does it open?", known)
        assert "When does it open?" not in server.texts
        server.weights = ""
        assert np.array_equal(embed(questions, "Who keeps the lock?", known)[0], first)


def test_a_question_that_is_under_way_when_all_is_closed_says_so() -> None:
    """It ended with a bare CancelledError."""
    server = FakeEmbeddingServer(dimension=16)
    with serving(server) as url, asking(url) as questions, ThreadPoolExecutor(1) as threads:
        embed(questions, "Who keeps the lock?", KNOWN)
        server.always = Fault(stall=True)
        asked = threads.submit(embed, questions, "When does it open?", KNOWN)
        wait_until(lambda: server.texts[-1] == "When does it open?")
        questions.close()
        with pytest.raises(ConfigurationError, match="closed before the question was answered"):
            asked.result(timeout=30)


def test_the_model_in_this_process_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have to be fetched first, which takes as long as it takes."""
    monkeypatch.setattr(queries_module, "_LONGEST_ANSWER_SECONDS", 0.0)

    @asynccontextmanager
    async def fetching(*_: object, **__: object) -> AsyncIterator[None]:
        await asyncio.sleep(0.05)
        raise EndpointUnavailable("Fetched.")
        yield

    monkeypatch.setattr(queries_module, "open_embedder", fetching)
    questions = QueryEmbedder(load_settings({}))
    try:
        with pytest.raises(EndpointUnavailable, match="Fetched"):
            embed(questions, "?", replace(SPACE, provider="local"))
    finally:
        questions.close()


def test_questions_wait_in_line_as_long_as_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once each had the same seconds for what the server did in turn, and those at its end went without."""
    monkeypatch.setattr(queries_module, "_MOST_QUESTIONS", 4)
    monkeypatch.setattr(queries_module, "_LONGEST_ANSWER_SECONDS", 1.0)
    server = FakeEmbeddingServer(dimension=16)
    with serving(server) as url, asking(url) as questions:
        embed(questions, "Who keeps the lock?", KNOWN)
        server.seconds_per_text = 0.05
        asked = [questions.ask(f"Which lock is the {number}th?", KNOWN) for number in range(60)]
        assert {answer_of(each)[0].shape for each in asked} == {(16,)}


def test_those_in_line_for_a_server_that_falls_silent_are_told_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries_module, "_MOST_QUESTIONS", 2)
    monkeypatch.setattr(queries_module, "_LONGEST_ANSWER_SECONDS", 1.0)
    server = FakeEmbeddingServer(dimension=16)
    with serving(server) as url, asking(url) as questions, ThreadPoolExecutor(6) as threads:

        def told(text: str) -> float:
            with pytest.raises(EndpointUnavailable, match="no vector of the question within"):
                embed(questions, text, KNOWN)
            return time.monotonic()

        embed(questions, "Who keeps the lock?", KNOWN)
        server.stalled = True
        at = list(threads.map(told, (f"Which lock is the {number}th?" for number in range(6))))
        assert max(at) - min(at) < 1.0


def test_questions_that_a_server_lost_do_not_hold_up_those_that_come_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As behind a proxy whose server was exchanged: the lost ones took all of its room for a minute, and all others failed."""
    server = FakeEmbeddingServer(dimension=16)
    with serving(server) as url, asking(url) as questions, ThreadPoolExecutor(8) as threads:

        def lost(text: str) -> None:
            with pytest.raises(EndpointUnavailable, match="no vector of the question within"):
                embed(questions, text, KNOWN)

        embed(questions, "Who keeps the lock?", KNOWN)
        for _ in range(2):
            server.stalled = True
            with monkeypatch.context() as hasty:
                hasty.setattr(queries_module, "_LONGEST_ANSWER_SECONDS", 0.5)
                list(threads.map(lost, (f"Which lock is the {number}th?" for number in range(8))))
            assert len(questions._left) == 1
            server.stalled = False
            assert embed(questions, "When does it open?", KNOWN)[0].shape == (16,)
            assert questions._left == []


def test_an_opening_that_a_server_lost_does_not_hold_up_the_questions_that_come_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who asked while it was silent had it opened: all who came in the minute after it was back waited for that, and failed."""
    monkeypatch.setattr(queries_module, "_ASKED_ANEW_SECONDS", 0.5)
    server = FakeEmbeddingServer(dimension=16)
    server.stalled = True
    with serving(server) as url, asking(url) as questions:
        with monkeypatch.context() as hasty:
            hasty.setattr(queries_module, "_LONGEST_ANSWER_SECONDS", 0.2)
            with pytest.raises(EndpointUnavailable, match="no vector of the question within"):
                embed(questions, "Who keeps the lock?", KNOWN)
        server.stalled = False
        assert embed(questions, "When does it open?", KNOWN)[0].shape == (16,)


def test_those_who_never_wait_for_a_slow_server_do_not_leave_one_embedder_after_the_other_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each kept its connections, and had asked the slow server for two more vectors."""
    monkeypatch.setattr(queries_module, "_LONGEST_ANSWER_SECONDS", 0.2)
    server = FakeEmbeddingServer(dimension=16)
    with serving(server) as url, asking(url) as questions:
        embed(questions, "Who keeps the lock?", KNOWN)
        server.seconds_per_text, server.slots = 0.15, 8
        for number in range(30):
            asked = questions.ask(f"Which lock is the {number}th?", KNOWN)
            time.sleep(0.1)
            asked.cancel()
            assert len(questions._left) <= 1
