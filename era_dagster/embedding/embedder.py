"""From texts to vectors: one queue, any number of callers, one controller for each endpoint.

The asyncio side of embedding: it asks the controllers (`control.gate`), sends through the providers, and hands every
text its vector or its reason. Time comes from the running event loop only, chance from an injected generator.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, Self

import httpx

from era_dagster.control.admission import Decision, Ticket, WaitUntil
from era_dagster.control.batch import BatchSize
from era_dagster.control.retry import RetryPolicy
from era_dagster.control.trace import TraceRecord
from era_dagster.domain.errors import BadVectors, EndpointRefused, EraError, TransientError
from era_dagster.embedding.cache_front import CacheFront, Remember
from era_dagster.embedding.canary import blames_the_text, of_one_text, of_the_canary, tells_nothing
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.endpoint import Endpoint, nobody_answers, open_endpoints
from era_dagster.embedding.identity import Identification, of_another_model, of_one_vector
from era_dagster.embedding.ledger import Ledger
from era_dagster.embedding.model_profile import Role
from era_dagster.embedding.observer import RequestObserver, ended_request
from era_dagster.embedding.provider import CANARY, Answer
from era_dagster.embedding.report import EmbedReport, EmbedStats, stats_of
from era_dagster.embedding.responses import Verdict
from era_dagster.embedding.retries import Retries
from era_dagster.embedding.vectors import ModelIdentity, Vector, VectorCache, checked
from era_dagster.embedding.work import Batch, Call, Item, WorkQueue


class Embedder:
    """Embeds texts for many callers at once; an async context manager, open for as long as a run.

    The texts of all `embed` calls share one queue, so that requests fill across callers; at most `queue_limit` texts
    are accepted and not yet settled. With a `cache`, known vectors are not asked for, and a vector counts as made only
    once it is remembered; `remember` (the cache's, if it is not given) is what `Identification` says. A `transport` replaces
    the network and stays the caller's to close. `trace` hears every decision of a controller, as (URL of the endpoint,
    record), `on_request` every request when it ends.
    """

    def __init__(
        self,
        config: EmbedderConfig,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        cache: VectorCache | None = None,
        remember: Remember | None = None,
        random: Random | None = None,
        trace: Callable[[str, TraceRecord], None] | None = None,
        on_request: RequestObserver | None = None,
    ) -> None:
        self._config = config
        self._on_request = on_request
        self._random = Random(0) if random is None else random
        self._policy = RetryPolicy(attempts=config.retry_attempts, budget_seconds=config.retry_budget_seconds)
        self._endpoints = open_endpoints(config, transport, trace)
        self._dimension: int | None = None
        self._queue = WorkQueue()
        self._ledger = Ledger(config.profile, queue_limit=config.queue_limit, accept=self._accept)
        self._retries = Retries(self._policy, self._random, self._queue, self._ledger)
        self._cache: CacheFront | None = None
        if cache is not None:
            self._cache = CacheFront(cache, found=self._looked_up, stored=self._ledger.settle_vectors)
        self._identification = Identification(
            config,
            self._endpoints,
            self._policy,
            self._random,
            start=lambda work: self._background.append(self._task(work)),
            joined=self._joined,
            remember=self._cache.first_known if self._cache and remember is None else remember,
        )
        self._wake = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._requests: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None

    async def __aenter__(self) -> Self:
        loops = [self._dispatch()] if self._cache is None else [self._dispatch(), *self._cache.loops()]
        self._background = [self._task(loop) for loop in loops]
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._background, *self._requests, *self._identification.asked]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            if self._cache is not None and self._broken is None:
                await self._cache.flush()
        finally:
            for endpoint in self._endpoints:
                await endpoint.provider.close()

    async def embed(self, texts: Sequence[str], *, role: Role = "document") -> EmbedReport:
        """One vector or one reason for each text. Waits for room in the queue before it accepts more texts.

        Raises `EndpointRefused` (wrong key, missing model), `BadVectors` (an endpoint that holds another model) and,
        when no endpoint took a text for the whole retry budget, `EndpointUnavailable`. Each ends every call that waits;
        a later call tries anew.
        """
        started = self._now()
        if self._broken is not None:
            raise self._broken.with_traceback(None)
        identity = None if self._cache is None else await self.identify()
        call = Call(list(texts))
        await self._ledger.run(call, role, identity)
        if call.error is not None:
            raise call.error.with_traceback(None)
        return call.report(self._now() - started)

    async def identify(self) -> ModelIdentity:
        """Which model answers; all endpoints are asked once, those that say it late take no text until then.

        Raises `EndpointRefused` for a missing model or key, `EndpointUnavailable` when no endpoint can be reached, `BadVectors`
        for another model than the cache knows by its name, `ConfigurationError` for two of them; late ones end the run so.
        """
        identity = await self._identification.ask()
        self._dimension = identity.dimension
        return identity

    @property
    def urls(self) -> tuple[str, ...]:
        """The endpoints that are reached over a network, as they are shown; none where the model runs in this process."""
        return tuple(each.provider.url for each in self._endpoints if self._config.provider != "local")

    def told_of_others(self, urls: Collection[str]) -> None:
        """At these endpoints, and at no others, clients that do as this one does are known to be at work."""
        for endpoint in self._endpoints:
            endpoint.controller.told_of_others(present=endpoint.provider.url in urls)

    def stats(self) -> EmbedStats:
        """The counters at this moment."""
        endpoints = tuple(endpoint.stats() for endpoint in self._endpoints)
        return stats_of(self._ledger.counters, waiting=len(self._ledger), endpoints=endpoints)

    def _accept(self, item: Item) -> None:
        """A new text: to the cache first where there is one."""
        if not len(self._ledger):
            for endpoint in self._endpoints:
                endpoint.woken(self._now())
        if self._cache is None:
            self._queue.add(item)
            self._wake.set()
        else:
            self._cache.look_up(item)

    def _looked_up(self, items: Sequence[Item], known: Mapping[bytes, Vector]) -> None:
        """The cache's answer: settle what it knows, queue what it does not."""
        for item in items:
            vector = None if item.key is None else known.get(item.key)
            if vector is None:
                self._queue.add(item)
            else:
                self._ledger.settle_from_cache(item, vector)
        self._wake.set()

    async def _dispatch(self) -> None:
        while True:
            self._wake.clear()
            wake_at = self._send_what_may_go(self._now())
            try:
                async with asyncio.timeout_at(None if wake_at == math.inf else wake_at):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _send_what_may_go(self, now: float) -> float:
        """Start every request the controllers allow; returns when to look again if nothing happens before."""
        if not len(self._ledger):
            return math.inf
        wake_at = self._given_up_at
        if now >= wake_at:
            if wake_at == -math.inf and (self._requests or not self._queue.pending):
                return math.inf  # what is under way, or in the cache's hands, may be all that is left
            if self._requests or not self._retries.give_up_what_was_passed_over():
                self._stop(nobody_answers(self._config, self._endpoints))
            return math.inf
        for endpoint in self._endpoints:
            wake_at = min(wake_at, self._send_again_what_is_late(endpoint, now))
        open_to_work = [endpoint for endpoint in self._endpoints if not endpoint.unknown]
        while open_to_work:
            endpoint = min(open_to_work, key=lambda each: each.controller.in_flight)
            decision = endpoint.controller.admit(now, -(-self._queue.pending // len(self._endpoints)))
            if isinstance(decision, WaitUntil):
                wake_at = min(wake_at, decision.at)
                open_to_work.remove(endpoint)
            elif endpoint.controller.probing and self._identification.doubts(endpoint, now):
                open_to_work.remove(endpoint)
            elif decision.probe or self._is_ours_to_go_first(endpoint) or self._identification.doubts(endpoint, now):
                ticket = endpoint.controller.started(now, items=1, tokens=1, probe=True)
                self._start(self._probe(endpoint, ticket), endpoint, ticket)
            elif not self._send_batch(endpoint, decision, now):
                open_to_work.remove(endpoint)
        again_at = self._queue.next_ready_at
        return wake_at if again_at is None or again_at <= now else min(wake_at, again_at)

    def _is_ours_to_go_first(self, endpoint: Endpoint) -> bool:
        """Whether all that waits lets another go first after a refusal, so that only a text of our own can."""
        return self._queue.only_aside and endpoint.controller.mode == "throttled"

    def _send_again_what_is_late(self, endpoint: Endpoint, now: float) -> float:
        """Texts of a stuck request travel once more, and the first answer counts; returns when to look again."""
        late, again_at = endpoint.late(now)
        for ticket in late:
            batch = endpoint.travelling.get(ticket.number)
            if batch is not None and not batch.doubled:
                batch.doubled = True
                self._queue.again(batch.part(batch.items), now)
        return again_at

    def _send_batch(self, endpoint: Endpoint, decision: Decision, now: float) -> bool:
        size = BatchSize(items=decision.batch_items, tokens=decision.batch_tokens)
        batch = self._queue.take(now, size, url=endpoint.provider.url, open_at=self._open_at)
        if batch is None:
            return False
        if endpoint.provider.url not in batch.unchecked:  # else it is no text of it that goes
            self._ledger.sent(batch, now)
        ticket = endpoint.controller.started(now, items=len(batch.items), tokens=batch.tokens)
        self._start(self._request(endpoint, batch, ticket), endpoint, ticket)
        return True

    async def _request(self, endpoint: Endpoint, batch: Batch, ticket: Ticket) -> None:
        endpoint.travelling[ticket.number], url = batch, endpoint.provider.url
        try:
            answer = await self._exchange(endpoint, [item.text for item in batch.items], ticket, batch)
        finally:
            del endpoint.travelling[ticket.number]
        if answer is None:
            pass  # it is in the queue again, for the text of our own that is to follow
        elif isinstance(answer, Answer):
            self._deliver(endpoint, batch, answer, self._now() - ticket.sent_at)
        elif batch.doubled and not isinstance(answer.error, EndpointRefused):
            pass  # its texts are on their way once more
        elif isinstance(answer.error, TransientError):
            over = self._now() >= self._given_up_at
            self._retries.failed(batch, answer, self._now(), url=url, alone=ticket.alone, patience_is_over=over)
        elif isinstance(answer.error, EndpointRefused):
            self._stop(answer.error)
        else:
            self._retries.rejected(batch, answer.error, self._now(), url=url, open_at=self._open_at)

    async def _probe(self, endpoint: Endpoint, ticket: Ticket) -> None:
        """See with a text of our own whether a silent endpoint lives again: no caller's text pays for it."""
        answer = await self._exchange(endpoint, [CANARY], ticket, None)
        if isinstance(answer, Answer):
            self._retries.accepted(endpoint.provider.url)
        elif isinstance(answer, Verdict):
            self._retries.said_no(endpoint.provider.url, answer)
            if isinstance(answer.error, EndpointRefused):
                self._stop(answer.error)
        self._queue.nobody_aside()

    async def _exchange(
        self, endpoint: Endpoint, texts: list[str], ticket: Ticket, batch: Batch | None
    ) -> Answer | Verdict | None:
        """Ask once, and tell the controller how it ended.

        A text that fails alone is followed by one of our own in its place: what is wrong with that one too is the
        endpoint's failure, not the text's. None where a pause or a pace forbids that, or it is refused: nothing is known then,
        and it goes the next time instead of the text. A server with one request a minute never takes two in a row.
        """
        url = endpoint.provider.url
        said = None if batch is None else batch.unchecked.get(url)
        answer = said or await self._ask(endpoint, texts, ticket, retried=batch is not None and batch.attempts > 1)
        if batch is not None and len(texts) == 1 and not batch.doubled and blames_the_text(answer):
            control = endpoint.controller.followed(self._now(), ticket, instead=said is not None)
            own = None if control is None else await self._ask(endpoint, [CANARY], control, retried=False)
            if tells_nothing(own):
                if said is None:
                    endpoint.controller.answered(self._now())
                batch.not_checked(url, answer)
                if own is not None:
                    endpoint.learn(self._now(), ticket, own, batch)
                self._retries.not_checked(batch, own, self._now())
                return None
            batch.checked(url)
            self._retries.checked(url, doubt=isinstance(own, Verdict))
            answer = own if isinstance(own, Verdict) else answer
        endpoint.learn(self._now(), ticket, answer, batch)
        return answer

    async def _ask(self, endpoint: Endpoint, texts: list[str], ticket: Ticket, *, retried: bool) -> Answer | Verdict:
        """One request and what it proves; the observer is told, also of one that is cancelled."""
        asked = f"{endpoint.provider.url} (model {self._config.model})"
        # Of an endpoint that never gave a right vector another width means another model: that ends the run.
        dimension = self._dimension if endpoint.delivered else None
        answer: Answer | Verdict | None = None
        try:
            answer = await endpoint.embed(texts)
            if ticket.probe:
                answer = self._identification.verified(endpoint, of_the_canary(asked, answer, dimension))
                if isinstance(answer, Verdict) and isinstance(answer.error, BadVectors):
                    self._stop(answer.error)
            elif len(texts) == 1:
                answer = of_one_text(asked, answer, dimension)
            return answer
        finally:
            if self._on_request is not None:
                url, now = endpoint.provider.url, self._now()
                self._on_request(ended_request(url, ticket, answer, now=now, texts=len(texts), retried=retried))

    def _deliver(self, endpoint: Endpoint, batch: Batch, answer: Answer, seconds: float) -> None:
        vectors, bad = checked(answer.vectors, self._dimension)
        width = answer.vectors.shape[1]
        if self._dimension is None and len(bad) < len(batch.items):
            self._dimension = width
        if self._dimension == width:
            endpoint.delivered = True
        elif self._dimension is not None and not endpoint.delivered:
            made = f"vectors of {width} dimensions, the model {self._config.model} has {self._dimension}"
            self._stop(of_another_model(endpoint.provider.url, made))
            return
        tokens = batch.tokens if answer.tokens is None else answer.tokens
        url = endpoint.provider.url
        if self._identification.gets_one_vector_for_all([item.text for item in batch.items], vectors):
            self._stop(of_one_vector(url, self._config.model))
            return
        self._retries.accepted(url, after_all=url in batch.rejected_by)
        self._ledger.counters.answered(seconds, tokens)
        for call, texts in batch.calls().items():
            call.counters.answered(seconds, round(tokens * texts / len(batch.items)))
        good = [
            (item, vectors[index]) for index, item in enumerate(batch.items) if index not in bad and not item.settled
        ]
        if self._cache is None:
            self._ledger.settle_vectors(good)
        else:
            self._cache.store(good)
        for index, reason in bad.items():
            error = BadVectors(f"{url} (model {self._config.model}) answered no vector: {reason}.")
            self._without_vector(batch.part([batch.items[index]]), error, url, among_good=len(bad) < len(batch.items))

    def _without_vector(self, text: Batch, error: BadVectors, url: str, *, among_good: bool) -> None:
        """A text whose vector was none is alone from now on; it is to blame where others of its request have theirs."""
        text.suspect, text.may_join = True, False
        if among_good:
            self._retries.rejected(text, error, self._now(), url=url, open_at=self._open_at)
        else:
            self._queue.again(text, self._now())

    @property
    def _given_up_at(self) -> float:
        """When the patience with the last endpoint ends."""
        return max(endpoint.controller.given_up_at for endpoint in self._endpoints)

    @property
    def _open_at(self) -> frozenset[str]:
        """The endpoints that take work, or will when a pause of theirs is over."""
        now = self._now()
        return frozenset(
            each.provider.url
            for each in self._endpoints
            if not each.unknown and each.controller.mode != "down" and now < each.controller.given_up_at
        )

    def _start(self, work: Coroutine[Any, Any, None], endpoint: Endpoint, ticket: Ticket) -> None:
        task = self._task(work)
        self._requests.add(task)
        task.add_done_callback(partial(self._request_ended, endpoint, ticket))

    def _request_ended(self, endpoint: Endpoint, ticket: Ticket, task: asyncio.Task[None]) -> None:
        """However it ended, and if it was cancelled before it began: it holds no place any more."""
        endpoint.controller.abandoned(ticket)
        self._requests.discard(task)
        self._wake.set()

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A task that fails with anything but a verdict must not leave callers waiting."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._broken = self._broken or error
            self._stop(error)

    def _joined(self, error: EraError | None) -> None:
        """An endpoint that was asked for its model has answered at last."""
        if error is not None:
            self._stop(error)
        self._wake.set()

    def _stop(self, error: BaseException) -> None:
        """End every call that waits, and every request; vectors on their way into the cache still get there."""
        self._ledger.end_all(error)
        for task in self._requests - {asyncio.current_task()}:
            task.cancel()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
