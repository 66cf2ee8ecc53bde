"""Embeds some texts with an embedder of their own, for whoever has no settings and no knowledge base."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import httpx

from era_dagster.control.trace import TraceRecord
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.model_profile import Role
from era_dagster.embedding.observer import RequestObserver
from era_dagster.embedding.report import EmbedReport
from era_dagster.embedding.vectors import VectorCache
from era_dagster.settings import ProviderName


async def embed_texts(
    texts: Sequence[str],
    *,
    urls: str | Sequence[str],
    model: str,
    provider: ProviderName = "ollama",
    transport: httpx.AsyncBaseTransport | None = None,
    cache: VectorCache | None = None,
    random: Random | None = None,
    trace: Callable[[str, TraceRecord], None] | None = None,
    on_request: RequestObserver | None = None,
    role: Role = "document",
    **options: Any,
) -> EmbedReport:
    """Embed some texts with an embedder of their own; `options` are further fields of `EmbedderConfig`.

    Raises what `Embedder.embed` raises, and `ConfigurationError` for a configuration that cannot work.
    """
    addresses = (urls,) if isinstance(urls, str) else tuple(urls)
    config = EmbedderConfig(provider=provider, urls=addresses, model=model, **options)
    async with Embedder(
        config, transport=transport, cache=cache, random=random, trace=trace, on_request=on_request
    ) as embedder:
        return await embedder.embed(texts, role=role)
