"""When the next request may be sent: the pause after a refusal, and the pace a server allows.

`Throttle` is the pause a 429 asks for. `Pacer` finds the rate: told by a setting, read from `x-ratelimit-*` headers, or
learnt. A bucket that refuses is empty; between two refusals it gave out exactly what came in, so that what was accepted
from one refusal to the next, over that time, is the rate, however large the bucket. Pure: the caller passes its clock.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Counted = Literal["items", "requests"]

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 16.0
MARGIN = 0.97
"""Share of a learnt rate that is used at first: both its error and the server's clock are of a few percent."""
SHORTEST_WINDOW_SECONDS = 1.0
SLOWEST_PER_SECOND = 0.5
"""A pace is not learnt below this: there the pauses after refusals do the work, and pace and pauses would cut each other."""
GROWTH_PER_SECOND = 0.01
"""A pace that meets no refusal grows by this; the growth doubles every `DOUBLING_SECONDS` without one."""
DOUBLING_SECONDS = 5.0
REMEMBERED = 3
"""A bucket that overflows during a pause shows too little, never too much: the largest of so many rates counts."""
CLEARLY = 1.2
SAME = 0.05
"""A rate found again within this is confirmed, and asked for less often."""
DOUBT_PER_SECOND = 0.1
"""A rate measured over few requests is off by one of them: the pace grows by this share of that error instead."""


class Throttle:
    """The pause after a refusal, and one request at a time after it until one succeeds.

    The pause is what the server says (Retry-After), else 0.5 s doubled up to 16 s for each refusal in a row. Requests
    that were already under way when the pause began don't lengthen it. `announced_until` is the server's word alone.
    """

    def __init__(self) -> None:
        self.closed_until = -math.inf
        self.announced_until = -math.inf
        self.half_open = False
        self._refusals = 0

    def refused(self, now: float, *, sent_at: float, retry_after_seconds: float | None) -> bool:
        """A request sent at `sent_at` was refused at `now`. Whether it is the first refusal of its flight."""
        known = self.half_open and sent_at < self.closed_until
        if not known:
            self._refusals += 1
        if retry_after_seconds is not None:
            self.announced_until = now + retry_after_seconds
            self.closed_until = max(self.closed_until, self.announced_until)
        elif not known:
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self._refusals - 1, 10))
            self.closed_until = max(self.closed_until, now + pause)
        self.half_open = True
        return not known

    def succeeded(self, *, sent_at: float) -> None:
        """A request was answered; one that was sent before the refusal proves nothing."""
        if sent_at >= self.closed_until:
            self.half_open = False
            self._refusals = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a server says of one of its limits: `limit` in all, `remaining` of it, full again after `reset_seconds`."""

    limit: float
    remaining: float
    reset_seconds: float


def announced_allowances(headers: Mapping[str, str]) -> dict[str, Allowance]:
    """The `x-ratelimit-*` headers by what they count, `requests` or `tokens`; those that cannot be read are left out.

    Resets are seconds ("12", "0.5"), or durations as in "6m0s", "1.5s", "20ms".
    """
    found: dict[str, Allowance] = {}
    for kind in ("requests", "tokens"):
        limit, remaining = (_number(headers.get(f"x-ratelimit-{part}-{kind}", "")) for part in ("limit", "remaining"))
        reset = _duration(headers.get(f"x-ratelimit-reset-{kind}", ""))
        if limit is not None and remaining is not None and reset is not None and limit > 0:
            found[kind] = Allowance(limit=limit, remaining=min(remaining, limit), reset_seconds=reset)
    return found


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _duration(text: str) -> float | None:
    total, digits = 0.0, ""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    rest = text.strip().lower()
    if _number(rest) is not None:
        return _number(rest)
    while rest:
        size = len(rest) - len(rest.lstrip("0123456789."))
        digits, rest = rest[:size], rest[size:]
        unit = "ms" if rest.startswith("ms") else rest[:1]
        number = _number(digits)
        if number is None or unit not in units:
            return None
        total += number * units[unit]
        rest = rest[len(unit) :]
    return total if text.strip() else None


class Bucket:
    """Lets through `rate` units a second on average and `size` at once; goes into debt rather than split a request."""

    def __init__(self, now: float, *, rate: float, size: float, level: float = 0.0) -> None:
        self.rate = rate
        self.size = size
        self._level = level
        self._at = now

    def level(self, now: float) -> float:
        """What may be sent at `now`; negative: a debt."""
        self._level = min(self.size, self._level + (now - self._at) * self.rate)
        self._at = now
        return self._level

    def take(self, now: float, units: float) -> None:
        """Send `units`."""
        self._level = self.level(now) - units

    def ready_at(self, now: float, units: float) -> float:
        """When `units` may be sent; more than its whole size counts as its size."""
        missing = min(units, self.size) - self.level(now)
        return now if missing <= 1e-9 else now + missing / self.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What went out until a request was sent, itself included."""

    requests: int
    items: int
    tokens: float


