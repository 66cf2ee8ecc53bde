"""Servers that are slow to begin, or never do: when they are given up, and that no text pays for it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest

from era_dagster.domain.errors import EndpointUnavailable
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embedder import Embedder
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
