"""Whether others share the server: it answers as one of our own would not. No clock of its own, no I/O.

A server of one's own takes what a light load takes, and more in proportion to the work in flight. Where the same work takes
longer, others have more under way; where more work takes less than that, others have less, and gave way.
"""

import math
from dataclasses import replace
from typing import Literal

from era_dagster.control.measure import Measurement
from era_dagster.control.point import Point

CLEARLY = 0.2
"""In ln(latency), and three standard errors: what differs by less is not news."""
QUEUES = 1.1
"""A latency up to this many times that of a light load does not show how it grows with the work."""
LESS, MORE = 0.7, 1.05
"""The work is about the same. After a large cut it is not said what others do: it was a large change that asked for it."""
FARTHEST = 3.0
"""Growth of the work beyond which what it would take is not reckoned any further: the reference's noise grows with it."""
RESHAPED_GAIN = 0.2
"""The same work in more requests, or in fewer, that gained more ln(throughput): the server can do more than was seen."""
SHARED_SECONDS = 60.0
"""So long after others gave way the server counts as shared."""

News = Literal["others took", "others gave way"] | None


class Rivals:
    """What a server of one's own would take is known from one `reference`: work in tokens, and what was measured there."""

    def __init__(self) -> None:
        self._light = 0.0
        self._reference: tuple[Point, Measurement] | None = None
        self._shared_until = -math.inf
        self.known = False
        """Whether clients of the same law are there for certain: they have told of themselves."""

    def begin(self, light_latency: float, reference: tuple[Point, Measurement] | None) -> None:
        """The first waves are over. `light_latency`: the mean, in seconds, of a wave with little in flight."""
        self._light = light_latency if math.isfinite(light_latency) else 0.0
        self._reference = reference

    def shared(self, now: float) -> bool:
        """Whether others gave way not long ago."""
        return now < self._shared_until

    def alone(self) -> None:
        """Giving way did not help: from now on nobody does, until there is news."""
        self._reference, self._shared_until = None, -math.inf

    def reshaped(self, gain: float) -> None:
        """The same work in more requests, or in fewer, gained ln(throughput)."""
        if self._reference is not None and gain > RESHAPED_GAIN:
            point, measured = self._reference
            self._reference = replace(point, work=point.work * math.exp(gain)), measured

    def news(self, now: float, point: Point, measured: Measurement, *, raised: bool, may_rise: bool) -> News:
        """What was `measured` at `point` tells; `raised`: more than the lowest latency is aimed at."""
        light = self._light * (1.0 + measured.cv)
        if self._reference is None or self._reference[1].latency < QUEUES * light:
            self._reference = point, measured
            return None
        then, before = self._reference
        growth = point.work / then.work
        # Where slots are free a request waits for its own texts only: more work in more requests need not take longer.
        least = min(FARTHEST, growth, growth * then.concurrency / point.concurrency)
        alone, at_least = (light + (before.latency - light) * each for each in (growth, least))
        sure = max(CLEARLY, 3.0 * math.hypot(measured.error, before.error))
        if math.log(measured.latency / alone) > sure and LESS < growth < MORE and may_rise:
            self._reference = point, measured
            return "others took"
        if math.log(measured.latency / at_least) < -sure and growth > 1.0 and raised:
            self._shared_until = now + SHARED_SECONDS
            return "others gave way"
        if not raised:
            self._reference = point, measured
        return None