class Pacer:
    """The pace of one endpoint. `items_per_second` is somebody's decision and is never exceeded; None leaves it open."""

    def __init__(self, items_per_second: float | None) -> None:
        self._decided = None if items_per_second is None else Bucket(0.0, rate=items_per_second, size=1.0, level=1.0)
        self._learnt: Bucket | None = None
        self._counts: Counted = "requests"
        self._announced: dict[str, Bucket] = {}
        self._sent = Sent(requests=0, items=0, tokens=0.0)
        self._last = Sent(requests=1, items=1, tokens=1.0)
        self._token_scale = 1.0
        self._window: tuple[float, Sent] | None = None
        self._refused = Sent(requests=0, items=0, tokens=0.0)
        self._barren = 0
        self._most_items: float = math.inf
        self._rates: list[tuple[float, float]] = []
        self._found = math.inf
        self._confirmed = 0
        self._doubt = 0.0
        self._cut_at = -math.inf
        self._grown_at = -math.inf
        self._held_back = False
        self.by_requests = False
        """Whether what holds the next request back counts requests, whatever is in them."""

    @property
    def rate(self) -> float | None:
        """The most texts a second at this moment; None while unpaced."""
        rates = [] if self._decided is None else [self._decided.rate]
        if self._learnt is not None:
            rates.append(self._learnt.rate * (self._last.items if self._counts == "requests" else 1))
        if "requests" in self._announced:
            rates.append(self._announced["requests"].rate * self._last.items)
        if "tokens" in self._announced:
            rates.append(self._announced["tokens"].rate * self._last.items / max(self._last.tokens, 1.0))
        return min(rates) if rates else None

    @property
    def most_items(self) -> float:
        """The largest request: a server that counts texts by the second would refuse a larger one for ever."""
        most = self._most_items
        if self._decided is not None:
            most = min(most, max(1.0, math.floor(self._decided.rate)))
        if self._learnt is not None and self._counts == "items":
            most = min(most, max(1.0, math.floor(self._learnt.rate / 4.0)))
        return most

    def ready_at(self, now: float) -> float:
        """When the next request, if it is like the last, may go; at or before `now`: at once."""
        times: list[tuple[float, bool]] = [(now, False)]
        if self._decided is not None:
            times.append((self._decided.ready_at(now, 1.0), False))
        if self._learnt is not None:
            self._grow(now, self._learnt)
            by_requests = self._counts == "requests"
            units = 1.0 if by_requests else float(self._last.items)
            times.append((self._learnt.ready_at(now, units), by_requests))
        for kind, bucket in self._announced.items():
            by_requests = kind == "requests"
            times.append((bucket.ready_at(now, 1.0 if by_requests else self._last.tokens), by_requests))
        ready, self.by_requests = max(times)
        self._held_back = self._held_back or ready > now
        return ready

    def sent(self, now: float, *, items: int, tokens: float) -> Sent:
        """Charge a request; returns what `announced` and `refused` want back."""
        self._last = Sent(requests=1, items=items, tokens=tokens * self._token_scale)
        if self._decided is not None:
            self._decided.take(now, items)
        if self._learnt is not None:
            self._learnt.take(now, 1.0 if self._counts == "requests" else items)
        for kind, units in (("requests", 1.0), ("tokens", self._last.tokens)):
            if kind in self._announced:
                self._announced[kind].take(now, units)
        self._sent = _sum(self._sent, self._last)
        return self._sent

    def counted(self, *, estimated: float, counted: float) -> None:
        """The server's own count of a request's tokens."""
        self._token_scale += 0.1 * (counted / max(estimated, 1.0) - self._token_scale)

    def announced(self, now: float, sent: Sent, allowances: Mapping[str, Allowance]) -> None:
        """Follow the server's own account: what remains, less what was sent after the request that it came back with."""
        since = {"requests": self._sent.requests - sent.requests, "tokens": self._sent.tokens - sent.tokens}
        for kind, said in allowances.items():
            known = self._announced.get(kind)
            spent = said.limit - said.remaining
            rate = spent / said.reset_seconds if spent > 0 and said.reset_seconds > 0 else 0.0
            if rate == 0.0:
                rate = known.rate if known else said.limit
            level = said.remaining - since[kind]
            self._announced[kind] = Bucket(now, rate=MARGIN * rate, size=max(1.0, said.limit), level=level)

    def refused(self, now: float, *, sent_at: float, sent: Sent, items: int, first: bool) -> None:
        """A 429 to a request of `items` texts sent at `sent_at`; `first`: the first one of its flight."""
        if self._announced:
            return
        this = Sent(requests=1, items=items, tokens=0.0)
        if not first:
            if self._window is not None and sent_at >= self._window[0]:
                self._refused = _sum(self._refused, this)
            return
        if self._window is None:
            self._window = (sent_at, sent)
            return
        began_at, began = self._window
        seconds = sent_at - began_at
        accepted = sent.items - items - began.items - self._refused.items
        requests = sent.requests - 1 - began.requests - self._refused.requests
        if accepted <= 0:
            self._nothing_fits(items)
        if seconds < SHORTEST_WINDOW_SECONDS or accepted <= 0:
            self._refused = _sum(self._refused, this)
            return
        self._window, self._refused = (sent_at, sent), Sent(requests=0, items=0, tokens=0.0)
        self._barren = 0
        self._cut_at = self._grown_at = now
        self._doubt = min(1.0, items / accepted)
        self._learn(now, accepted / seconds, requests / seconds)

    def _nothing_fits(self, items: int) -> None:
        """Refused again, after a pause, and nothing accepted meanwhile: such a request may be larger than all it gives."""
        self._barren += 1
        if self._barren >= 2:
            self._most_items = max(1, items // 2)

    def _learn(self, now: float, items: float, requests: float) -> None:
        """Texts or requests: a server counts what came out the same each time, whatever the size of the requests was.

        Until their sizes differ, requests are counted: nothing then keeps them from growing, and the difference shows.
        """
        self._rates = [*self._rates[-REMEMBERED + 1 :], (items, requests)]
        by_items, by_requests = (max(rates) / min(rates) for rates in zip(*self._rates, strict=True))
        if by_items > CLEARLY * by_requests:
            self._counts = "requests"
        elif by_requests > CLEARLY * by_items:
            self._counts = "items"
        found = max(rates[self._counts == "requests"] for rates in self._rates)
        found = max(found, SLOWEST_PER_SECOND)
        self._confirmed = min(self._confirmed + 1, 4) if abs(found / self._found - 1.0) < SAME else 0
        self._found = found
        rate = MARGIN * found
        self._learnt = Bucket(now, rate=rate, size=max(1.0, rate * SHORTEST_WINDOW_SECONDS))

    def _grow(self, now: float, learnt: Bucket) -> None:
        """Slowly where the rate was found, faster the longer nothing is refused; not while the pace is no limit."""
        passed = now - self._grown_at
        if passed < 0.25:
            return
        self._grown_at = now
        if self._held_back:
            quiet = min(now - self._cut_at, 60.0)
            slowest = max(GROWTH_PER_SECOND / (1 + self._confirmed), DOUBT_PER_SECOND * self._doubt)
            speed = slowest * 2.0 ** max(0.0, quiet / DOUBLING_SECONDS - 1.0)
            learnt.rate *= math.exp(min(speed, 0.5) * min(passed, 1.0))
            learnt.size = max(learnt.size, learnt.rate * SHORTEST_WINDOW_SECONDS)
        self._held_back = False


def _sum(one: Sent, other: Sent) -> Sent:
    return Sent(requests=one.requests + other.requests, items=one.items + other.items, tokens=one.tokens + other.tokens)
