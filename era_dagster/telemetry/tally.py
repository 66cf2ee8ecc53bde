"""What a run counts in memory until somebody takes it: sums by metric, labels and histogram bucket. Any thread may count.

Only what is new since the last `take` is held, so that the figures of many runs can be added up where they are stored.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from era_dagster.telemetry.catalogue import Metric

PLAIN, SUM, OVER = "", "sum", "+Inf"
"""The part of a counter; of a histogram: the sum of what was observed, and what lies over the last bound."""


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """One number that is added up: of a counter its value, of a histogram one bucket alone (`part` is its upper bound) or
    the sum. `labels` are values, in the order of the metric's label names."""

    metric: str
    labels: tuple[str, ...] = ()
    part: str = PLAIN


class Tally:
    """Counts since the last `take`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new: dict[Part, float] = {}

    def add(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Count `by` more; 0 changes nothing."""
        self.add_all([(Part(metric.name, labels), by)])

    def observe(self, metric: Metric, *labels: str, value: float) -> None:
        """Put one value into a histogram."""
        place = bisect_left(metric.buckets, value)
        bucket = f"{metric.buckets[place]:g}" if place < len(metric.buckets) else OVER
        self.add_all([(Part(metric.name, labels, bucket), 1.0), (Part(metric.name, labels, SUM), value)])

    def add_all(self, parts: Iterable[tuple[Part, float]]) -> None:
        """Count several at once."""
        with self._lock:
            for part, by in parts:
                if by:
                    self._new[part] = self._new.get(part, 0.0) + by

    def take(self) -> Mapping[Part, float]:
        """What was counted since the last call; it is the caller's now."""
        with self._lock:
            taken, self._new = self._new, {}
        return taken
