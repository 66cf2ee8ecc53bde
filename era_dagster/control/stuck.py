"""Requests that are stuck: younger ones have overtaken them, and what holds them up is their own. No clock, no I/O."""

import math
from collections.abc import Iterable
from typing import Protocol, TypeVar

LATE_FACTOR = 4.0
LATE_SECONDS = 0.25
"""A request that younger ones have overtaken is late when it has taken so many times the mean latency, and so long."""
OVERTAKEN_FLIGHTS = 2
RARE = 0.05
"""What happens to more than one request in twenty is no accident of its own: the latency target is for the 95th percentile."""


class UnderWay(Protocol):
    """A request that is under way, by when it was sent."""

    @property
    def sent_at(self) -> float: ...


Request = TypeVar("Request", bound=UnderWay)


class Stuck:
    """Knows which of the requests under way are stuck, by number; those with numbers below 1 are none of its business."""

    def __init__(self) -> None:
        self._overtaken: dict[int, int] = {}
        self._found: set[int] = set()
        self._allowed = math.inf

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, number: int) -> bool:
        return number in self._found

    def answered(self, number: int, under_way: Iterable[int]) -> None:
        """A request was answered while others were `under_way`, in the order of sending: it overtook the older ones."""
        self._allowed += RARE
        for other in under_way:
            if other >= number:
                break
            if other > 0 and other not in self._found:
                self._overtaken[other] = self._overtaken.get(other, 0) + 1

    def ended(self, number: int) -> None:
        """A request is under way no more."""
        self._overtaken.pop(number, None)
        self._found.discard(number)

    def find(
        self, now: float, under_way: dict[int, Request], *, concurrency: int, latency: float
    ) -> tuple[list[int], float]:
        """Those that are found to be stuck, each told once, and when to look again.

        `under_way`: each by its number, in the order of sending. `latency`: what a request takes.
        """
        found: list[int] = []
        again_at = math.inf
        if not self._overtaken:
            return found, again_at
        self._allowed = min(self._allowed, concurrency)
        wait = max(LATE_SECONDS, LATE_FACTOR * latency)
        youngest, youngest_left = next(reversed(under_way), 0), self._youngest_left(under_way)
        for number, times in list(self._overtaken.items()):
            by_far = times >= OVERTAKEN_FLIGHTS * concurrency
            if not by_far and number != youngest and number < youngest_left:
                continue
            at = under_way[number].sent_at + (wait if by_far else 2.0 * wait)
            if now >= at and len(self._found) < concurrency and self._allowed >= 1.0:
                self._allowed -= 1.0
                del self._overtaken[number]
                self._found.add(number)
                found.append(number)
                youngest_left = self._youngest_left(under_way)
            elif now < at:
                again_at = min(again_at, at)
        return found, again_at

    def _youngest_left(self, under_way: dict[int, Request]) -> int:
        """The youngest one that is not found to be stuck; 0 where all are."""
        return next((number for number in reversed(under_way) if number > 0 and number not in self._found), 0)
