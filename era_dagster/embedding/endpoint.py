"""One endpoint of an embedder: its provider, its controller, and what is known of it so far.

The place where a configuration becomes providers and controllers. The queue and the callers are `embedding.embedder`.
"""

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import httpx

from era_dagster.control.admission import Ticket
from era_dagster.control.ceilings import Ceilings
from era_dagster.control.gate import EndpointController
from era_dagster.control.outcome import Outcome
from era_dagster.control.trace import TraceRecord
from era_dagster.domain.errors import EndpointUnavailable
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.local import LocalProvider
from era_dagster.embedding.ollama import OllamaProvider
from era_dagster.embedding.openai import OpenAIProvider
from era_dagster.embedding.provider import Answer, Provider
from era_dagster.embedding.report import EndpointStats
from era_dagster.embedding.responses import Verdict
from era_dagster.embedding.work import Batch

# `ollama pull`, or a server that is started again, exchanges the model under its name without an error.
_KNOWN_FOR_SECONDS = 120.0
# Half a percent of the requests: a slow server, or one that allows three a minute, has few to spare.
_KNOWN_FOR_REQUESTS = 200
_ASKED_AGAIN_SECONDS = 10.0
# A time-out that comes so much too late: this process stood still (suspended, stopped, its machine asleep), not the server.
_STOOD_STILL_SECONDS = 2.0


class Endpoint:
    """`loading`: the next request may have to wait for the model to load. `delivered`: it has given a right vector.
    `unknown`: it was asked who it is and has not said so yet; nothing goes there.

    `last_error` is the last failure's message. `travelling`: the batches under way, by the number of their ticket.
    """

    def __init__(self, config: EmbedderConfig, provider: Provider, controller: EndpointController) -> None:
        self.provider = provider
        self.controller = controller
        self.loading = True
        self.delivered = False
        self.unknown = False
        self.last_error = ""
        self.travelling: dict[int, Batch] = {}
        self._config = config
        self._ask_again_at, self._requests_before = -math.inf, 0
        self._stood_still_until = -math.inf  # infinite again when a text is answered

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

    async def embed(self, texts: Sequence[str]) -> Answer | Verdict:
        """Ask once. Where this process stood still meanwhile, the patience begins anew; not twice without a text taken between,
        or a run on a machine that is always late would have no end."""
        clock, seconds = asyncio.get_running_loop(), self.timeout_seconds
        due_at = clock.time() + seconds
        answer = await self.provider.embed(texts, seconds)
        if isinstance(answer, Verdict) and answer.outcome is Outcome.TIMED_OUT:
            now = clock.time()
            if now - due_at > _STOOD_STILL_SECONDS and self._stood_still_until == -math.inf:
                self._stood_still_until = now
                self.woken(now)
        return answer

    def learn(self, now: float, ticket: Ticket, answer: Answer | Verdict, batch: Batch | None = None) -> None:
        """Tell the controller how a request ended, of `batch` or of a text of our own."""
        self._requests_before -= batch is not None
        if isinstance(answer, Answer):
            self.loading = False
            self._stood_still_until = self._stood_still_until if batch is None else -math.inf
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
        if batch is not None and ticket.sent_at < self._stood_still_until:
            batch.first_sent_at = now  # the time before is none of its retries'
        if self.controller.mode == "down":
            self.loading = True  # a server that comes back loads its model first

    def woken(self, now: float) -> None:
        """Work came after a rest."""
        self.controller.woken(now)
        if now >= self._ask_again_at:
            self._requests_before = 0

    def has_shown_its_model(self, now: float) -> None:
        """It answered our own text with the vector of the model that all hold."""
        self.delivered = True
        self._ask_again_at, self._requests_before = now + _KNOWN_FOR_SECONDS, _KNOWN_FOR_REQUESTS

    def holds_another_model(self) -> None:
        """It answered our own text with another vector: nothing else goes there until it does no more."""
        self._ask_again_at, self._requests_before = -math.inf, 0

    def may_hold_another_model(self, now: float) -> bool:
        """Whether it never gave a right vector, or has not shown its model for two minutes and 200 requests, or since a rest."""
        return not self.delivered or (now >= self._ask_again_at and self._requests_before <= 0)

    def had_no_room_for_ours(self, now: float) -> None:
        """It failed with our own text: what it works on meanwhile goes on, and it is asked again soon."""
        if self.travelling:
            self._ask_again_at = now + _ASKED_AGAIN_SECONDS

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


def nobody_answers(config: EmbedderConfig, endpoints: Sequence[Endpoint]) -> EndpointUnavailable:
    """The end of a run whose patience with all of its endpoints is over."""
    reasons = " ".join(filter(None, (endpoint.why_not for endpoint in endpoints)))
    return EndpointUnavailable(
        f"No embedding server took a text for {config.retry_budget_seconds:g} s, or each asked for a longer pause. {reasons}",
        hint="Start the server or correct ERA_EMBEDDING_URLS, then run again: what was embedded is kept.",
    )


def _providers(config: EmbedderConfig, transport: httpx.AsyncBaseTransport | None) -> list[Provider]:
    if config.provider == "local" and config.model_dir is not None:
        return [LocalProvider(config.model, config.model_dir)]
    remote = OpenAIProvider if config.provider == "openai" else OllamaProvider
    return [remote(url, config.model, api_key=config.api_key, transport=transport) for url in config.urls]
