"""Ollama's own dialect: `POST /api/embed`, and who the model is.

Only the shapes of requests and answers; the exchange is `embedding.provider`, the meaning of errors
`embedding.responses`. Field names and defaults as in Ollama's api/types.go.
"""

from collections.abc import Sequence

import httpx

from era_dagster.domain.errors import EndpointUnavailable, TransientError
from era_dagster.domain.space import canonical_model_name
from era_dagster.embedding.provider import (
    CANARY,
    Answer,
    HttpEndpoint,
    Identified,
    answered,
    first_dimension,
    shown_url,
)
from era_dagster.embedding.responses import Asked, Verdict, excerpt

KEEP_ALIVE_SECONDS = 1800
"""Keeps the model loaded between requests (the default is 5 minutes, a reload takes seconds). A number: the string
form "-1" is a 400."""


class OllamaProvider:
    """One Ollama server. `truncate` is off, so that a text too long is an error instead of silently cut.

    Ollama itself wants no key; `api_key` travels as a bearer token, for a proxy in front of it. `options` are never sent:
    options that differ between requests make Ollama reload the model.
    """

    def __init__(
        self, url: str, model: str, *, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        asked = Asked(url=shown_url(url), model=model, missing_model_hint=f"Run: ollama pull {model}")
        self._model = model
        self._endpoint = HttpEndpoint(asked, url, api_key=api_key, transport=transport)

    @property
    def url(self) -> str:
        """Where it is, without credentials."""
        return self._endpoint.asked.url

    async def embed(self, texts: Sequence[str], timeout_seconds: float) -> Answer | Verdict:
        """Ask once for the vectors of `texts`."""
        payload = {
            "model": self._model,
            "input": list(texts),
            "truncate": False,
            "keep_alive": KEEP_ALIVE_SECONDS,
        }
        reply = await self._endpoint.post("/api/embed", payload, timeout_seconds, vectors=len(texts))
        if isinstance(reply, Verdict):
            return reply
        rows, tokens = reply.content.get("embeddings"), reply.content.get("prompt_eval_count")
        return answered(self._endpoint.asked, reply, rows, len(texts), tokens)

    async def identify(self, timeout_seconds: float, loading_timeout_seconds: float) -> Identified | Verdict:
        """Version, digest and dimension. The embedding decides: a server may hide its lists behind a proxy."""
        version = await self._endpoint.get("/api/version", timeout_seconds)
        if isinstance(version, Verdict) and isinstance(version.error, EndpointUnavailable):
            return version
        dimension = first_dimension(await self.embed([CANARY], loading_timeout_seconds))
        if isinstance(dimension, Verdict):
            return dimension
        listed = await self._endpoint.get("/api/tags", timeout_seconds)
        if isinstance(listed, Verdict) and isinstance(listed.error, TransientError):
            return listed  # the list is away, not hidden: without its digest it would be another model
        return Identified(
            dimension=dimension,
            digest=None if isinstance(listed, Verdict) else _digest(listed.content.get("models"), self._model),
            server_version=None if isinstance(version, Verdict) else _text(version.content.get("version")),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()


def _digest(models: object, wanted: str) -> str | None:
    for each in models if isinstance(models, list) else []:
        if isinstance(each, dict) and canonical_model_name(str(each.get("name"))) == canonical_model_name(wanted):
            return _text(each.get("digest"))
    return None


def _text(value: object) -> str | None:
    """A word of the server's as it may be stored and shown; None where there is none."""
    return (excerpt(value) or None) if isinstance(value, str) else None
