"""Runs controllers against a simulated server on virtual time: no asyncio, no bytes, a minute in well under a second.

The client here is the smallest honest one: it asks its controller, sends batches, puts failed ones back after a jittered
delay, halves what is too large and sends again what is stuck. What it measures is what a user would: texts delivered, the
latency of requests, what was refused and what was lost. Nothing here knows a law; `baselines` and `era_dagster.control` do.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from random import Random
from typing import Any, Protocol

from era_dagster.control.admission import Decision, WaitUntil
from era_dagster.control.batch import BatchSize, fitting
from era_dagster.control.outcome import Outcome
from era_dagster.control.retry import RetryPolicy
from era_dagster.simulation.physics import Finished, ServerPhysics
from era_dagster.simulation.spec import Course

TIMEOUT_SECONDS = 60.0
BACKLOG = 1000
"""Texts an endless client keeps waiting."""
PROBE_TOKENS = 20
FAILURES_TO_SPLIT = 3
"""As in the embedder: from then on a batch keeps its company."""
REFUSALS_TO_SPLIT = 3
"""A batch refused (429) so often although nothing else was in flight may be larger than the whole allowance."""
WATCH_SECONDS = 0.25


class Controller(Protocol):
    """What the engine asks and tells; `EndpointController` and every baseline have it."""

    @property
    def in_flight(self) -> int: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def batch_items(self) -> int: ...
    def admit(self, now: float, pending: int) -> Decision | WaitUntil: ...
    def started(self, now: float, *, items: int, tokens: int, probe: bool = False) -> Any: ...
    def completed(self, now: float, ticket: Any, outcome: Outcome, **details: Any) -> None: ...
    def late(self, now: float) -> tuple[Sequence[Any], float]: ...
    def told_of_others(self, *, present: bool) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The texts of a client: `count` of them (None: without end), `mean_tokens` with a log-normal spread `cv`, cut to
    `shortest` and `longest`; at most `per_second` of them come into the queue."""

    mean_tokens: float = 100.0
    cv: float = 0.0
    count: int | None = None
    per_second: float | None = None
    shortest: int = 1
    longest: int = 8000

    def sizes(self, random: Random) -> Iterator[int]:
        """The tokens of one text after the other."""
        numbers = count() if self.count is None else range(self.count)
        if not self.cv:
            size = max(self.shortest, min(self.longest, round(self.mean_tokens)))
            return (size for _ in numbers)
        sigma = math.sqrt(math.log1p(self.cv**2))
        factors = (random.lognormvariate(-sigma * sigma / 2, sigma) for _ in numbers)
        return (max(self.shortest, min(self.longest, round(self.mean_tokens * factor))) for factor in factors)


