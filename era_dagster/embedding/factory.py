"""Chooses the model and opens its embedder: the settings first, then the model the database holds, then what is there.

An empty database with no model configured takes Ollama when one answers at its usual address, else the local model. From
then on the database's own model decides, so that the choice is made once.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Protocol

import httpx

from era_dagster.control.trace import TraceRecord
from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.space import canonical_model_name
from era_dagster.embedding.cache_front import recalling
from era_dagster.embedding.config import EmbedderConfig, embedder_config
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.observer import RequestObserver
from era_dagster.embedding.vectors import VectorCache
from era_dagster.settings import DEFAULT_MODELS, ProviderName, Settings

OLLAMA_URL = "http://127.0.0.1:11434"
_PROBE_SECONDS = 2.0


class KnownModel(Protocol):
    """The model the database holds vectors of."""

    @property
    def provider(self) -> str:
        """The provider that made them."""
        ...

    @property
    def model(self) -> str:
        """Its name."""
        ...


async def choose_config(
    settings: Settings, *, known: KnownModel | None, transport: httpx.AsyncBaseTransport | None = None
) -> EmbedderConfig:
    """Which provider, model and URLs to use. Raises `ConfigurationError` when the settings are not enough."""
    provider = settings.embedding_provider or _provider_of(known)
    if provider is None:
        remote = settings.embedding_urls or settings.embedding_model
        provider = "ollama" if remote or await _answers(OLLAMA_URL, transport) else "local"
    model = settings.embedding_model or (known.model if known else None) or DEFAULT_MODELS.get(provider)
    if model is None:
        raise ConfigurationError(
            f"The provider {provider} has no default model.", hint="Set ERA_EMBEDDING_MODEL to the model it serves."
        )
    urls = settings.embedding_urls or ((OLLAMA_URL,) if provider == "ollama" else ())
    recorded = known.model if known and canonical_model_name(known.model) == canonical_model_name(model) else None
    return embedder_config(settings, provider=provider, urls=urls, model=model, recorded_as=recorded)


@asynccontextmanager
async def open_embedder(
    settings: Settings,
    *,
    known: KnownModel | None,
    cache: Callable[[str], VectorCache] | None = None,
    recalled_from: VectorCache | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    trace: Callable[[str, TraceRecord], None] | None = None,
    on_request: RequestObserver | None = None,
) -> AsyncIterator[Embedder]:
    """An open embedder for the chosen model; `cache` is called with the model's name, the rest as for `Embedder`.

    `recalled_from` is for who only reads: a model that tells no digest is known again by what that cache holds.
    """
    config = await choose_config(settings, known=known, transport=transport)
    vectors = cache(config.model) if cache else None
    # Chance from the system: processes that retry must not retry in step.
    async with Embedder(
        config,
        transport=transport,
        cache=vectors,
        remember=None if recalled_from is None else recalling(recalled_from),
        random=Random(),
        trace=trace,
        on_request=on_request,
    ) as embedder:
        yield embedder


def _provider_of(known: KnownModel | None) -> ProviderName | None:
    match known.provider if known else None:
        case "ollama":
            return "ollama"
        case "openai":
            return "openai"
        case "local":
            return "local"
        case _:
            return None


async def _answers(url: str, transport: httpx.AsyncBaseTransport | None) -> bool:
    # The address is http://, so that no certificate is ever checked: to read those of the machine takes 20 ms.
    async with httpx.AsyncClient(transport=transport, trust_env=False, verify=False, timeout=_PROBE_SECONDS) as client:
        try:
            return (await client.get(f"{url}/api/version")).is_success
        except httpx.HTTPError:
            return False
