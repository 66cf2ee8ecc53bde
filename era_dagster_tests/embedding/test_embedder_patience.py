"""Servers that are slow to begin, or never do: when they are given up, and that no text pays for it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

import httpx
import pytest

from era_dagster.domain.errors import EndpointUnavailable
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.provider import CANARY
from era_dagster.embedding.report import EmbedReport
from era_dagster.embedding.vectors import Vector
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport, Fault
from era_dagster_tests.fakes.virtual_time import run_virtually

URL = "http://server"


class Forgets:
    """A cache without memory."""

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, Vector]:
        return {}

    def put_many(self, vectors: Mapping[bytes, Vector]) -> None:
        pass


def texts(count: int) -> list[str]:
    return [f"text number {number}" for number in range(count)]


# --- nobody answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("cache", [None, Forgets()])
@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_a_server_that_never_answers_is_given_up_when_the_patience_ends_and_no_text_with_it(
    provider: Literal["ollama", "openai"], cache: Forgets | None, count: int
) -> None:
    server = FakeEmbeddingServer()
    server.always = Fault(stall=True)

    async def main() -> float:
        config = EmbedderConfig(provider=provider, urls=(URL,), model=server.model)
        async with Embedder(config, transport=FakeTransport(server), cache=cache) as one:
            with pytest.raises(EndpointUnavailable, match=f"{URL}.*gave no answer within 120 s"):
                await one.embed(texts(count))
            assert one.stats().failed == 0
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == pytest.approx(120.0)


class OnlyOurOwn(FakeTransport):
    """500 for every text but the one that embedders check their servers with."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.02)
        response = await super().handle_async_request(request)
        body = await request.aread()
        return response if not body or CANARY.encode() in body else httpx.Response(500, json={"error": "boom"})


async def embed_where_no_text_is_taken(count: int) -> tuple[EmbedReport | EndpointUnavailable, int, float]:
    """What came of it, how many texts were given up, and when it ended."""
    server = FakeEmbeddingServer()
    config = EmbedderConfig(urls=(URL,), model=server.model)
    async with Embedder(config, transport=OnlyOurOwn(server), cache=Forgets()) as one:
        try:
            found = await one.embed(texts(count))
        except EndpointUnavailable as error:
            found = error
        return found, one.stats().failed, asyncio.get_running_loop().time()


def test_a_server_that_takes_no_text_but_our_own_ends_the_run_after_twice_the_patience() -> None:
    found, failed, seconds = run_virtually(embed_where_no_text_is_taken(4000))
    assert isinstance(found, EndpointUnavailable)
    assert f"{URL} (model test-model) answered 500: boom." in found.message
    assert seconds == pytest.approx(240.0, abs=1.0)
    assert failed < 800


def test_a_few_texts_that_a_server_fails_at_end_in_the_dead_letters_before_that() -> None:
    found, failed, seconds = run_virtually(embed_where_no_text_is_taken(50))
    assert isinstance(found, EmbedReport)
    assert len(found.failures) == failed == 50
    assert {failure.message for failure in found.failures} == {f"{URL} (model test-model) answered 500: boom."}
    assert seconds < 120.0
