"""The configuration of an embedder: which model, where, and the ceilings below which it works.

A frozen record whose defaults tell the controllers nothing but safe bounds, and its making from `Settings`. Opens nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from era_dagster.control.ceilings import MOST_REQUESTS, MOST_TEXTS, MOST_TOKENS
from era_dagster.domain.errors import ConfigurationError
from era_dagster.embedding.model_profile import ModelProfile, model_profile
from era_dagster.settings import ProviderName, Settings

LOADING_FACTOR = 3.0
"""A request that may have to wait until the server has loaded the model gets this many ordinary time-outs: a cold load
takes 10 to 20 s, minutes on a slow disk."""

_IN_A_HEADER = re.compile(r"[!-~]+( [!-~]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderConfig:
    """What an `Embedder` is built from.

    `concurrency` and `batch_items` are ceilings of each endpoint, below which it finds its own values; `batch_tokens` of
    one request, estimated at four characters a token. `latency_target_seconds` is for the 95th percentile of requests.
    `queue_limit`: most texts accepted and not yet settled. A prefix that is None is the
    model's own.
    `retry_attempts` and `retry_budget_seconds` bound the retries of one text; when no endpoint has answered for the
    whole budget, everything waiting fails. `max_items_per_second` is for all endpoints together; None is unpaced.
    `recorded_as` is how the database spells the model's name, where it holds vectors of it; servers are asked for `model`.
    `api_key` goes to every URL as a bearer token; empty is none. `model_dir` is needed by the local provider only.
    """

    provider: ProviderName = "ollama"
    urls: tuple[str, ...] = field(default=(), repr=False)
    model: str
    recorded_as: str | None = None
    api_key: str | None = field(default=None, repr=False)
    model_dir: Path | None = None
    document_prefix: str | None = None
    query_prefix: str | None = None
    concurrency: int = MOST_REQUESTS
    batch_items: int = MOST_TEXTS
    batch_tokens: int = MOST_TOKENS
    latency_target_seconds: float = 0.5
    queue_limit: int = 4096
    request_timeout_seconds: float = 60.0
    retry_attempts: int = 10
    retry_budget_seconds: float = 120.0
    max_items_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.provider not in ("ollama", "openai", "local"):
            raise ConfigurationError(
                f"{self.provider!r} is no embedding provider.", hint="Use ollama, openai or local."
            )
        if self.api_key and not _IN_A_HEADER.fullmatch(self.api_key):
            raise ConfigurationError(
                "ERA_EMBEDDING_API_KEY holds a character that no HTTP header carries.",
                hint="Set it to the key alone: printable ASCII without a line break.",
            )
        if self.provider != "local" and not self.urls:
            raise ConfigurationError(
                f"The embedding provider {self.provider} has no URL.", hint="Set ERA_EMBEDDING_URLS."
            )
        if self.provider == "local" and self.model_dir is None:
            raise ConfigurationError("The local embedding model has no folder.", hint="Set ERA_MODEL_DIR.")
        if min(self.concurrency, self.batch_items, self.batch_tokens, self.queue_limit, self.retry_attempts) < 1:
            raise ConfigurationError("The ceilings of the embedder must be at least 1.")
        if self.latency_target_seconds <= 0:
            raise ConfigurationError("The latency target must be above 0.")

    @property
    def loading_timeout_seconds(self) -> float:
        """The time-out of a request that may have to wait for the model: no longer than the patience with a silent server."""
        longest = min(LOADING_FACTOR * self.request_timeout_seconds, self.retry_budget_seconds)
        return max(self.request_timeout_seconds, longest)

    @property
    def profile(self) -> ModelProfile:
        """How texts are prepared for the model."""
        return model_profile(self.model, document_prefix=self.document_prefix, query_prefix=self.query_prefix)


def embedder_config(
    settings: Settings, *, provider: ProviderName, urls: Sequence[str], model: str, recorded_as: str | None = None
) -> EmbedderConfig:
    """The configuration for a chosen provider, model and URLs, with everything else from the settings."""
    return EmbedderConfig(
        provider=provider,
        urls=tuple(urls),
        model=model,
        recorded_as=recorded_as,
        api_key=settings.embedding_api_key,
        model_dir=settings.model_dir,
        concurrency=settings.embed_concurrency or MOST_REQUESTS,
        batch_items=settings.embed_batch or MOST_TEXTS,
        latency_target_seconds=settings.latency_target_seconds,
        queue_limit=settings.queue_limit,
        request_timeout_seconds=settings.request_timeout_seconds,
        retry_attempts=settings.retry_attempts,
        retry_budget_seconds=settings.retry_budget_seconds,
        max_items_per_second=settings.max_items_per_second,
    )
