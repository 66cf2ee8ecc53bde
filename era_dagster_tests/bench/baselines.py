"""The laws of the field, written from their descriptions, as controllers that the engine can ask.

Each decides only how many requests are in flight (AWS: how many are sent a second); all use batches of eight texts, since
none of them has a word to say about batches. All share the usual manners: a pause for Retry-After, an exponential pause
after a 429 without one. None may hold more than 256 requests, the ceiling of our own controller.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from era_dagster.control.admission import Decision, WaitUntil
from era_dagster.control.outcome import Outcome

BATCH_ITEMS = 8
MOST_REQUESTS = 256
NO_TOKEN_LIMIT = 1 << 40
REFUSALS = frozenset({Outcome.RATE_LIMITED, Outcome.OVERLOADED, Outcome.TIMED_OUT})
ERRORS = REFUSALS | {Outcome.FAILED}


class Law(Protocol):
    """Numbers in, limit out: `rtt` seconds of a request, `in_flight` when it was sent."""

    limit: float

    def ended(self, now: float, outcome: Outcome, rtt: float, in_flight: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Sent:
    """A request under way."""

    at: float
    in_flight: int


class Baseline:
    """A law with the usual manners. `pace`: requests, texts or tokens a second that somebody knew beforehand."""

    def __init__(
        self,
        law: Law,
        *,
        batch: int = BATCH_ITEMS,
        pace: tuple[str, float] | None = None,
        most_requests: int = MOST_REQUESTS,
    ) -> None:
        self._law = law
        self._most_requests = most_requests
        self._pace = pace
        self._next_at = 0.0
        self._closed_until = -math.inf
        self._refusals = 0
        self.in_flight = 0
        self.batch_items = batch

    @property
    def concurrency(self) -> int:
        return max(1, min(self._most_requests, int(self._law.limit)))

    def admit(self, now: float, pending: int) -> Decision | WaitUntil:
        opens_at = max(self._closed_until, self._next_at)
        if now < opens_at:
            return WaitUntil(opens_at)
        if self.in_flight >= self.concurrency:
            return WaitUntil(math.inf)
        return Decision(batch_items=self.batch_items, batch_tokens=NO_TOKEN_LIMIT)

    def started(self, now: float, *, items: int, tokens: int, probe: bool = False) -> Sent:
        self.in_flight += 1
        if self._pace is not None:
            kind, rate = self._pace
            units = {"requests": 1, "texts": items, "tokens": tokens}[kind]
            self._next_at = max(now, self._next_at) + units / rate
        return Sent(now, self.in_flight)

    def completed(
        self,
        now: float,
        ticket: Sent,
        outcome: Outcome,
        *,
        retry_after_seconds: float | None = None,
        **_: Any,
    ) -> None:
        self.in_flight -= 1
        self._law.ended(now, outcome, now - ticket.at, ticket.in_flight)
        if outcome is Outcome.SUCCESS:
            self._refusals = 0
        elif retry_after_seconds is not None:
            self._closed_until = max(self._closed_until, now + retry_after_seconds)
        elif outcome is Outcome.RATE_LIMITED and ticket.at >= self._closed_until:
            self._closed_until = now + min(16.0, 0.5 * 2.0**self._refusals)
            self._refusals += 1

    def late(self, now: float) -> tuple[list[Sent], float]:
        return [], math.inf

    def told_of_others(self, *, present: bool) -> None:
        """None of these laws makes use of it."""


class Fixed:
    """What a setting says."""

    def __init__(self, limit: int) -> None:
        self.limit = float(limit)

    def ended(self, now: float, outcome: Outcome, rtt: float, in_flight: int) -> None:
        pass


class Aimd:
    """Netflix AIMD: a tenth less for a refusal or more than five seconds, one more while at least half is used."""

    def __init__(self) -> None:
        self.limit = 20.0

    def ended(self, now: float, outcome: Outcome, rtt: float, in_flight: int) -> None:
        if outcome in REFUSALS or rtt > 5.0:
            self.limit *= 0.9
        elif outcome is Outcome.SUCCESS and 2 * in_flight >= self.limit:
            self.limit += 1.0
        self.limit = max(1.0, min(MOST_REQUESTS, self.limit))


class Vegas:
    """Netflix Vegas: the queue it causes, limit x (1 - best / current latency), is held between 3 and 6 log10(limit).

    The best latency is taken anew every 30 x limit samples.
    """

    def __init__(self) -> None:
        self.limit = 20.0
        self._best = math.inf
        self._until_fresh = 30.0 * self.limit

    def ended(self, now: float, outcome: Outcome, rtt: float, in_flight: int) -> None:
        if outcome is not Outcome.SUCCESS and outcome not in REFUSALS:
            return
        unit = max(1.0, math.log10(self.limit))
        if outcome in REFUSALS:
            self.limit -= unit
        else:
            self._until_fresh -= 1.0
            if self._until_fresh <= 0.0:
                self._until_fresh, self._best = 30.0 * self.limit, rtt
                return
            if rtt < self._best:
                self._best = rtt
                return
            if 2 * in_flight < self.limit:
                return
            queue = math.ceil(self.limit * (1.0 - self._best / rtt))
            if queue <= unit:
                self.limit += 6.0 * unit
            elif queue < 3.0 * unit:
                self.limit += unit
            elif queue > 6.0 * unit:
                self.limit -= unit
        self.limit = max(1.0, min(MOST_REQUESTS, self.limit))


class Gradient2:
    """Netflix Gradient2: the limit follows 1.5 x long-term / current latency, between a half and one, plus a queue of 4."""

    def __init__(self) -> None:
        self.limit = 20.0
        self._long = 0.0
        self._samples = 0

    def ended(self, now: float, outcome: Outcome, rtt: float, in_flight: int) -> None:
        if outcome is not Outcome.SUCCESS:
            return
        self._samples += 1
        weight = 1.0 / self._samples if self._samples <= 10 else 2.0 / 601.0
        self._long += weight * (rtt - self._long)
        if self._long > 2.0 * rtt:
            self._long *= 0.95
        if 2 * in_flight < self.limit:
            return
        gradient = max(0.5, min(1.0, 1.5 * self._long / rtt))
        self.limit += 0.2 * (self.limit * gradient + 4.0 - self.limit)
        self.limit = max(1.0, min(MOST_REQUESTS, self.limit))


class Arc:
    """Vector's adaptive concurrency: from 1, once per round trip, one more if it was reached and not slower than before;
    a tenth less after any error, or 2.5 deviations slower. Past latencies weigh by an EWMA of .4."""

    def __init__(self) -> None:
        self.limit = 1.0
        self._mean: float | None = None
        self._variance = 0.0
        self._round: list[float] = []
        self._reached = self._pressed = False
        self._decides_at = 0.0

    def ended(self, now: float, outcome: Outcome, rtt: float, in_flight: int) -> None:
        self._reached = self._reached or in_flight >= int(self.limit)
        self._pressed = self._pressed or outcome in ERRORS
        if outcome is Outcome.SUCCESS:
            self._round.append(rtt)
        if now < self._decides_at or not (self._round or self._pressed):
            return
        current = sum(self._round) / len(self._round) if self._round else None
        if self._mean is not None:
            past, slower = self._mean, 2.5 * math.sqrt(self._variance)
            if self._pressed or (current is not None and current >= past + slower and current > past):
                self.limit = max(1.0, math.floor(0.9 * self.limit))
            elif self._reached and current is not None and current <= past:
                self.limit = min(MOST_REQUESTS, self.limit + 1.0)
        if current is not None:
            self._learn(current)
        self._decides_at = now + (self._mean or 0.0)
        self._round = []
        self._reached = self._pressed = False

    def _learn(self, current: float) -> None:
        if self._mean is None:
            self._mean = current
            return
        difference = current - self._mean
        self._mean += 0.4 * difference
        self._variance = 0.6 * (self._variance + 0.4 * difference * difference)


class AwsBucket(Baseline):
    """The AWS SDK's adaptive retry mode: 16 requests in flight, and from the first throttling on a send rate that is cut
    to .7 by each, and regrows as .4 (t - K)^3 + its last maximum, at most twice what was sent lately."""

    def __init__(self, *, most_requests: int = MOST_REQUESTS) -> None:
        super().__init__(Fixed(16), most_requests=most_requests)
        self._sent_at: list[float] = []
        self._rate = math.inf
        self._most = 0.0
        self._cut_at = 0.0

    def started(self, now: float, *, items: int, tokens: int, probe: bool = False) -> Sent:
        self._sent_at.append(now)
        if self._rate < math.inf:
            self._next_at = max(now - 1.0 / self._rate, self._next_at) + 1.0 / self._rate
        return super().started(now, items=items, tokens=tokens, probe=probe)

    def completed(self, now: float, ticket: Sent, outcome: Outcome, **details: Any) -> None:
        super().completed(now, ticket, outcome, **details)
        throttled = outcome in (Outcome.RATE_LIMITED, Outcome.OVERLOADED)
        if not throttled and self._rate == math.inf:
            return
        self._sent_at = [at for at in self._sent_at if at > now - 1.0]
        lately = max(0.5, float(len(self._sent_at)))
        if throttled:
            self._most = min(self._rate, lately)
            self._cut_at = now
            self._rate = 0.7 * self._most
        elif outcome is Outcome.SUCCESS:
            k = (self._most * 0.3 / 0.4) ** (1.0 / 3.0)
            self._rate = min(0.4 * (now - self._cut_at - k) ** 3 + self._most, 2.0 * lately)
        self._rate = max(0.5, self._rate)


LAWS: dict[str, Callable[[], Law]] = {
    "fixed 8x8": lambda: Fixed(8),
    "fixed 16x8": lambda: Fixed(16),
    "aimd": Aimd,
    "vegas": Vegas,
    "gradient2": Gradient2,
    "arc": Arc,
}
BASELINES = (*LAWS, "aws")


def baseline(name: str, *, most_requests: int = MOST_REQUESTS) -> Baseline:
    """A fresh controller of one of `BASELINES`; a ceiling that somebody decided holds for it too."""
    if name == "aws":
        return AwsBucket(most_requests=most_requests)
    return Baseline(LAWS[name](), most_requests=most_requests)
