"""The first waves: how a controller comes from knowing nothing to a point worth refining, in a second or two.

A few single texts first, told apart by how their answers come: one by one (a serial server), all at once (a parallel one),
or late and together (a model that was still loading). Then requests grow while that raises throughput, and only when it
does not, their number. By Little's law throughput is the work in flight over its latency, so that latency alone decides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from era_dagster.control.ceilings import PRICE, Ceilings

FIRST_CONCURRENCY = 4
COLD_SECONDS = 1.0
"""First answers that take longer than this, and come together, waited for the model."""
SERIAL_SHARE = 0.5
FREE = 0.8
"""An elasticity of throughput from here on means that nothing queues yet: the next wave is four times as large."""
LEAST_GROWTH = 1.5
WORTH_IT = 0.5
"""Growth goes on while doubling the work raises throughput by at least the square root of two."""


@dataclass(frozen=True, slots=True)
class Wave:
    """`concurrency` requests of `items` texts each."""

    concurrency: int
    items: int

    @property
    def texts(self) -> int:
        """Texts in flight."""
        return self.concurrency * self.items


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """Where the waves end: the last useful wave, the concurrency to go on with, the latency (seconds) to aim at."""

    concurrency: int
    target_seconds: float
    reason: str


class Startup:
    """`wave` is what to send; `answered` judges it and changes it, or lands."""

    def __init__(self, ceilings: Ceilings) -> None:
        self._ceilings = ceilings
        self.wave = Wave(min(FIRST_CONCURRENCY, ceilings.concurrency), 1)
        self.reason = "first wave"
        self._before: tuple[Wave, float] | None = None
        self._larger = True
        self._fastest = math.inf
        self._forgave_cold = False

    @property
    def is_first(self) -> bool:
        """Whether the wave under way is the first."""
        return self._before is None

    @property
    def too_slow_seconds(self) -> float:
        """A latency that ends the wave under way, before all of it has come back."""
        before = math.inf if self._before is None else self._before[1]
        return max(self._ceilings.highest_latency, 1.3 * before)

    def paced(self, concurrency: int) -> Landing:
        """Somebody else sets the pace: there is nothing to learn from waves."""
        return self._land(concurrency, 0.0, "the pace is the limit")

    @property
    def fastest(self) -> float:
        """The latency under a light load, in seconds."""
        return self._fastest

    def bound(self, ceilings: Ceilings) -> None:
        """From now on keep to other ceilings."""
        self._ceilings = ceilings
        self.wave = Wave(min(self.wave.concurrency, ceilings.concurrency), min(self.wave.items, ceilings.items))

    def answered(self, latency_seconds: float, answers: Sequence[tuple[float, float]]) -> Landing | None:
        """A wave came back with this mean latency; `answers` are (sent at, done at) in the order of sending."""
        if self._before is None:
            first = min(done - sent for sent, done in answers)
            last = max(done - sent for sent, done in answers)
            if not self._forgave_cold and first > COLD_SECONDS and first > 0.5 * last:
                self._forgave_cold = True
                self.reason = "the first answers waited for the model"
                return None
            self._fastest = first
            if _one_by_one(answers):
                # A second request only waits; where waiting alone misses the target, it is not worth its gap.
                waits = 2.0 * first > self._ceilings.latency_seconds
                return self._land(1 if waits else 2, first, "answers came one by one: the server is serial")
        self._fastest = min(self._fastest, latency_seconds)
        factor = 2.0
        if self._before is not None:
            wave, before = self._before
            if self.wave.texts <= wave.texts:
                return self._land(self.wave.concurrency, 0.0, "at the ceiling")
            step = math.log(self.wave.texts / wave.texts)
            elasticity = 1.0 - math.log(latency_seconds / before) / step
            full = latency_seconds > max(self._ceilings.highest_latency, 1.3 * self._fastest)
            if not self._larger and (full or elasticity < WORTH_IT):
                wide = math.ceil(wave.concurrency * math.exp(step * max(0.0, min(1.0, elasticity))))
                spent = latency_seconds if elasticity >= PRICE else before
                return self._land(wide, spent, f"saturated, e = {elasticity:.2f}")
            if full or elasticity < WORTH_IT:
                self._larger = False
                if wave.concurrency == self._ceilings.concurrency:
                    return self._land(wave.concurrency, latency_seconds if full else 0.0, "at the ceiling")
                self.wave = Wave(min(2 * wave.concurrency, self._ceilings.concurrency), wave.items)
                self.reason = f"larger requests bought nothing, e = {elasticity:.2f}"
                return None
            idle = latency_seconds < max(self._ceilings.lowest_latency / 2.0, 1.15 * self._fastest)
            factor = 4.0 if elasticity > FREE and idle else 2.0
            if elasticity < FREE:
                # If it is saturated by now, the latency will grow with the work: little more than the target is risked.
                factor = min(factor, max(LEAST_GROWTH, self._ceilings.highest_latency / latency_seconds))
        return self._grow(factor, latency_seconds)

    def _grow(self, factor: float, latency_seconds: float) -> Landing | None:
        wave = self.wave
        items = min(max(wave.items + 1, int(factor * wave.items)), self._ceilings.items)
        if self._larger and items > wave.items:
            grown = Wave(wave.concurrency, items)
        else:
            self._larger = False
            wider = max(wave.concurrency + 1, int(factor * wave.concurrency))
            grown = Wave(min(wider, self._ceilings.concurrency), wave.items)
        if grown == wave:
            return self._land(wave.concurrency, 0.0, "at the ceiling")
        self._before, self.wave, self.reason = (wave, latency_seconds), grown, "more work, more throughput"
        return None

    def _land(self, concurrency: int, latency_seconds: float, reason: str) -> Landing:
        low, high = self._ceilings.lowest_latency, self._ceilings.highest_latency
        target = max(low, min(high, 1.5 * self._fastest), min(high, latency_seconds))
        if high < self._fastest < math.inf:
            target = 1.2 * self._fastest
        elif self._fastest == math.inf:
            target = low
        return Landing(concurrency=min(concurrency, self._ceilings.concurrency), target_seconds=target, reason=reason)


def _one_by_one(answers: Sequence[tuple[float, float]]) -> bool:
    """Whether the answers came in the order of sending, evenly spread over the time that the last one took.

    The gaps tell, not the first answer: it pays for the connection as well.
    """
    if len(answers) < 3:
        return False
    gaps = [other[1] - one[1] for one, other in pairwise(answers)]
    span, last = sum(gaps), answers[-1][1] - answers[-1][0]
    return min(gaps) >= 0.0 and span >= SERIAL_SHARE * last and max(gaps) <= 2.0 * span / len(gaps)
