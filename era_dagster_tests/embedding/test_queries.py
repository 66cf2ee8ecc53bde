"""Questions of several callers at once, while the embedding server cannot be opened."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from era_dagster.domain.errors import EndpointUnavailable
from era_dagster.embedding import queries as queries_module
from era_dagster.embedding.queries import QueryEmbedder
from era_dagster.settings import load_settings
from era_dagster_tests.storage.chapter_rows import SPACE


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
