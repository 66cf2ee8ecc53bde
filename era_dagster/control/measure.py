"""What a stretch of requests says about throughput and latency.

An epoch is a stretch of time at one operating point, from when the change to it has settled.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One epoch. `throughput` in tokens a second, `latency` in seconds, the mean of requests with `cv` its coefficient of
    variation, `p95_ratio` the 95th percentile over it. A flight is as many as run at a time."""

    samples: int
    flights: float
    seconds: float
    throughput: float
    latency: float
    cv: float
    p95_ratio: float

    @property
    def error(self) -> float:
        """The standard error of ln(throughput), roughly: of the mean of the latencies.

        Requests of one flight share their fate, so that whole flights count, not only samples.
        """
        return max(self.cv / math.sqrt(max(self.samples, 1)), 0.06 / math.sqrt(max(self.flights, 0.1)))


class Epoch:
    """Everything that was answered since `began_at`, whenever it was sent.

    A request counts as worked on evenly while it is under way, so that neither bursts nor where the epoch begins and ends
    move the throughput. Requests are not chosen by when they were sent: that would favour the quick ones.
    """

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.full_seconds = 0.0
        self.pace: Literal["requests", "items"] | None = None
        self.latencies: list[float] = []
        self._work = 0.0
        self._in_parts = 0

    @property
    def is_in_parts(self) -> bool:
        """Whether half of the requests were half as large as might have been, at most."""
        return 2 * self._in_parts >= max(1, len(self.latencies))

    def add(self, now: float, *, sent_at: float, tokens: float, in_parts: bool = False) -> None:
        """A request was answered at `now`. `in_parts`: it was one of several that took the place of a larger one."""
        self._in_parts += in_parts
        seconds = max(now - sent_at, 1e-9)
        self.latencies.append(seconds)
        self._work += tokens * min(1.0, (now - self.began_at) / seconds)

    def measurement(self, now: float, in_flight: Collection[tuple[float, float]], concurrency: int) -> Measurement:
        """What is known at `now`; `in_flight` holds (sent at, tokens).

        Latencies over four times the median count as that, or as the 95th percentile: a stall is one event, not a level.
        """
        ordered = sorted(self.latencies)
        count = len(ordered)
        most = max(4.0 * ordered[count // 2], ordered[max(0, min(count - 2, int(0.95 * count)))])
        capped = [each if each < most else most for each in ordered]
        # fsum, because sum() rounds otherwise since Python 3.12, and a law of thresholds goes another way for it.
        mean = math.fsum(capped) / count
        variance = math.fsum((each - mean) ** 2 for each in capped) / count
        work = self._work
        for sent_at, tokens in in_flight:
            work += tokens * (now - max(sent_at, self.began_at)) / max(mean, now - sent_at)
        return Measurement(
            samples=count,
            flights=count / concurrency,
            seconds=now - self.began_at,
            throughput=max(1e-9, work / max(now - self.began_at, 1e-9)),
            latency=mean,
            cv=math.sqrt(variance) / max(mean, 1e-9),
            p95_ratio=capped[min(count - 1, int(0.95 * count))] / max(mean, 1e-9),
        )


def together(measurements: Sequence[Measurement]) -> Measurement:
    """Several epochs at one point as one."""
    count = len(measurements)
    return Measurement(
        samples=sum(each.samples for each in measurements),
        flights=math.fsum(each.flights for each in measurements),
        seconds=math.fsum(each.seconds for each in measurements),
        throughput=math.fsum(each.throughput for each in measurements) / count,
        latency=math.fsum(each.latency for each in measurements) / count,
        cv=math.fsum(each.cv for each in measurements) / count,
        p95_ratio=math.fsum(each.p95_ratio for each in measurements) / count,
    )


def doubt(one: Measurement, other: Measurement) -> float:
    """The standard error of the difference between two ln(throughput); a few samples alone don't tell how they spread."""
    samples = one.samples + other.samples
    cv = math.sqrt((one.samples * one.cv**2 + other.samples * other.cv**2) / samples)
    return math.hypot(replace(one, cv=cv).error, replace(other, cv=cv).error)
