"""What the embedder tells of its requests: each one, once, as it ended."""

import asyncio

from era_dagster.control.outcome import Outcome
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embed_texts import embed_texts
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.observer import RequestRecord
from era_dagster_tests.fakes.embedding_server import BUSY, FakeEmbeddingServer, FakeTransport, Fault
from era_dagster_tests.fakes.virtual_time import run_virtually

TEXTS = [f"text number {number}" for number in range(30)]


def test_every_request_is_told_with_its_texts_tokens_and_time() -> None:
    server, told = FakeEmbeddingServer(), list[RequestRecord]()
    server.seconds_per_text = 0.01
    report = run_virtually(
        embed_texts(TEXTS, urls="http://s", model=server.model, transport=FakeTransport(server), on_request=told.append)
    )
    assert len(told) == report.requests == server.requests
    assert sum(record.texts for record in told) == len(TEXTS)
    assert sum(record.tokens for record in told) == report.tokens > 0
    assert all(record.outcome is Outcome.SUCCESS and not record.probe for record in told)
    assert all(record.seconds >= 0.01 * record.texts - 1e-9 for record in told)


def test_a_refusal_is_told_with_its_error_and_the_texts_that_travel_again() -> None:
    server, told = FakeEmbeddingServer(), list[RequestRecord]()
    server.faults.append(Fault(status=503, message=BUSY))
    report = run_virtually(
        embed_texts(
            TEXTS[:3], urls="http://s", model=server.model, transport=FakeTransport(server), on_request=told.append
        )
    )
    refused, *later = told
    assert refused.outcome in (Outcome.OVERLOADED, Outcome.RATE_LIMITED)
    assert refused.error is not None
    assert sum(record.retried for record in later) == report.retries > 0
    assert all(record.error is None for record in later)


def test_a_request_the_embedder_gives_up_is_told_without_an_outcome() -> None:
    server, told = FakeEmbeddingServer(), list[RequestRecord]()
    server.seconds_per_text = 100.0

    async def leave_early() -> None:
        config = EmbedderConfig(urls=("http://s",), model=server.model)
        async with Embedder(config, transport=FakeTransport(server), on_request=told.append) as embedder:
            waiting = asyncio.ensure_future(embedder.embed(TEXTS[:1]))
            await asyncio.sleep(1.0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    run_virtually(leave_early())
    assert [(record.outcome, record.error) for record in told] == [(None, None)]
