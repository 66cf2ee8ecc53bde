"""The controller of one endpoint: asked before every request, told after every request.

It composes limit, batch, pace, throttle and breaker and keeps the count of requests in flight. Pure: no asyncio, no
clock of its own, no texts; `embedding.embedder` asks, sends and reports.
"""

import math
from dataclasses import dataclass
from typing import Literal

from era_dagster.control.batch import BatchSizer
from era_dagster.control.breaker import Breaker
from era_dagster.control.limit import Limit
from era_dagster.control.outcome import Outcome, Sample
from era_dagster.control.rate import Pacer, Throttle

Mode = Literal["normal", "throttled", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Send now, at most this much. `probe`: send a short text of one's own instead, to see whether the server lives."""

    batch_items: int
    batch_tokens: int
    probe: bool = False


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Send nothing before `at` (the caller's clock); infinite: not before a request in flight ends."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One request in flight. `alone`: it was the only one allowed, because the one before was refused."""

    sent_at: float
    items: int
    tokens: int
    probe: bool
    alone: bool


class EndpointController:
    """Decides when one endpoint gets its next request, and how large it is.

    `patience_seconds`: how long it may answer nothing useful before it counts as given up (`given_up_at`).
    """

    def __init__(self, *, limit: Limit, batch: BatchSizer, pacer: Pacer, patience_seconds: float) -> None:
        self._limit = limit
        self._batch = batch
        self._pacer = pacer
        self._throttle = Throttle()
        self._breaker = Breaker()
        self._patience_seconds = patience_seconds
        self._failing_since: float | None = None
        self._probing = False
        self._items_in_flight = 0
        self.in_flight = 0

    def admit(self, now: float, pending: int) -> Decision | WaitUntil:
        """May a request be sent at `now`, while `pending` texts wait? The guards in the order of their authority."""
        if now < self._throttle.closed_until:
            return WaitUntil(self._throttle.closed_until)
        probe_at = self._breaker.probe_at
        if probe_at is not None:
            if self._probing:
                return WaitUntil(math.inf)
            return Decision(batch_items=1, batch_tokens=1, probe=True) if now >= probe_at else WaitUntil(probe_at)
        if now < self._pacer.ready_at:
            return WaitUntil(self._pacer.ready_at)
        limit = 1 if self._throttle.half_open else self._limit.value
        if self.in_flight >= limit:
            return WaitUntil(math.inf)
        size = self._batch.size(remaining=pending + self._items_in_flight, limit=self._limit.value)
        return Decision(batch_items=int(min(size.items, self._pacer.most_items)), batch_tokens=size.tokens)

    def started(self, now: float, *, items: int, tokens: int, probe: bool = False) -> Ticket:
        """A request was sent at `now`, as an `admit` at the same time allowed."""
        self.in_flight += 1
        self._items_in_flight += items
        self._pacer.sent(now, items)
        self._probing = self._probing or probe
        return Ticket(sent_at=now, items=items, tokens=tokens, probe=probe, alone=self._throttle.half_open)

    def completed(
        self,
        now: float,
        ticket: Ticket,
        outcome: Outcome,
        *,
        tokens: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        """A request ended; `tokens` is the server's own count, where it gave one."""
        self.abandoned(ticket)
        sample = Sample(
            sent_at=ticket.sent_at,
            completed_at=now,
            outcome=outcome,
            items=ticket.items,
            tokens=ticket.tokens if tokens is None else tokens,
        )
        self._limit.completed(sample)
        self._batch.completed(sample)
        if outcome in (Outcome.SUCCESS, Outcome.TEXTS):
            self._breaker.succeeded()
            self._throttle.succeeded(sent_at=ticket.sent_at)
            self._failing_since = None
            return
        if self._failing_since is None:
            self._failing_since = ticket.sent_at
        if outcome is Outcome.RATE_LIMITED or retry_after_seconds is not None:
            self._throttle.refused(now, sent_at=ticket.sent_at, retry_after_seconds=retry_after_seconds)
        if outcome is Outcome.RATE_LIMITED:
            self._breaker.succeeded()  # a server that counts requests is up; the throttle holds it back
        elif ticket.probe:
            self._breaker.probe_failed(now)
        else:
            self._breaker.failed(now, timed_out=outcome is Outcome.TIMED_OUT)

    def abandoned(self, ticket: Ticket) -> None:
        """A request was cancelled on our side: its place is free, and nothing is learnt."""
        self.in_flight -= 1
        self._items_in_flight -= ticket.items
        if ticket.probe:
            self._probing = False

    def woken(self, now: float) -> None:
        """Work came after a rest: the time nobody tried does not count as the endpoint's failure."""
        if self._failing_since is not None:
            self._failing_since = now

    @property
    def given_up_at(self) -> float:
        """When its patience ends; minus infinite if it announced a longer pause, infinite while it answers."""
        if self._failing_since is None:
            return math.inf
        end = self._failing_since + self._patience_seconds
        return -math.inf if self._throttle.announced_until > end else end

    @property
    def mode(self) -> Mode:
        """What holds it back, in one word."""
        if self._breaker.probe_at is not None:
            return "down"
        return "throttled" if self._throttle.half_open else "normal"

    @property
    def limit(self) -> int:
        """The most requests in flight, at this moment."""
        return self._limit.value
