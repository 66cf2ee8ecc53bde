"""What refusals tell about a rate that is not announced: how fast a bucket is filled, and whether it counts requests or texts.

A bucket that refuses is empty, to within the request that was refused; what was accepted between two such moments came in
between them. Functions of what was sent and refused; no clock, no I/O.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Counted = Literal["requests", "items"]

SLACK = 0.1
"""Rates that differ by no more than this may be one: what a bucket lost by being full is not seen, and clocks differ."""
LACKED = 0.5
"""A bucket that refuses holds something between nothing and all of the request: so much of it, on average."""
STRETCHES = (1, 2, 4, 8)
"""Requests in a stretch of which a rate is taken: of few it is vague, and many may hide that it changed. With eight in
each, a rate that is no rate contradicts itself where requests were twice as large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A number of requests, their texts and their tokens."""

    requests: int
    items: int
    tokens: float

    def of(self, counted: Counted) -> int:
        """What a server that counts these would count."""
        return self.requests if counted == "requests" else self.items

    def __add__(self, other: "Sent") -> "Sent":
        return Sent(
            requests=self.requests + other.requests, items=self.items + other.items, tokens=self.tokens + other.tokens
        )

    def __sub__(self, other: "Sent") -> "Sent":
        return Sent(
            requests=self.requests - other.requests, items=self.items - other.items, tokens=self.tokens - other.tokens
        )


NOTHING = Sent(requests=0, items=0, tokens=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Empty:
    """A moment at which the bucket held less than the request that it `refused`, after all that it `accepted`.

    `number`: which request of all that were sent it was.
    """

    at: float
    number: int
    accepted: Sent
    refused: Sent


def contradicted(emptied: Sequence[Empty], counted: Counted) -> float:
    """By how much the rates of what is `counted` contradict each other from one stretch to the next, in ln, all together.

    A stretch is from one refusal to another with so many requests accepted between them, or with none at all. A rate is
    known only to within the requests that were refused, and only what is outside of these bounds is a contradiction:
    single requests that came now sooner, now later, contradict nothing.
    """
    against = 0.0
    for stretch in STRETCHES:
        ends = [emptied[-1]]
        for each in reversed(emptied):
            accepted = ends[-1].accepted.requests - each.accepted.requests
            if accepted >= stretch or (accepted == 0 and each is not ends[-1]):
                ends.append(each)
        rates = [bounds(older, newer, counted) for newer, older in pairwise(ends)]
        for one, other in pairwise(rates):
            apart = max(one[0], other[0]) / max(1e-9, min(one[1], other[1]))
            against += math.log(max(1.0, apart))
    return against


def bounds(older: Empty, newer: Empty, counted: Counted) -> tuple[float, float]:
    """The least and the most of what is `counted` that came in, a second, from one refusal to another.

    It is what was accepted, less what may have been there before, or more by what may have been there still.
    """
    accepted, seconds = newer.accepted.of(counted) - older.accepted.of(counted), newer.at - older.at
    least, most = accepted - older.refused.of(counted), accepted + newer.refused.of(counted)
    return least / seconds / (1.0 + SLACK), most / seconds * (1.0 + SLACK)


def explained(emptied: Sequence[Empty], counted: Counted) -> tuple[float, float]:
    """The rate of what is `counted`, a second, and for how many seconds back it explains all that was accepted.

    Between any earlier refusal and the last one a bucket gave out what came in, more or less the request that it lacked.
    The further back, the narrower are these bounds; they are followed until they contradict each other. What a full
    bucket lost makes a rate look smaller, never larger: the largest counts.
    """
    newest = emptied[-1]
    low, high, rate, explains = 0.0, math.inf, 0.0, 0.0
    for older in reversed(emptied):
        accepted = newest.accepted.of(counted) - older.accepted.of(counted)
        if accepted <= 0:
            continue
        seconds = newest.at - older.at
        least, most = bounds(older, newest, counted)
        if least > high or most < low:
            break
        low, high, explains = max(low, least), min(high, most), seconds
        came_in = accepted + LACKED * (newest.refused.of(counted) - older.refused.of(counted))
        rate = max(rate, max(came_in, LACKED * accepted) / seconds)
    return rate, explains
