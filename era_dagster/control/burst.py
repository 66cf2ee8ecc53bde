"""How much a server's bucket holds, where that is less than what a pause brings, as of a rate that allows no burst at all.

While a bucket is full, what comes in is lost: then what was accepted from one refusal to the next is less than the rate,
and a pause brings no more than the bucket holds. But never does more come out than the rate and what the bucket held.
Pure: the caller passes its clock.
"""

import math
from collections import deque

from era_dagster.control.evidence import SLACK, Counted, Sent

REMEMBERED_REQUESTS = 32
FEW_REQUESTS = 4.0
"""Refused after fewer than these since the pause, though no more was sent than the rate and what it holds: it is another rate."""


class Burst:
    """`holds`: the units that the bucket of one rate holds at most; infinite as long as it was not seen to hold little."""

    def __init__(self) -> None:
        self.holds = math.inf
        self._resumed_at = math.inf
        self._sent: deque[tuple[float, Sent]] = deque(maxlen=REMEMBERED_REQUESTS)

    def sent(self, now: float, before: Sent, *, alone: bool) -> None:
        """A request goes out at `now`, after all that was sent `before`; `alone`: the first one after a pause."""
        if alone:
            self._resumed_at = now
            self._sent.clear()
        self._sent.append((now, before))

    def refused(
        self,
        sent_at: float,
        before: Sent,
        *,
        emptied_at: float,
        accepted: float,
        units: float,
        rate: float,
        counted: Counted,
    ) -> float | None:
        """The first request that was refused after a pause, which holds so many `units` and was sent at `sent_at`; returns the
        rate, where the bucket is known to hold little.

        `before`: what was sent before it. `accepted`: the units since `emptied_at`, when the refusal before was sent. `rate`:
        the one that was known until now.
        """
        if sent_at < self._resumed_at:
            return None
        paused, seconds = self._resumed_at - emptied_at, sent_at - self._resumed_at
        allowed = min(self.holds, rate * paused) + rate * seconds
        if seconds < paused and accepted + units < (1.0 - SLACK) * allowed:
            self.holds = max(accepted - rate * seconds, units)
            return rate
        if accepted < FEW_REQUESTS * units:
            self.holds = math.inf
        if self.holds == math.inf:
            return None
        rates = [((before - each).of(counted) - self.holds) / (sent_at - at) for at, each in self._sent if at < sent_at]
        return max(rates, default=None)
