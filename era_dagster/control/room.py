"""How much a server lets in at a time, as its refusals tell: so many requests, or so many texts in however many.

What is full has never taken more than it holds. So it is not for its number that a request is refused where more requests
were taken, and not for its texts where more texts were; and where more of both were, the server was not full at all.
No clock, no I/O.
"""

import math
from dataclasses import dataclass
from typing import Literal

Bound = Literal["requests", "texts"]
BOUNDS: tuple[Bound, ...] = ("requests", "texts")

CLEARLY_LESS = 0.75
"""More than this share of what was taken is as much: what has come out is under way to us for a while yet."""
TRIED, KEPT = 0.7, 0.9
"""So much of what was taken is sent where it has to be seen first that the server is full, and does not count by time; and
so much where that is known, and what it holds as well."""
TRIED_SECONDS = 4.0
LESS = 0.6
"""No less of what was taken is sent where there seems to be less room: a moment in which everything is refused is soon over."""
REMEMBERED_SECONDS = 60.0
"""What was taken, and what was refused, holds for so long: the server may change, and others may leave it."""
WATCHED_SECONDS = 1.0
"""So long at least, and for no longer than what was taken is remembered, less is sent before refusals mean something else."""


@dataclass(frozen=True, slots=True)
class Inside:
    """Requests, and the texts in them, that are under way."""

    requests: int
    texts: int

    def of(self, bound: Bound) -> int:
        """What a server that bounds these would count."""
        return self.requests if bound == "requests" else self.texts


@dataclass(slots=True)
class _Full:
    """A bound that was met: the server `holds` so much at least, and less than what it refused."""

    holds: int
    refused: int
    tried_until: float
    until: float


class Room:
    """What a server was seen to take, and what it therefore gets.

    `items_per_second`: the texts that it took while it refused others although it was not full. `is_sure`: it was seen to
    refuse what is too much inside, and no less.
    """

    def __init__(self) -> None:
        self.items_per_second = 0.0
        self._since = -math.inf
        self._taken = self._taken_before = Inside(0, 0)
        self._full: dict[Bound, _Full] = {}
        self._known: Bound | None = None
        self.is_sure = False
        self._watched_since = -math.inf
        self._items = 0

    def most(self, bound: Bound, now: float) -> float:
        """The most requests, or texts, that may be under way; infinite where nothing is known.

        Between what was taken and what was refused the middle is tried, until they are close.
        """
        full = self._full.get(bound)
        if full is None or now >= full.until:
            return math.inf
        if now < full.tried_until:
            return max(1, math.floor(TRIED * full.holds))
        unknown = full.holds < KEPT * (full.refused - 1)
        return max(1, (full.holds + full.refused) // 2 if unknown else round(KEPT * full.holds))

    def took(self, now: float, inside: Inside, *, items: int) -> None:
        """A request of `items` texts was answered; when it was sent so much was under way, itself included."""
        self._items += items
        if now >= self._since + REMEMBERED_SECONDS / 2.0:
            self._taken_before = self._taken if now < self._since + 1.5 * REMEMBERED_SECONDS else Inside(0, 0)
            self._taken, self._since = inside, now
        self._taken = _most(self._taken, inside)
        for bound, full in self._full.items():
            full.holds = max(full.holds, min(inside.of(bound), full.refused - 1))
            self.is_sure = self.is_sure or now >= full.tried_until

    def refused(self, now: float, inside: Inside, own: Inside, *, limited: bool) -> set[Bound] | None:
        """A request was refused, `own` of what was under way: of what the server may be full, so that less of it is sent from
        now on. Of nothing: it was not full. None: that cannot be said yet.

        `limited`: it says 429, and is asked at once if it is full, or counts by time; 503 is more likely of the former, and
        fewer requests with as much in them are tried first.
        """
        may_be, taken = self._may_be_full(inside), self._most_taken
        either = len(may_be) > 1
        holds: dict[Bound, int] = {}
        if may_be:
            if len(may_be) > 1 and not limited:
                may_be = ("requests",)
            for each in may_be:
                # One that is refused although it is alone is too large by itself.
                holds[each] = min(taken.of(each), inside.of(each) - 1) or own.of(each) // 2
        elif self.is_sure or not limited:
            seconds = now - self._watched_since
            if seconds < WATCHED_SECONDS and not limited:
                return None
            if seconds < REMEMBERED_SECONDS:
                self.items_per_second = self._items / max(seconds, 1e-9)
                self._watched_since = -math.inf
            else:
                self._watched_since, self._items = now, 0
                for each in (self._known,) if self._known else BOUNDS:
                    holds[each] = max(inside.of(each) - 1, int(LESS * taken.of(each)))
        self._keep_to(now, holds, inside, tried=limited and not self.is_sure, either=either)
        return set(holds)

    def _keep_to(self, now: float, holds: dict[Bound, int], inside: Inside, *, tried: bool, either: bool) -> None:
        """`either`: the texts only until it is seen if it is they."""
        self._full.pop("requests", None)
        if not holds:
            self._full.clear()
            self._known, self.is_sure = None, False
        for bound, much in holds.items():
            self._full[bound] = _Full(
                holds=much,
                refused=inside.of(bound),
                tried_until=now + (TRIED_SECONDS if tried else 0.0),
                until=now + (TRIED_SECONDS if either and bound == "texts" else REMEMBERED_SECONDS),
            )

    def _may_be_full(self, refused: Inside) -> tuple[Bound, ...]:
        taken = self._most_taken
        found: tuple[Bound, ...] = tuple(
            bound for bound in BOUNDS if refused.of(bound) > max(1.0, CLEARLY_LESS * taken.of(bound))
        )
        if len(found) == 1:
            (self._known,) = found
        return (self._known,) if self._known and self._known in found else found

    @property
    def _most_taken(self) -> Inside:
        return _most(self._taken, self._taken_before)


class Largest:
    """How many texts one request may hold, as those that were refused for their size tell.

    Between what was taken and what was refused the middle is tried, until they meet. Then what was refused is tried again,
    after twice as long each time: it may have been chance.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._refused = math.inf
        self._again_at, self._again_seconds = -math.inf, TRIED_SECONDS

    def most(self, now: float) -> float:
        """The most texts that the next request may hold; infinite where nothing is known."""
        if self._taken < self._refused - 1.0 < math.inf:
            return max(1, int(self._taken + self._refused) // 2)
        return self._refused if now >= self._again_at else self._refused - 1.0

    def took(self, items: int) -> None:
        """A request of `items` texts was answered."""
        self._taken = max(self._taken, items)
        if self._taken >= self._refused:
            self._refused = math.inf

    def refused(self, now: float, items: int, *, certain: bool) -> None:
        """A request of `items` texts was refused. `certain`: for its size, as it says; else it was not, if as large a one was
        ever taken. By what is said of less than was taken, it is not the number of texts that counts but their length.
        """
        if items <= self._taken:
            if not certain:
                return
            self._taken = items // 2
        if now >= self._again_at:
            self._again_at = now + self._again_seconds
            self._again_seconds *= 2.0
        self._refused = min(self._refused, items)


def _most(one: Inside, other: Inside) -> Inside:
    return Inside(max(one.requests, other.requests), max(one.texts, other.texts))