@dataclass(kw_only=True)
class Result:
    """What came of one client between the later of `warm_up` and its start, and the end.

    `by_second` holds the texts delivered in each second of the run, from its very start. `taken`: texts that left the
    queue for a first request; each is delivered, lost, waiting again or in flight (`unsettled`) at the end.
    """

    seconds: float
    texts: int = 0
    tokens: int = 0
    latencies: list[float] = field(default_factory=list[float])
    requests: int = 0
    refusals: int = 0
    failures: int = 0
    timeouts: int = 0
    sent_again: int = 0
    lost: int = 0
    taken: int = 0
    unsettled: int = 0
    ended_at: float = math.inf
    max_in_flight: int = 0
    by_second: list[int] = field(default_factory=list[int])

    @property
    def goodput(self) -> float:
        """Texts delivered per second."""
        return self.texts / self.seconds if self.seconds > 0 else 0.0

    def percentile(self, share: float) -> float:
        """The latency in seconds that `share` of the successful requests did not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.inf

    def delivered(self, start: int, end: int) -> int:
        """Texts delivered between two whole seconds of the run."""
        return sum(self.by_second[start:end])


@dataclass(slots=True)
class _Batch:
    """Texts that travel together: their tokens, and the numbers by which each is known."""

    tokens: list[int]
    texts: Sequence[int]
    failures: int = 0
    refusals: int = 0
    suspect: bool = False

    def part(self, start: int, end: int) -> "_Batch":
        return replace(self, tokens=self.tokens[start:end], texts=self.texts[start:end])


@dataclass(slots=True)
class _Flight:
    ticket: Any
    batch: _Batch
    sent_at: float
    alone: bool
    repeated: bool = False


class _Wire:
    """The server, whose requests are on the way to it, and until when each client waits."""

    def __init__(self, server: ServerPhysics) -> None:
        self.server = server
        self.owners: dict[int, _Client] = {}
        self._deadlines: deque[tuple[float, int]] = deque()
        self._number = 0

    def send(self, client: "_Client", now: float, tokens: Sequence[int]) -> int:
        self._number += 1
        self.owners[self._number] = client
        self._deadlines.append((now + TIMEOUT_SECONDS, self._number))
        self.server.arrive(now, self._number, tokens)
        return self._number

    @property
    def next_event_at(self) -> float:
        deadlines, owners = self._deadlines, self.owners
        while deadlines and deadlines[0][1] not in owners:
            deadlines.popleft()
        return min(self.server.next_event_at, deadlines[0][0]) if deadlines else self.server.next_event_at

    def ended(self, now: float) -> Iterator[tuple["_Client", Finished]]:
        while self._deadlines and self._deadlines[0][0] <= now:
            number = self._deadlines.popleft()[1]
            if number in self.owners:
                yield self.owners.pop(number), Finished(request=number, status=-1)
        for finished in self.server.advance(now):
            client = self.owners.pop(finished.request, None)
            if client is not None:
                yield client, finished


class _Client:
    def __init__(
        self, controller: Controller, texts: Texts, random: Random, result: Result, starts_at: float, warm_up: float
    ) -> None:
        self.controller = controller
        self.result = result
        self.starts_at = starts_at
        self.wake_at = starts_at
        self._warm_up = warm_up
        self._texts = texts
        self._random = random
        self._source = texts.sizes(random)
        self._fresh: deque[int] = deque()
        self._again: list[tuple[float, int, _Batch]] = []
        self._order = 0
        self._again_texts = 0
        self._flights: dict[int, _Flight] = {}
        self._settled: set[int] = set()
        self._policy = RetryPolicy(attempts=1000, budget_seconds=math.inf)
        self._arrived = 0
        self._exhausted = False

    @property
    def finished(self) -> bool:
        result = self.result
        return self._exhausted and not self._fresh and len(self._settled) + result.lost == result.taken

    @property
    def unsettled(self) -> int:
        """Texts that are in flight or wait to be sent again, each once."""
        held = {text for flight in self._flights.values() for text in flight.batch.texts}
        held.update(text for _, _, batch in self._again for text in batch.texts)
        return len(held - self._settled)

    def send(self, now: float, wire: _Wire) -> None:
        """Send whatever the controller allows; `wake_at` is when to ask again if nothing ends before."""
        if now < self.starts_at:
            return
        self._refill(now)
        late, late_at = self.controller.late(now)
        for ticket in late:
            self._repeat(now, ticket)
        while True:
            pending = len(self._fresh) + self._again_texts
            if not pending:
                rate = self._texts.per_second
                self.wake_at = math.inf if rate is None or self._exhausted else now + 1.0 / rate
                break
            decision = self.controller.admit(now, pending)
            if isinstance(decision, WaitUntil):
                if decision.at <= now:
                    raise AssertionError(f"a controller waits at {now} for {decision.at}, which is past")
                self.wake_at = decision.at
                break
            if decision.probe:
                batch = _Batch([], [])
                ticket = self.controller.started(now, items=1, tokens=PROBE_TOKENS, probe=True)
            else:
                taken = self._take(now, BatchSize(items=decision.batch_items, tokens=decision.batch_tokens))
                if taken is None:
                    self.wake_at = math.inf
                    break
                batch = taken
                ticket = self.controller.started(now, items=len(batch.tokens), tokens=sum(batch.tokens))
            number = wire.send(self, now, batch.tokens or [PROBE_TOKENS])
            self._flights[number] = _Flight(ticket, batch, now, alone=not self._flights)
            self.result.requests += 1
            self.result.max_in_flight = max(self.result.max_in_flight, len(self._flights))
        again_at = self._again[0][0] if self._again else math.inf
        self.wake_at = min(self.wake_at, late_at, again_at if again_at > now else math.inf)

    def _refill(self, now: float) -> None:
        if self._exhausted:
            return
        if self._texts.per_second is None:
            wanted = BACKLOG - len(self._fresh) - self._again_texts
        else:
            wanted = int((now - self.starts_at) * self._texts.per_second + 1e-6) - self._arrived
        if wanted > 0:
            before = len(self._fresh)
            self._fresh.extend(islice(self._source, wanted))
            got = len(self._fresh) - before
            self._arrived += got
            self._exhausted = got < wanted

    def _take(self, now: float, size: BatchSize) -> _Batch | None:
        while self._again and self._again[0][0] <= now:
            _, _, batch = heapq.heappop(self._again)
            self._again_texts -= len(batch.tokens)
            if not self._settled.isdisjoint(batch.texts):  # the answer came after all
                left = [(t, n) for t, n in zip(batch.tokens, batch.texts, strict=True) if n not in self._settled]
                batch = _Batch([t for t, _ in left], [n for _, n in left], batch.failures, batch.refusals)
            fits = fitting(batch.tokens, size)
            if fits < len(batch.tokens):
                self._put_back(batch.part(fits, len(batch.tokens)), now)
            if fits:
                return self._filled_up(batch.part(0, fits), now, size)
        fits = fitting(islice(self._fresh, size.items), size)
        if not fits:
            return None
        first = self.result.taken
        self.result.taken += fits
        return _Batch([self._fresh.popleft() for _ in range(fits)], range(first, first + fits))

    def _filled_up(self, batch: _Batch, now: float, size: BatchSize) -> _Batch:
        """As the embedder does: what was only refused travels with others like it."""
        while self._again and self._again[0][0] <= now and not batch.suspect:
            other = self._again[0][2]
            tokens = [*batch.tokens, *other.tokens]
            alike = not other.suspect and other.failures == batch.failures and self._settled.isdisjoint(other.texts)
            if not alike or fitting(tokens, size) < len(tokens):
                break
            heapq.heappop(self._again)
            self._again_texts -= len(other.tokens)
            batch = replace(batch, tokens=tokens, texts=[*batch.texts, *other.texts])
        return batch

    def _put_back(self, batch: _Batch, at: float) -> None:
        self._order += 1
        self._again_texts += len(batch.tokens)
        heapq.heappush(self._again, (at, self._order, batch))

    def _repeat(self, now: float, ticket: Any) -> None:
        """Send the texts of a stuck request again; whichever answer comes first counts."""
        flight = next(each for each in self._flights.values() if each.ticket is ticket)
        if flight.batch.tokens and not flight.repeated:
            flight.repeated = True
            self.result.sent_again += len(flight.batch.tokens)
            self._put_back(flight.batch.part(0, len(flight.batch.tokens)), now)

    def ended(self, finished: Finished, now: float) -> None:
        """A request ended: tell the controller, count or put back its texts."""
        flight = self._flights.pop(finished.request)
        batch, result = flight.batch, self.result
        outcome = _OUTCOMES.get(finished.status, Outcome.FAILED)
        self.controller.completed(
            now, flight.ticket, outcome, retry_after_seconds=_retry_after(finished.headers), headers=finished.headers
        )
        if not batch.tokens:
            return
        if outcome is Outcome.SUCCESS:
            self._delivered(flight, now)
            return
        result.refusals += finished.status in (429, 503)
        result.timeouts += finished.status == -1
        result.failures += finished.status in (0, 500)
        if flight.repeated:
            return
        count = len(batch.tokens)
        batch.suspect |= outcome not in (Outcome.RATE_LIMITED, Outcome.OVERLOADED)
        if outcome in (Outcome.TEXTS, Outcome.TOO_LARGE):
            if count == 1:
                result.lost += 1
            else:
                self._put_back(batch.part(0, count // 2), now)
                self._put_back(batch.part(count // 2, count), now)
            return
        if outcome is Outcome.RATE_LIMITED:
            batch.refusals += flight.alone
            if batch.refusals >= REFUSALS_TO_SPLIT and count > 1:
                batch.refusals = 0
                self._put_back(batch.part(0, count // 2), now)
                self._put_back(batch.part(count // 2, count), now)
            else:
                self._put_back(batch, now)
            return
        batch.failures += 1
        batch.suspect |= batch.failures >= FAILURES_TO_SPLIT
        self._put_back(batch, now + self._policy.delay_seconds(batch.failures, self._random.random()))

    def _delivered(self, flight: _Flight, now: float) -> None:
        before = len(self._settled)
        self._settled.update(flight.batch.texts)
        new = len(self._settled) - before
        result = self.result
        if new:
            result.ended_at = now
        while len(result.by_second) <= now:
            result.by_second.append(0)
        result.by_second[int(now)] += new
        if now >= self._warm_up:
            result.texts += new
            result.tokens += sum(flight.batch.tokens) if new else 0
            if new:
                result.latencies.append(now - flight.sent_at)


def run(
    controllers: Sequence[Controller],
    course: Course,
    texts: Texts,
    *,
    seconds: float = 60.0,
    warm_up: float = 0.0,
    seed: int = 0,
    starts: Sequence[float] = (),
    told: bool = False,
    watch: Callable[[float, Sequence[Controller]], None] | None = None,
) -> list[Result]:
    """One result for each controller; all share the server. It ends with the texts, if that is sooner than `seconds`.

    `starts`: when each client begins, all at 0 if empty. `told`: they know of each other from when the second is there.
    `watch` hears the time and the controllers every quarter second.
    """
    wire = _Wire(ServerPhysics(course, random=Random(seed)))
    clients: list[_Client] = []
    for number, controller in enumerate(controllers):
        starts_at = starts[number] if starts else 0.0
        result = Result(seconds=seconds - max(warm_up, starts_at))
        random = Random(1000 * seed + number + 1)
        clients.append(_Client(controller, texts, random, result, starts_at, warm_up))
    now = watch_at = 0.0
    endless = texts.count is None
    while True:
        if told:
            present = sum(client.starts_at <= now for client in clients) > 1
            for client in clients:
                client.controller.told_of_others(present=present)
        for client in clients:
            client.send(now, wire)
        if watch is not None and now >= watch_at:
            watch(now, controllers)
            watch_at = now + WATCH_SECONDS
        next_at = wire.next_event_at
        for client in clients:
            if client.wake_at < next_at:
                next_at = client.wake_at
        if next_at > now:
            now = next_at
        if now >= seconds:
            break
        for client, finished in wire.ended(now):
            client.ended(finished, now)
        if not endless and all(client.finished for client in clients):
            break
    for client in clients:
        client.result.unsettled = client.unsettled
        if texts.count is not None and client.finished:
            client.result.seconds = client.result.ended_at - max(warm_up, client.starts_at)
    return [client.result for client in clients]


_OUTCOMES: Mapping[int, Outcome] = {
    200: Outcome.SUCCESS,
    400: Outcome.TEXTS,
    413: Outcome.TOO_LARGE,
    429: Outcome.RATE_LIMITED,
    503: Outcome.OVERLOADED,
    -1: Outcome.TIMED_OUT,
}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    if "retry-after-ms" in headers:
        return float(headers["retry-after-ms"]) / 1000.0
    wait = headers.get("Retry-After", "").removeprefix("date:")
    return float(wait) if wait else None
