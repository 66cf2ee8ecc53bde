"""The requests under way at one endpoint, and the epoch in which their answers are measured. No clock, no I/O."""

from dataclasses import dataclass

from era_dagster.control.measure import Epoch, Measurement
from era_dagster.control.room import Inside

FULL_SHARE = 0.5
"""An epoch in which less of the time was spent at the limit measures the sender."""


@dataclass(slots=True)
class Request:
    """One request under way: when it was sent, its texts and tokens, and what was under way then, itself included."""

    sent_at: float
    texts: int
    tokens: float
    inside: Inside
    in_parts: bool = False

    def was_without(self, other: "Request") -> None:
        """The other one was not inside any more, or never, when this one came."""
        self.inside = Inside(self.inside.requests - 1, self.inside.texts - other.texts)


class Flight:
    """Requests are told by number; `texts` and `tokens` are under way. `epoch` begins anew with every new point."""

    def __init__(self) -> None:
        self.epoch = Epoch(0.0)
        self.texts = 0
        self.tokens = 0.0
        self._under_way: dict[int, Request] = {}
        self._number = 0
        self._round_trip = 0.0
        self._full_since: float | None = None
        self._settling = 0

    @property
    def count(self) -> int:
        """Requests sent so far."""
        return self._number

    def __len__(self) -> int:
        return len(self._under_way)

    def sent(self, now: float, texts: int, tokens: float, *, in_parts: bool = False) -> int:
        """A request goes out; returns the number under which it ends."""
        self._number += 1
        if not self._under_way and not self.epoch.latencies:
            self.epoch.began_at = now
        self.texts += texts
        self.tokens += tokens
        inside = Inside(len(self._under_way) + 1, self.texts)
        self._under_way[self._number] = Request(now, texts, tokens, inside, in_parts)
        return self._number

    def ended(self, number: int) -> Request | None:
        """The request that is under way no more; None if it is not known any more."""
        known = self._under_way.pop(number, None)
        if known is not None:
            self.texts -= known.texts
            self.tokens -= known.tokens
        return known

    def answered(self, now: float, number: int) -> Request | None:
        """The request was answered; None if it is not known any more.

        It had left the server before those arrived that were sent after it, less than a round trip ago.
        """
        known = self.ended(number)
        if known is not None and self._round_trip:
            for other, each in reversed(self._under_way.items()):
                if other < number or each.sent_at <= now - self._round_trip:
                    break
                each.was_without(known)
        return known

    def refused(self, now: float, number: int) -> Request | None:
        """The request never was inside, nor under way when those after it were sent; None if it is not known any more.

        A refusal takes a round trip and hardly more.
        """
        known = self.ended(number)
        if known is not None:
            took = now - known.sent_at
            self._round_trip = min(self._round_trip or took, took)
            for other, each in self._under_way.items():
                if other > number:
                    each.was_without(known)
        return known

    def sent_since(self, at: float) -> list[float]:
        """When each of those under way was sent, that went out at `at` or later."""
        return [each.sent_at for each in self._under_way.values() if each.sent_at >= at]

    def sent_before(self, at: float) -> bool:
        """Whether a request that was sent before `at` is still under way."""
        return any(each.sent_at < at for each in self._under_way.values())

    def reached(self, now: float) -> None:
        """As many are under way as may be, and more would go: this time measures the server, not the sender."""
        if self._full_since is None:
            self._full_since = now

    def freed(self, now: float) -> None:
        """A request ended: until `reached` again the sender may be what is slow."""
        if self._full_since is not None:
            self.epoch.full_seconds += now - max(self._full_since, self.epoch.began_at)
            self._full_since = None

    def was_full(self, now: float) -> bool:
        """Whether this epoch measures the server."""
        return self.epoch.full_seconds >= FULL_SHARE * (now - self.epoch.began_at) and not self.epoch.is_in_parts

    def begin(self, now: float, *, settling: int | None = None) -> None:
        """A new epoch. `settling`: so many answers don't count, because the server still works on what was sent before."""
        self.epoch = Epoch(now)
        if settling is not None:
            self._settling = settling

    def settled(self, now: float, *, at_once: bool = False) -> bool:
        """Whether an answer that came at `now` counts. `at_once`: from now on all do."""
        if at_once:
            self._settling = 0
        if self._settling == 0:
            return True
        self._settling -= 1
        if self._settling == 0:
            self.epoch = Epoch(now)
        return False

    def measured(self, now: float, concurrency: int) -> Measurement:
        """What the epoch shows by `now`."""
        return self.epoch.measurement(
            now, [(each.sent_at, each.tokens) for each in self._under_way.values()], concurrency
        )
