"""The mean latency aimed at: from what costs nobody anything up to the most that keeps the 95th percentile in time.

It is raised where more work paid, or where less did not help, and lowered where less work lost nothing. No clock, no I/O.
"""

import math

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.measure import Measurement

USUAL_P95_RATIO = 1.2
"""The 95th percentile of requests over their mean, before any was seen."""
P95_MARGIN = 0.92
"""The share of the latency target that the 95th percentile is held to: it is learnt, and moves."""
LEARNING_RATE = 0.1
CLEARLY_LESS = 0.95
"""The highest latency moves with the tail that is learnt: what was raised to it is not raised again for that."""
UNLOADED, ALMOST_UNLOADED = 1.1, 1.4
"""However slow a server is: no latency is aimed at below so many times what a light load takes, and none has to be, since
then there is little left that waits."""
BY_CHANCE = 0.25
"""A few answers that took less than this share of the lowest latency were not quick by chance."""
LIGHT_SAMPLES = 16
"""What was seen before of a light load counts for as many answers."""
SMALLEST_SHARE = 0.25
"""What one epoch leaves of the work at least."""
FEW_ITEMS = 4.0
EVENNESS = 0.16
"""Where others share the server: up to four texts in flight the highest latency, and by this power of them less, so that it
is the lowest at about a thousand."""
LATE = 2.0
"""A request is late at so many times the latency aimed at; at more, in proportion, while a probe has more under way."""
LONG_TAIL = 1.5
"""The 95th percentile over the mean from which the tail alone is late now and then: beyond, it takes as much more."""


class LatencyTarget:
    """`seconds` is what is aimed at, the mean latency of requests."""

    def __init__(self, ceilings: Ceilings) -> None:
        self._ceilings = ceilings
        self.seconds = ceilings.lowest_latency
        self._light_latency = 0.0
        self._p95_ratio = USUAL_P95_RATIO

    @property
    def lowest(self) -> float:
        """Up to this mean latency a queue costs nobody anything; less is not to be had where a light load takes as long."""
        unloaded = min(UNLOADED * self._light_latency, self._ceilings.highest_latency)
        return max(self._ceilings.lowest_latency, unloaded)

    @property
    def highest(self) -> float:
        """The most mean latency that keeps the 95th percentile under its target, or that of a server on which little waits,
        where that is more."""
        return max(self._in_time, ALMOST_UNLOADED * self._light_latency)

    @property
    def _in_time(self) -> float:
        return min(self._ceilings.highest_latency, P95_MARGIN * self._ceilings.latency_seconds / self._p95_ratio)

    @property
    def is_slow_itself(self) -> bool:
        """Whether even a light load takes so long that the latency target is no measure."""
        return self._light_latency > self._in_time / 2.0

    def aimed_at(self, shared_items: float | None = None) -> float:
        """`seconds`, but no less than `lowest` and no more than `highest`.

        `shared_items`: the texts in flight, where others share the server. Then the more of them there are, the shorter
        the latency: whoever has less aims higher, so that shares become equal (flow scaling of Swift, Kumar et al. 2020).
        """
        most = self.highest
        if shared_items is not None:
            most = max(self.lowest, most * _evenness(shared_items))
        return min(max(self.seconds, self.lowest), most)

    def fair(self, items: float) -> float:
        """Where all clients know of each other: with so many texts in flight each aims at the same, whatever it has learnt;
        a light load that took little was perhaps another client's already."""
        usual = P95_MARGIN * self._ceilings.latency_seconds / USUAL_P95_RATIO
        if self._light_latency > self._ceilings.highest_latency:
            return self.aimed_at(items)
        return max(self._ceilings.lowest_latency, usual * _evenness(items))

    @property
    def is_raised(self) -> bool:
        """Whether more than the lowest latency is aimed at."""
        return self.seconds > self.lowest

    @property
    def is_at_highest(self) -> bool:
        """Whether as long a latency is aimed at as keeps the 95th percentile in time."""
        return self.seconds >= CLEARLY_LESS * self.highest

    @property
    def may_rise(self) -> bool:
        """Whether a clearly longer latency may be aimed at."""
        return self.is_slow_itself or not self.is_at_highest

    def allows_another(self, latency: float, items: float) -> bool:
        """Whether one more in a request of `items` texts that takes `latency` would keep the latency target: texts are whole.
        It takes as long as the others did at most, and no longer than the lightest request."""
        longer = min(latency / max(items, 1.0), self._light_latency)
        return (latency + longer) * self._p95_ratio < 1.05 * USUAL_P95_RATIO * self._ceilings.latency_seconds

    def begin(self, seconds: float, *, light_latency: float) -> None:
        """The first waves are over. `light_latency`: what a request took when there was little in flight, infinite if
        that was not seen."""
        self.seconds = seconds
        self._light_latency = light_latency if math.isfinite(light_latency) else 0.0

    def saw(self, measured: Measurement) -> None:
        """An epoch has ended: what its tail says about the 95th percentile."""
        self._p95_ratio += LEARNING_RATE * (measured.p95_ratio - self._p95_ratio)

    def waits_for_nothing(self, latency: float) -> None:
        """Requests that took so long, on the mean, waited for nothing: as long as that does the service itself take."""
        self._light_latency = max(self._light_latency, latency)

    def took_when_light(self, latency: float, *, samples: int) -> None:
        """What a light load takes, seen again: the first waves saw it in few answers, which may have been quick by chance.

        Where they were quicker than chance makes them, it is others that make them slower now; and what others may make
        slower is no reason to aim at more than the latency target.
        """
        if self._light_latency < BY_CHANCE * self.lowest:
            return
        light = self._light_latency + samples / (samples + LIGHT_SAMPLES) * (latency - self._light_latency)
        self._light_latency = min(light, max(self._light_latency, self._in_time / ALMOST_UNLOADED))

    def paced(self) -> None:
        """A pace holds requests back, and nothing queues: all of the latency may be spent."""
        self.seconds = max(self.seconds, self.highest)

    def others_took(self) -> None:
        """The same work takes longer, because others have more under way: up to the highest latency, so may we."""
        self.seconds = max(self.seconds, self.highest)

    def more_paid(self, latency: float) -> None:
        """More work was worth the `latency` it took; above the lowest target whatever comes next is judged up to the highest."""
        self.seconds = max(self.seconds, latency, self.highest if latency > self.lowest else 0.0)

    def less_lost_nothing(self, latency: float, *, before: float) -> None:
        """Less work gave as much at this `latency`; `before` is what it was."""
        if before > 1.2 * self.lowest:
            self.seconds = max(self.lowest, min(self.seconds, latency))

    def less_did_not_help(self) -> None:
        """The work was cut, and requests took as long: it is the service itself, or a rival took what was given up."""
        self.seconds = max(self.seconds, self.highest)

    def fitting(self, work: float, latency: float) -> float:
        """Less work, as `latency` asks for by Little's law."""
        return work * max(SMALLEST_SHARE, min(1.0, self.aimed_at() / latency))

    def is_late(self, latency: float, *, growth: float = 1.0) -> bool:
        """Whether one request took longer than noise, its usual tail, and work that grew so many times, explain."""
        latency /= max(1.0, self._p95_ratio / LONG_TAIL)
        return latency > LATE * growth * max(self.seconds, self.lowest)


def _evenness(items: float) -> float:
    """The share of the highest latency that is aimed at with so many texts in flight, where others share the server."""
    return max(1.0, items / FEW_ITEMS) ** -EVENNESS
