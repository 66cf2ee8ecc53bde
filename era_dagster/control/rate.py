"""When the next request may be sent: the pause after a refusal, and the pace a server allows.

`Throttle` is the pause a 429 asks for. `Pacer` finds the rate: told by a setting, read from a server's headers, or
learnt. A bucket that refuses is empty; between two refusals it gave out what came in, so that what was accepted from one
refusal to another, over that time, is the rate, however large the bucket. Pure: the caller passes its clock.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from era_dagster.control.allowances import Allowance
from era_dagster.control.bucket import Bucket, Window
from era_dagster.control.burst import Burst
from era_dagster.control.evidence import LACKED, NOTHING, STRETCHES, Counted, Empty, Sent, contradicted, explained

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 16.0
BARREN, BARREN_SECONDS = 2, 60.0
"""Requests become smaller where so many in a row found nothing accepted since the refusal before; where such a size was
accepted before, only if nothing was for so long."""
MARGIN = 0.97
"""Share of a learnt rate that a pace begins with: the bucket fills a little, and its clock may be off."""
REMEMBERED = 16
"""Refusals that are looked back on."""
SLOWEST_PER_SECOND = 0.5
"""A pace of requests is not learnt below this: there the pauses do the work, and pace and pauses would cut each other."""
REQUEST_SECONDS = 0.05
"""A request brings what is allowed in so long, where texts are counted: small against any bucket, so that its
rate is seen exactly; more than twenty requests a second would cost more than that is worth."""
BURST_SECONDS = 1.0
"""What a pause brought may be made up for at once, up to so long, unless the bucket was seen to hold less."""
WINDOW_PARTS = 8.0
"""Requests whose tokens use a window up."""
DOUBLED_SECONDS = 4.0
DOUBLED_REQUESTS = 30.0
"""A pace that meets no refusal has doubled after the longer of these, so that a rate which did not change refuses about
one request in twenty-five; but never later than for as long as the rate has been known."""


class Throttle:
    """The pause after a refusal, and one request at a time after it until one succeeds.

    The pause is what the server says (Retry-After), else 0.5 s doubled up to 16 s for each refusal in a row. A server that
    refuses again when its own pause is over has said too little: from then on the pause is no shorter than that. Requests
    that were already under way when the pause began don't lengthen it. `announced_until` is the server's word alone.
    """

    def __init__(self) -> None:
        self.closed_until = -math.inf
        self.announced_until = -math.inf
        self.half_open = False
        self._refusals = 0

    def is_first(self, sent_at: float) -> bool:
        """Whether a refusal of a request sent at `sent_at` is the first of its flight."""
        return not self.half_open or sent_at >= self.closed_until

    def refused(self, now: float, *, sent_at: float, retry_after_seconds: float | None) -> None:
        """A request sent at `sent_at` was refused at `now`."""
        first = self.is_first(sent_at)
        if first:
            self._refusals += 1
        doublings = self._refusals - 1
        if retry_after_seconds is not None:
            doublings -= 1
            self.announced_until = now + retry_after_seconds
            self.closed_until = max(self.closed_until, self.announced_until)
        if first and doublings >= 0:
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(doublings, 10))
            self.closed_until = max(self.closed_until, now + pause)
        self.half_open = True

    def succeeded(self, *, sent_at: float) -> bool:
        """A request was answered; whether that ends the pause: one that was sent before the refusal proves nothing."""
        if not self.half_open or sent_at < self.closed_until:
            return False
        self.half_open = False
        self._refusals = 0
        return True


class Pacer:
    """The pace of one endpoint. `items_per_second` is somebody's decision and is never exceeded; None leaves it open.

    A learnt pace begins a little below the rate, stays near it for a while and then grows ever faster until it is refused:
    a bucket that was not full meanwhile has lost nothing by that, and a rate that was raised is soon found.
    """

    def __init__(self, items_per_second: float | None) -> None:
        self._decided = None if items_per_second is None else Bucket(0.0, rate=items_per_second, size=1.0, level=1.0)
        self._learnt: Bucket | None = None
        self._counts: Counted = "requests"
        self._announced: dict[str, Bucket] = {}
        self._said: dict[str, Allowance] = {}
        self._windows: dict[str, float] = {}
        self.announced_empty_until = -math.inf
        """Until when the server's own account, as it came last, gives nothing at all."""
        self._sent = self._refused = NOTHING
        self._last = Sent(requests=1, items=1, tokens=1.0)
        self._token_scale = 1.0
        self._emptied: deque[Empty] = deque(maxlen=REMEMBERED)
        self._barren = 0
        self._was_full = False  # whether the last refusal may have been for room
        self._twice_as_large = False
        self._sized_after = 0
        self._most_items: float = math.inf
        self._too_many, self._too_many_until = 0, -math.inf
        self._fitted = NOTHING
        self._accepted_at = -math.inf
        self._began_at: float = math.inf
        self._burst = Burst()
        self._base = self._explains = 0.0
        self._seen_at = self._held_until = -math.inf
        self._held_seconds = 0.0
        self._doubled_seconds = DOUBLED_SECONDS
        self.by_requests = False
        """Whether what held requests back last counts requests, whatever is in them."""

    @property
    def rate(self) -> float | None:
        """The most texts a second at this moment, of a window on the mean; None while unpaced."""
        rates = [] if self._decided is None else [self._decided.rate]
        if self.learnt_rate is not None:
            rates.append(self.learnt_rate)
        if "requests" in self._announced:
            rates.append(self._announced["requests"].rate * self._last.items)
        if "tokens" in self._announced:
            rates.append(self._announced["tokens"].rate * self._last.items / max(self._last.tokens, 1.0))
        return min(rates) if rates else None

    def forget(self) -> None:
        """What was learnt was no rate."""
        self._learnt = None
        self._burst = Burst()
        self._emptied.clear()

    @property
    def learnt_rate(self) -> float | None:
        """The texts a second of the pace that was learnt; None where none was."""
        if self._learnt is None:
            return None
        return self._learnt.rate * self._last.items / max(self._last.of(self._counts), 1e-9)

    @property
    def requests_per_second(self) -> float | None:
        """The rate of requests that is known, where it is requests that are held back."""
        if not self.by_requests:
            return None
        rates = [self._base] if self._learnt is not None and self._counts == "requests" else []
        rates += [self._announced["requests"].pace] if "requests" in self._announced else []
        return min(rates) if rates else None

    @property
    def most_items(self) -> float:
        """The largest request: a server that counts texts by the second would refuse a larger one for ever."""
        most = self._most_items
        if self._decided is not None:
            most = min(most, max(1.0, math.floor(self._decided.rate)))
        if self._learnt is not None and self._counts == "items":
            every = REQUEST_SECONDS
            if "requests" in self._announced:  # and fewer requests may be allowed than would bring so many texts
                every = max(every, 1.0 / self._announced["requests"].pace)
            usual = max(1.0, math.floor(every * self._learnt.rate))
            most = min(most, 2.0 * usual if self._twice_as_large else usual)
        return most

    @property
    def most_tokens(self) -> float:
        """The most tokens, as they are estimated, in a request: no more than the server announces to give at once, or it
        would be refused for ever. Of a window an eighth, so that little is left over, or its tokens by its requests."""
        tokens, requests = self._announced.get("tokens"), self._announced.get("requests")
        if tokens is None:
            return math.inf
        parts = WINDOW_PARTS if isinstance(tokens, Window) else 1.0
        if requests is not None:
            parts = min(parts, requests.size)
        return tokens.size / parts / self._token_scale

    def ready_at(self, now: float) -> float:
        """When the next request, if it is like the last, may go; at or before `now`: at once."""
        times: list[tuple[float, bool]] = []
        if self._decided is not None:
            times.append((self._decided.ready_at(now, 1.0), False))
        if self._learnt is not None:
            self._grow(now, self._learnt)
            self._held_until = self._learnt.ready_at(now, self._next_units)
            times.append((self._held_until, self._counts == "requests"))
        for kind, bucket in self._announced.items():
            by_requests = kind == "requests"
            times.append((bucket.ready_at(now, 1.0 if by_requests else self._last.tokens), by_requests))
        ready, by_requests = max(times, default=(now, False))
        if ready > now:
            self.by_requests = by_requests
        return ready

    def sent(self, now: float, *, items: int, tokens: float, alone: bool = False) -> Sent:
        """Charge a request; returns what `announced` and `refused` want back. `alone`: the first one after a pause."""
        self._last = Sent(requests=1, items=items, tokens=tokens * self._token_scale)
        self._began_at = min(self._began_at, now)
        if self._decided is not None:
            self._decided.take(now, items)
        if self._learnt is not None:
            self._learnt.take(now, self._last.of(self._counts))
        for kind, units in (("requests", 1.0), ("tokens", self._last.tokens)):
            if kind in self._announced:
                self._announced[kind].take(now, units)
        self._burst.sent(now, self._sent, alone=alone)
        self._sent += self._last
        return self._sent

    def counted(self, *, estimated: float, counted: float) -> None:
        """The server's own count of a request's tokens."""
        self._token_scale += 0.1 * (counted / max(estimated, 1.0) - self._token_scale)

    def announced(self, now: float, sent: Sent, allowances: Mapping[str, Allowance]) -> None:
        """Follow the server's own account: what remains, less what was sent after the request that it came back with."""
        since = {"requests": self._sent.requests - sent.requests, "tokens": self._sent.tokens - sent.tokens}
        if allowances:
            self.announced_empty_until = -math.inf
        for kind, said in allowances.items():
            size, level = max(1.0, said.limit), said.remaining - since[kind]
            length = self._window_seconds(kind, said)
            if length is None:
                rate = self._announced_rate(kind, said)
                bucket = Bucket(now, rate=MARGIN * rate, size=size, level=level)
                gives_at = now + (1.0 - said.remaining) / rate
            else:
                gives_at = now + said.reset_seconds
                known = self._announced.get(kind)
                even = known.even if isinstance(known, Window) else None
                if kind == "requests" and even is None:
                    # It is their number that counts, so that each had better carry as much as it can.
                    even = Bucket(now, rate=1.0, size=1.0, level=1.0)
                bucket = Window(now, seconds=length, size=size, level=level, ends_at=gives_at, even=even)
            if said.remaining < 1.0:
                self.announced_empty_until = max(self.announced_empty_until, gives_at)
            self._announced[kind] = bucket

    def _window_seconds(self, kind: str, said: Allowance) -> float | None:
        """How long a window is: its longest reset. None for a bucket, that takes longer to be full when more of it is spent."""
        before = self._said.get(kind, said)
        self._said[kind] = said
        opposite = (before.remaining - said.remaining) * (said.reset_seconds - before.reset_seconds) < 0.0
        if kind in self._windows or (opposite and said.limit == before.limit):
            self._windows[kind] = max(self._windows.get(kind, before.reset_seconds), said.reset_seconds)
        return self._windows.get(kind)

    def _announced_rate(self, kind: str, said: Allowance) -> float:
        """What a bucket brings in a second, as far as it tells: nothing can be told of a full one."""
        spent, known = said.limit - said.remaining, self._announced.get(kind)
        if spent > 0.0 and said.reset_seconds > 0.0:
            return spent / said.reset_seconds
        return known.rate / MARGIN if known else said.limit

    def accepted(self, now: float, *, items: int, tokens: float) -> None:
        """A request was answered: twice as much may fit, unless so much was seen not to fit a moment ago."""
        self._accepted_at = now
        self._fitted = Sent(requests=1, items=max(items, self._fitted.items), tokens=max(tokens, self._fitted.tokens))
        too_many = now < self._too_many_until and 2 * items >= self._too_many
        self._most_items = max(self._most_items, items if too_many else 2 * items)

    def turned_away(self, *, items: int) -> None:
        """A request was refused for another reason than a rate, as far as that is known: it was not accepted either."""
        self._refused += Sent(requests=1, items=items, tokens=0.0)

    def is_used_up(self, now: float, *, tokens: float) -> bool:
        """Whether what is announced does not give another request, or one of so many tokens."""
        needs = {"requests": 1.0, "tokens": tokens * self._token_scale}
        return any(bucket.level(now) < min(needs[kind], bucket.size) for kind, bucket in self._announced.items())

    def refused(
        self,
        now: float,
        *,
        sent_at: float,
        sent: Sent,
        items: int,
        tokens: float,
        first: bool,
        full: bool = False,
        sure: bool = True,
    ) -> bool:
        """A 429 to a request sent at `sent_at`; `first`: the first one of its flight; `full`: for another reason, perhaps;
        `sure`: if not for that, for a rate.

        Whether a pace was learnt that tells of the server as it is: not of a while in which it took nothing.
        """
        this = Sent(requests=1, items=items, tokens=0.0)
        accepted = sent - self._refused - this
        self._refused += this
        for place, each in enumerate(self._emptied):
            if sent.requests < each.number:  # it was taken for accepted; answers may come in another order
                self._emptied[place] = replace(each, accepted=each.accepted - this)
        last = self._emptied[-1] if self._emptied else None
        if not first or self.is_used_up(now, tokens=tokens) or (last is not None and sent_at <= last.at):
            return False
        barren = last is not None and accepted.requests <= last.accepted.requests
        took_nothing = self._barren >= BARREN
        if not barren or (not self._barren and self._to_come_in_by(sent_at) < 1.0):
            # A window was used up at the refusal before this one: the pause that was in vain is not when it came in.
            self._emptied.append(Empty(at=sent_at, number=sent.requests, accepted=accepted, refused=this))
        if barren:
            self._nothing_fits(now, items, tokens)
        else:
            self._barren = 0
        if last is None or full or (barren and not self._was_full):
            self._was_full = full
            return False
        self._was_full = False
        known = None
        if self._learnt is not None and sure:
            known = self._burst.refused(
                sent_at,
                sent - this,
                emptied_at=last.at,
                accepted=(accepted - last.accepted).of(self._counts),
                units=this.of(self._counts),
                rate=self._base,
                counted=self._counts,
            )
        self._learn(now, known)
        return not took_nothing

    def _to_come_in_by(self, now: float) -> float:
        """Requests that a bucket would have brought since the last refusal, by what it brought up to that."""
        last = self._emptied[-1]
        at, accepted = self._began_at, 0
        if len(self._emptied) > 1:
            at, accepted = self._emptied[-2].at, self._emptied[-2].accepted.requests
        return (last.accepted.requests - accepted - 1) / max(last.at - at, 1e-9) * (now - last.at)

    def _nothing_fits(self, now: float, items: int, tokens: float) -> None:
        """Refused again, after a pause, and nothing accepted meanwhile: such a request may be larger than all it gives, or it
        gives nothing to anybody for a while, as where a minute's allowance is used up."""
        self._barren += 1
        if now >= self._accepted_at + BARREN_SECONDS:
            self._fitted = NOTHING
        fits = items <= self._fitted.items and tokens <= self._fitted.tokens
        if self._barren >= BARREN and not fits:
            self._too_many = items if self._barren == BARREN else max(items, self._too_many)
            self._too_many_until = now + LONGEST_PAUSE_SECONDS
            self._most_items = max(1, items // 2)

    def _learn(self, now: float, known: float | None) -> None:
        """A server counts what came at the same rate again and again, whatever the size of the requests was. `known`: of what
        was counted until now, at least, where a bucket that holds little shows it.

        Until their sizes differ, requests are counted: nothing then keeps them from growing, and the difference shows. What
        was found may be wrong, and is held against the other with every refusal. Where texts are counted, requests stay
        small, and if all of them were alike nothing could show the contrary: every other time they are twice as large.
        """
        emptied = list(self._emptied)
        accepted = emptied[-1].accepted.requests
        if accepted - self._sized_after >= max(STRETCHES):
            self._twice_as_large, self._sized_after = not self._twice_as_large, accepted
        other: Counted = "items" if self._counts == "requests" else "requests"
        if contradicted(emptied, other) < contradicted(emptied, self._counts):
            # The pace was none for what is counted, and the bucket may have been full: the most that was seen counts.
            self._counts, self._burst = other, Burst()
            rate, self._explains = max(explained(emptied[:end], other) for end in range(2, len(emptied) + 1))
        else:
            rate, self._explains = explained(emptied, self._counts)
            if known is not None:
                rate, self._explains = max(rate, known), max(self._explains, DOUBLED_SECONDS)
        if rate <= 0.0:
            return
        self._base = max(rate, SLOWEST_PER_SECOND) if self._counts == "requests" else rate
        self._held_seconds, self._seen_at, self._held_until = 0.0, now, now
        self._learnt = Bucket(now, rate=MARGIN * self._base, size=1.0)
        self._learnt.take(now, LACKED * self._next_units)
        self._doubled_seconds = max(DOUBLED_SECONDS, DOUBLED_REQUESTS * self._next_units / self._base)
        self._grow(now, self._learnt)

    @property
    def _next_units(self) -> float:
        """What the next request takes, if it is like the last, or as large as may be."""
        return max(1e-9, self._last.of(self._counts) * min(1.0, self.most_items / self._last.items))

    def _grow(self, now: float, learnt: Bucket) -> None:
        """As the cube of the time in which the pace was what held requests back: slow near the rate, faster beyond it."""
        self._held_seconds += max(0.0, min(now, self._held_until) - self._seen_at)
        self._seen_at = now
        steps = self._held_seconds / min(self._doubled_seconds, self._explains) - (1.0 - MARGIN) ** (1.0 / 3.0)
        learnt.level(now)
        learnt.rate = self._base * (1.0 + steps**3)
        learnt.size = max(self._next_units, min(self._burst.holds, learnt.rate * BURST_SECONDS))
