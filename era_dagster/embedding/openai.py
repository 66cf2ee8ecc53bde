"""The OpenAI dialect, `POST /v1/embeddings`: TEI, vLLM, Infinity, llama.cpp, LM Studio, hosted services.

Only the shapes of requests and answers. `dimensions` is not sent: servers that ignore it would answer another size than
asked for, and those that honour it would make the size a second identity of the model.
"""

from collections.abc import Sequence
from typing import Any

import httpx

from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import TextsTooLarge
from era_dagster.embedding.provider import (
    CANARY,
    Answer,
    HttpEndpoint,
    Identified,
    answered,
    first_dimension,
    shown_url,
)
from era_dagster.embedding.responses import Asked, Verdict


class OpenAIProvider:
    """One OpenAI-compatible server. `url` may end in `/v1` or not, and where it ends in `/embeddings` that is what is asked: some
    have another path before it (Gemini's, and those of version 3 or 4) or none (Infinity). `api_key` is a bearer token.
    """

    def __init__(
        self, url: str, model: str, *, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._model = model
        base, self._path = address(url)
        self._endpoint = HttpEndpoint(
            Asked(url=shown_url(url), model=model), base, api_key=api_key, transport=transport
        )

    @property
    def url(self) -> str:
        """Where it is, without credentials."""
        return self._endpoint.asked.url

    async def embed(self, texts: Sequence[str], timeout_seconds: float) -> Answer | Verdict:
        """Ask once for the vectors of `texts`."""
        payload = {"model": self._model, "input": list(texts)}
        reply = await self._endpoint.post(self._path, payload, timeout_seconds, vectors=len(texts))
        if isinstance(reply, Verdict):
            return reply
        usage = reply.content.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        data = reply.content.get("data")
        rows = _rows(data)
        if rows is None and len(texts) > 1 and _are_vectors(data, len(texts)):
            return _out_of_order(self._endpoint.asked, len(texts))
        return answered(self._endpoint.asked, reply, rows, len(texts), tokens)

    async def identify(self, timeout_seconds: float, loading_timeout_seconds: float) -> Identified | Verdict:
        """The dimension, by one short text; this dialect tells neither digest nor version."""
        dimension = first_dimension(await self.embed([CANARY], loading_timeout_seconds))
        if isinstance(dimension, Verdict):
            return dimension
        return Identified(dimension=dimension, digest=None, server_version=None)

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()


def address(url: str) -> tuple[str, str]:
    """The base and the path of what is asked, where a server is named by `url`."""
    base = url.rstrip("/").removesuffix("/embeddings")
    return (base.removesuffix("/v1"), "/v1/embeddings") if base == url.rstrip("/") else (base, "/embeddings")


def _rows(data: Any) -> list[Any] | None:
    """The vectors in the order of the texts: by `index` where it is given, and only if every index is there once. A single vector
    is that of the single text, whatever number it has."""
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        return None
    if len(data) == 1:
        return [data[0].get("embedding")]
    rows: list[Any] = [None] * len(data)
    seen: set[int] = set()
    for place, each in enumerate(data):
        index = each.get("index", place)
        if type(index) is not int or not 0 <= index < len(data) or index in seen:
            return None
        seen.add(index)
        rows[index] = each.get("embedding")
    return rows


def _are_vectors(data: Any, count: int) -> bool:
    return (
        isinstance(data, list)
        and len(data) == count
        and all(isinstance(each, dict) and isinstance(each.get("embedding"), list) for each in data)
    )


def _out_of_order(asked: Asked, texts: int) -> Verdict:
    """The verdict on as many vectors as `texts` of which nobody knows whose each is: some servers and proxies number all of them
    0, or count on over the requests of others. In a request of one text that does not matter."""
    message = (
        f"{asked} numbers its vectors so that nobody knows whose each of these {texts} is: texts must go one by one."
    )
    return Verdict(error=TextsTooLarge(message), outcome=Outcome.TOO_LARGE)
