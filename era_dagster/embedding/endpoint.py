"""One endpoint of an embedder: its provider, its controller, and what is known of it so far.

The place where a configuration becomes providers and controllers. The queue and the callers are `embedding.embedder`.
"""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import httpx

from era_dagster.control.admission import Ticket
from era_dagster.control.ceilings import Ceilings
from era_dagster.control.gate import EndpointController
from era_dagster.control.outcome import Outcome
from era_dagster.control.trace import TraceRecord
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.local import LocalProvider
from era_dagster.embedding.ollama import OllamaProvider
from era_dagster.embedding.openai import OpenAIProvider
from era_dagster.embedding.provider import Answer, Provider
from era_dagster.embedding.report import EndpointStats
from era_dagster.embedding.responses import Verdict
from era_dagster.embedding.work import Batch


class Endpoint:
    """`loading`: the next request may have to wait for the model to load. `delivered`: it has given a right vector.
    `unknown`: it was asked who it is and has not said so yet; nothing goes there. `ask_again_at`: when it is asked for our own
    text again, should it hold another model by then.

    `last_error` is the last failure's message. `travelling`: the batches under way, by the number of their ticket.
    """

    def __init__(self, config: EmbedderConfig, provider: Provider, controller: EndpointController) -> None:
        self.provider = provider
        self.controller = controller
        self.loading = True
        self.delivered = False
        self.unknown = False
        self.ask_again_at = -math.inf
        self.last_error = ""
        self.travelling: dict[int, Batch] = {}
        self._config = config

    @property
    def why_not(self) -> str:
        """Why it takes nothing, for the error that ends everything; empty if it never failed."""
        if self.controller.announces_long_wait:
            return f"{self.provider.url} has given all that its rate limit headers allow for now."
        return self.last_error

    @property
    def timeout_seconds(self) -> float:
        """How long the next request may take."""
        return self._config.loading_timeout_seconds if self.loading else self._config.request_timeout_seconds

    def learn(self, now: float, ticket: Ticket, answer: Answer | Verdict, batch: Batch | None = None) -> None:
        """Tell the controller how a request ended, of `batch` or of a text of our own."""
        if isinstance(answer, Answer):
            self.loading = False
            self.controller.completed(now, ticket, Outcome.SUCCESS, tokens=answer.tokens, headers=answer.headers)
            too_many = None if batch is None else batch.taken(self.provider.url)
            if too_many is not None:
                self.controller.too_large(now, items=too_many)
            return
        self.last_error = answer.error.message
        self.controller.completed(
            now,
            ticket,
            answer.outcome,
            retry_after_seconds=answer.retry_after_seconds,
            headers=answer.headers,
        )
        if self.controller.mode == "down":
            self.loading = True  # a server that comes back loads its model first

    def late(self, now: float) -> tuple[list[Ticket], float]:
        """Requests that had better be sent again, and when to look again; none of a model in this process: what is computed
        twice there takes longer for both."""
        return ([], math.inf) if self._config.provider == "local" else self.controller.late(now)

    def is_away(self, now: float, verdict: Verdict) -> None:
        """It did not answer who it is: no caller's text waits for it, it is probed until it does."""
        ticket = self.controller.started(now, items=1, tokens=1, probe=True)
        self.learn(now, ticket, replace(verdict, outcome=Outcome.TIMED_OUT))

    def stats(self) -> EndpointStats:
        """Its state at this moment."""
        return EndpointStats(
            url=self.provider.url,
            mode=self.controller.mode,
            in_flight=self.controller.in_flight,
            limit=self.controller.concurrency,
            batch=self.controller.batch_items,
            rate=self.controller.rate,
        )


def open_endpoints(
    config: EmbedderConfig,
    transport: httpx.AsyncBaseTransport | None,
    trace: Callable[[str, TraceRecord], None] | None,
) -> list[Endpoint]:
    """One endpoint for each URL, or the one in process. Opens no connection yet. `trace` hears (URL, record)."""
    providers = _providers(config, transport)
    concurrency = config.concurrency
    if config.provider == "local":
        concurrency = min(concurrency, os.cpu_count() or 1)  # more threads than cores only wait for each other
    ceilings = Ceilings(
        concurrency=concurrency,
        items=config.batch_items,
        tokens=config.batch_tokens,
        latency_seconds=config.latency_target_seconds,
    )
    pace = config.max_items_per_second
    return [
        Endpoint(
            config,
            provider,
            EndpointController(
                ceilings,
                patience_seconds=config.retry_budget_seconds,
                items_per_second=None if pace is None else pace / len(providers),
                trace=None if trace is None else partial(trace, provider.url),
            ),
        )
        for provider in providers
    ]


def _providers(config: EmbedderConfig, transport: httpx.AsyncBaseTransport | None) -> list[Provider]:
    if config.provider == "local" and config.model_dir is not None:
        return [LocalProvider(config.model, config.model_dir)]
    remote = OpenAIProvider if config.provider == "openai" else OllamaProvider
    return [remote(url, config.model, api_key=config.api_key, transport=transport) for url in config.urls]
