"""The controller of one endpoint: asked before every request, told after every request.

It composes limit, pace, throttle and breaker and keeps the account of the requests in flight. The guards in the order of
their authority: the server's pause, the breaker, the pace, one at a time after a refusal, the limit. Pure: no asyncio, no
clock of its own, no texts; `embedding.embedder` asks, sends and reports.
"""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from era_dagster.control.admission import Decision, Ticket, WaitUntil
from era_dagster.control.allowances import announced_allowances
from era_dagster.control.breaker import Breaker
from era_dagster.control.ceilings import Ceilings
from era_dagster.control.limit import AdaptiveLimit, Judgement
from era_dagster.control.load import Load
from era_dagster.control.measure import Measurement
from era_dagster.control.outcome import Outcome
from era_dagster.control.patience import Patience
from era_dagster.control.rate import Pacer, Throttle
from era_dagster.control.room import REMEMBERED_SECONDS, TRIED_SECONDS
from era_dagster.control.stuck import LATE_SECONDS, Stuck
from era_dagster.control.trace import Mode, TraceRecord
from era_dagster.control.unavailable import Unavailable

SILENT_FACTOR = 8.0
"""If nothing is answered for so many latencies, everything counts as stuck."""
SLACK = 1.1
"""A request may exceed its tokens by this, so that a last text that nearly fits is not left for the next one."""


class EndpointController:
    """Decides when one endpoint gets its next request, and how large it is.

    `patience_seconds`: how long it may answer nothing useful before it counts as given up (`given_up_at`).
    `items_per_second`: a pace somebody decided. `trace` hears every decision.
    """

    def __init__(
        self,
        ceilings: Ceilings,
        *,
        patience_seconds: float,
        items_per_second: float | None = None,
        trace: Callable[[TraceRecord], None] | None = None,
    ) -> None:
        self._ceilings = ceilings
        self._limit = AdaptiveLimit(ceilings)
        self._pacer = Pacer(items_per_second)
        self._load = Load()
        self._unavailable = Unavailable()
        self._crowded, self._crowded_until = False, -math.inf
        self._refused_places: list[float] = []
        self._throttle = Throttle()
        self._breaker = Breaker()
        self._patience = Patience(patience_seconds)
        self._trace = trace
        self._probing, self._probes = False, 0
        self._allowed = Decision(batch_items=1, batch_tokens=1)
        self._tickets: dict[int, Ticket] = {}
        self._stuck = Stuck()
        self._items_in_flight = self._tokens_in_flight = 0
        self._heard_at, self._silence_broken = math.inf, False
        self._still_at: Measurement | None = None

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return len(self._tickets)

    @property
    def probing(self) -> bool:
        """Whether a text of one's own is under way."""
        return self._probing

    def admit(self, now: float, pending: int) -> Decision | WaitUntil:
        """May a request be sent at `now`, while `pending` texts wait?"""
        self._crowded = now < self._crowded_until
        if now < self._throttle.closed_until:
            return WaitUntil(self._throttle.closed_until)
        probe_at = self._breaker.probe_at
        if probe_at is not None:
            if self._probing:
                return WaitUntil(math.inf)
            return Decision(batch_items=1, batch_tokens=1, probe=True) if now >= probe_at else WaitUntil(probe_at)
        while self._refused_places and self._refused_places[0] <= now:
            heapq.heappop(self._refused_places)
        counted = len(self._tickets) - len(self._stuck)
        concurrency = max(1, self.concurrency - len(self._refused_places))
        if (self._throttle.half_open and counted) or self._limit.must_empty:
            return WaitUntil(math.inf)
        room = self._limit.room(now)
        much = self._counted_load is not None and self._tokens_in_flight > self._load.most_under_way
        if counted >= concurrency or (counted and room < self._limit.next_items):
            concurrency = counted
            if pending:
                self._limit.reached(now)
            self._pacer.by_requests = False  # it is the limit that holds
        if counted >= concurrency or much or (counted and self._limit.must_drain):
            silent_until = math.inf if self._silence_broken else self._silent_until()
            if now < silent_until:
                return WaitUntil(min([silent_until, *self._refused_places[:1]]))
            self._silence_broken = True
        ready_at = self._pacer.ready_at(now)
        if ready_at > now:
            self._tell(now, self._limit.paced(now, by_requests=self._pacer.by_requests))
            return WaitUntil(ready_at)
        return self._sized(pending, concurrency, room)

    def _silent_until(self) -> float:
        """When everything counts as stuck: one request more may go then, because nothing overtakes the others."""
        return self._heard_at + max(LATE_SECONDS, SILENT_FACTOR * self._limit.expected_latency)

    def _sized(self, pending: int, concurrency: int, room: float) -> Decision:
        """A share of what is left, so that the end of a job does not wait for one full request; all, if they are counted."""
        items = float(self._limit.next_items)
        tokens = SLACK * max(self._limit.batch_tokens, items * self._limit.item_tokens)
        items = min(items, -(-(pending + self._items_in_flight) // concurrency))
        load = self._counted_load
        if load is not None:
            items, tokens = float(self._limit.most_items), load
        items = min(items, self._limit.most_items, self._pacer.most_items, room)
        tokens = min(tokens, self._ceilings.tokens, self._pacer.most_tokens)
        self._allowed = Decision(batch_items=max(1, int(items)), batch_tokens=max(1, int(tokens)))
        return self._allowed

    @property
    def _counted_load(self) -> float | None:
        """The tokens of a request where a pace of requests is what holds the work back; None where it is not."""
        return None if self._pacer.requests_per_second is None else self._load.tokens

    def started(self, now: float, *, items: int, tokens: int, probe: bool = False) -> Ticket:
        """A request was sent at `now`, as an `admit` at the same time allowed."""
        sent = self._pacer.sent(now, items=items, tokens=tokens, alone=self._throttle.half_open)
        if probe:
            self._probes += 1
            self._probing = True
        in_parts = 2 * items <= self._allowed.batch_items and 2 * tokens <= self._allowed.batch_tokens
        number = -self._probes if probe else self._limit.sent(now, tokens, items=items, in_parts=in_parts)
        ticket = Ticket(
            number=number,
            sent_at=now,
            items=items,
            tokens=tokens,
            probe=probe,
            alone=self._throttle.half_open,
            sent=sent,
            under_way=self._tokens_in_flight + tokens,
        )
        if len(self._tickets) == len(self._stuck):
            self._heard_at = now
        self._tickets[number] = ticket
        self._items_in_flight += items
        self._tokens_in_flight += tokens
        return ticket

    def followed(self, now: float, ticket: Ticket, *, instead: bool) -> Ticket | None:
        """One short text follows in the place of `ticket`, and is charged like any other; None while a pause or pace forbids
        that. `instead`: it is what `ticket` was given for."""
        if not instead:
            if now < max(self._throttle.closed_until, self._pacer.ready_at(now)):
                return None
            self._pacer.sent(now, items=1, tokens=1)
        return replace(ticket, sent_at=now, items=1, tokens=1, probe=True)

    def answered(self, now: float) -> None:
        """A text was answered, if not with its vector; what became of the one that was to follow says no less of that."""
        self._patience.answered(now, text=True)

    def completed(
        self,
        now: float,
        ticket: Ticket,
        outcome: Outcome,
        *,
        tokens: int | None = None,
        retry_after_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A request ended; `tokens` is the server's own count, `headers` those of its answer, where it gave any."""
        late = ticket.number in self._stuck
        self._leave(ticket)
        self._limit.freed(now)
        if now >= self._silent_until() and self._limit.last is not self._still_at:
            # Everything stood still: one event, not what requests take. If it comes again, it is what they take.
            self._still_at = self._limit.last
            self._limit.interrupted(now)
        self._heard_at, self._silence_broken = now, False
        if headers:
            self._pacer.announced(now, ticket.sent, announced_allowances(headers))
        if tokens is not None and not ticket.probe:
            self._pacer.counted(estimated=ticket.tokens, counted=tokens)
        if outcome is Outcome.SUCCESS and not ticket.probe and not late:
            self._tell(now, self._limit.succeeded(now, ticket.number, items=ticket.items))
            self._pacer.accepted(now, items=ticket.items, tokens=ticket.tokens)
            seconds, target = now - ticket.sent_at, self._ceilings.latency_seconds
            self._load.answered(
                tokens=ticket.tokens, under_way=ticket.under_way, seconds=seconds, target_seconds=target
            )
            self._stuck.answered(ticket.number, self._tickets)
        elif outcome is Outcome.TOO_LARGE and not ticket.probe:
            self.too_large(now, items=ticket.items, certain=True)
        comes_back = retry_after_seconds is not None or self._unavailable.is_rate
        limited = outcome is Outcome.RATE_LIMITED or (outcome is Outcome.OVERLOADED and comes_back)
        if outcome is Outcome.OVERLOADED and not (limited or ticket.probe or self._unavailable.is_chance(now)):
            self._is_full(now, ticket, limited=False)
            if math.isfinite(self._limit.expected_latency):
                heapq.heappush(self._refused_places, now + self._limit.expected_latency)
        if outcome is Outcome.OVERLOADED:
            if not limited:
                self._pacer.turned_away(items=ticket.items)
            self._unavailable.heard(now, refused=True)
            self._limit.turned_away(now, ticket.number)
        elif not limited:
            self._limit.forget(ticket.number)
        if outcome in (Outcome.SUCCESS, Outcome.TEXTS, Outcome.TOO_LARGE):
            self._answered(now, ticket)
            return
        self._patience.failed(sent_at=ticket.sent_at, hungry=not ticket.probe and outcome is not Outcome.RATE_LIMITED)
        if limited or retry_after_seconds is not None:
            self._refused(now, ticket, retry_after_seconds, limited=limited)
        if outcome is Outcome.RATE_LIMITED:
            self._breaker.succeeded()  # a server that counts requests is up; the throttle holds it back
        elif ticket.probe and self._breaker.probe_at is not None:
            self._breaker.probe_failed(now, costly=outcome is not Outcome.FAILED)
            self._record(now, "still nothing answers")
        elif not late and not (outcome is Outcome.OVERLOADED and self._tickets):
            # A server that turns some away while it works on others is not down.
            self._failed(now, outcome)

    def _failed(self, now: float, outcome: Outcome) -> None:
        if not self._breaker.failed(now, timed_out=outcome is Outcome.TIMED_OUT):
            return
        if self._pacer.learnt_rate is None:
            is_rate = self._unavailable.went_down(now, refused=outcome is Outcome.OVERLOADED)
            if is_rate:
                self._tell(now, self._limit.was_never_full(now))
            elif is_rate is False:
                self._pacer.forget()
        self._record(now, "nothing answers: only probes from here on")

    def _answered(self, now: float, ticket: Ticket) -> None:
        if self._breaker.probe_at is not None:
            self._record(now, "it answers again")
        self._breaker.succeeded()
        if self._throttle.succeeded(sent_at=ticket.sent_at):
            self._record(now, "it takes requests again")
        self._patience.answered(now, text=not ticket.probe)
        self._unavailable.heard(now, refused=False, probe=ticket.probe)

    def _refused(self, now: float, ticket: Ticket, retry_after_seconds: float | None, *, limited: bool) -> None:
        first = self._throttle.is_first(ticket.sent_at)
        if limited:
            known = self._pacer.learnt_rate is not None or self._pacer.is_used_up(now, tokens=ticket.tokens)
            by_rate = (retry_after_seconds or 0.0) > TRIED_SECONDS or ticket.probe or known or self._unavailable.is_rate
            only_full = self._limit.is_surely_full and retry_after_seconds is None and not self._throttle.half_open
            full = first and not by_rate and self._is_full(now, ticket, limited=True) is True
            self._limit.turned_away(now, ticket.number)
            if full and only_full:
                # Known to be no rate: nothing else has to wait for it.
                heapq.heappush(self._refused_places, now + self._limit.expected_latency)
                return
            at, sent, sure = ticket.sent_at, ticket.sent, self._unavailable.is_sure
            items, tokens = ticket.items, ticket.tokens
            learnt = self._pacer.refused(
                now, sent_at=at, sent=sent, items=items, tokens=tokens, first=first, full=full, sure=sure
            )
            if learnt and self._unavailable.learnt(now, self._pacer.learnt_rate):
                self._pacer.forget()
                self._tell(now, self._limit.was_never_full(now))
        self._throttle.refused(now, sent_at=ticket.sent_at, retry_after_seconds=retry_after_seconds)
        if first:
            self._limit.interrupted(now)
            pause = self._throttle.closed_until - now
            self._record(now, f"refused, nothing for {pause:.2f} s")

    def _is_full(self, now: float, ticket: Ticket, *, limited: bool) -> bool | None:
        """Whether a request was refused because too much is inside; None if that cannot be said yet."""
        full, judgement = self._limit.refused(now, ticket.number, limited=limited)
        if judgement is not None and not limited:
            self._crowded, self._crowded_until = True, now + REMEMBERED_SECONDS
        self._tell(now, judgement)
        if full is False and not limited:
            self._unavailable.unexplained(self._limit.items_per_second)
        return full

    def abandoned(self, ticket: Ticket) -> None:
        """A request was cancelled on our side: its place is free, and nothing is learnt. Of one that has ended, nothing."""
        if ticket.number in self._tickets:
            self._leave(ticket)
            self._limit.forget(ticket.number)

    def late(self, now: float) -> tuple[list[Ticket], float]:
        """Requests that are found to be stuck, each told once, and when to look again.

        Younger requests have overtaken them by two flights, and they take far longer than the others: what holds them up
        is their own. They no longer count as in flight; their texts had better be sent again.
        """
        concurrency, latency = self._limit.point.concurrency, self._limit.expected_latency
        numbers, again_at = self._stuck.find(now, self._tickets, concurrency=concurrency, latency=latency)
        found = [self._tickets[number] for number in numbers]
        for ticket in found:
            self._limit.forget(ticket.number)
            self._items_in_flight -= ticket.items
            self._tokens_in_flight -= ticket.tokens
        return found, again_at

    def _leave(self, ticket: Ticket) -> None:
        del self._tickets[ticket.number]
        if ticket.number not in self._stuck:
            self._items_in_flight -= ticket.items
            self._tokens_in_flight -= ticket.tokens
        self._stuck.ended(ticket.number)
        if ticket.probe:
            self._probing = False

    def too_large(self, now: float, *, items: int, certain: bool = False) -> None:
        """A request of so many texts was refused, and not for any of them. `certain`: the server said so."""
        self._tell(now, self._limit.too_large(now, items=items, certain=certain))

    def told_of_others(self, *, present: bool) -> None:
        """Whether clients that follow the same law share this endpoint, by their own word: then all come to equal shares."""
        self._limit.told_of_others(present=present)

    def woken(self, now: float) -> None:
        """Work came after a rest: the time nobody tried does not count as the endpoint's failure."""
        self._patience.woken(now)

    @property
    def given_up_at(self) -> float:
        """When its patience ends; minus infinite if it announced a longer pause, infinite while it answers."""
        if self.announces_long_wait:
            return -math.inf
        return self._patience.ends_at(self._throttle.announced_until)

    @property
    def announces_long_wait(self) -> bool:
        """Whether the server's own account of its limits gives nothing for longer than its patience."""
        return self._pacer.announced_empty_until > self._patience.well_at + self._patience.seconds

    @property
    def mode(self) -> Mode:
        """What holds it back, in one word."""
        if self._breaker.probe_at is not None:
            return "down"
        if self._throttle.half_open:
            return "throttled"
        return "paced" if self._pacer.rate is not None else self._limit.phase

    @property
    def concurrency(self) -> int:
        """The most requests in flight, at this moment.

        A pace of requests is kept, by Little's law, with its rate times the latency target; twice that is no limit. Not
        where the server turned requests away for their number within the last minute.
        """
        most, rate = self._limit.point.concurrency, self._pacer.requests_per_second
        if rate is None or self._crowded:
            return most
        return min(self._ceilings.concurrency, max(most, math.ceil(2.0 * rate * self._ceilings.latency_seconds)))

    @property
    def batch_items(self) -> int:
        """The most texts in one request, at this moment."""
        load, most = self._counted_load, min(self._limit.most_items, self._pacer.most_items)
        items = self._limit.batch_items if load is None else load / max(1.0, self._limit.item_tokens)
        return max(1, int(min(items, most)))

    @property
    def rate(self) -> float | None:
        """The most texts a second, at this moment; None while unpaced."""
        return self._pacer.rate

    def _tell(self, now: float, judgement: Judgement | None) -> None:
        if judgement is not None:
            self._record(now, judgement.reason, judgement)

    def _record(self, now: float, reason: str, judgement: Judgement | None = None) -> None:
        if self._trace is None:
            return
        record = TraceRecord(
            at=now,
            mode=self.mode,
            reason=reason,
            concurrency=self.concurrency,
            batch_items=self.batch_items,
            rate=self.rate,
        )
        if judgement is not None:
            record = replace(record, target_seconds=judgement.target_seconds, gain=judgement.gain)
            if judgement.measured is not None:
                seen = judgement.measured
                record = replace(record, throughput=seen.throughput, latency_seconds=seen.latency)
        self._trace(record)
