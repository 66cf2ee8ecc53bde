"""The first waves: how a controller comes from knowing nothing to a point worth refining, in a second or two.

A few single texts first, twice unless the first time is clear: connections are opened, and a model may be loading. Answers
that come one by one, evenly, are those of a serial server. Else requests grow while that raises throughput, and only when it
does not, their number. By Little's law throughput is the work in flight over its latency, so that latency alone decides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from era_dagster.control.ceilings import PRICE, Ceilings

FIRST_CONCURRENCY = 4
COLD_SECONDS = 1.0
ALIKE = 1.3
"""First answers that take longer than this, or differ by more than this, may tell of connections and loading."""
SERIAL_SHARE = 0.5
CERTAIN = 1.25
LIKELY = 2.0
"""Gaps as even as the first are a serial server's; up to the second they may be chance, and the wave is repeated."""
FREE = 0.8
"""An elasticity of throughput from here on means that nothing queues yet: the next wave is four times as large."""
TOGETHER = 1.1
"""Answers that differ by no more than this may come from one step of a batching engine."""
STEPS_SHARE = 0.5
"""Of the highest mean latency: where single texts take longer because they wait for a step, one request at a time is better."""
ENOUGH_TEXTS = 64
"""Where a request may hold fewer, several that go together and wait for each other's steps bring more, though later."""
LEAST_GROWTH = 1.5
WORTH_IT = 0.5
"""Growth goes on while doubling the work raises throughput by at least the square root of two."""

CONFIDENCE = 1.5
"""Standard errors by which an elasticity must differ from `WORTH_IT` to be believed."""
PRECISE = 0.2
"""The standard error of ln(latency) up to which a wave can be compared with the next at all."""
FLIGHTS = 4
FEWEST_SAMPLES = 6
"""A wave has at least so many answers, and where noise hides what it shows, up to so many flights of them; half as many
while requests grow, since what cannot be told there is taken for growth in number."""


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
    """Where the waves end: the concurrency to go on with, the latency (seconds) to aim at, the texts in flight if a wave
    has shown how many are best. `by_work`: it was the work that saturated the server, not the number of requests. `by_step`:
    one request at a time, since a second one waits for a step of the first."""

    concurrency: int
    target_seconds: float
    reason: str
    texts: int | None = None
    by_work: bool = False
    by_step: bool = False


class Startup:
    """`wave` is what to send; `answered` judges it and changes it, or lands. `alone`: nothing else may be under way."""

    def __init__(self, ceilings: Ceilings) -> None:
        self._ceilings = ceilings
        self.wave = Wave(min(FIRST_CONCURRENCY, ceilings.concurrency), 1)
        self.reason = "first wave"
        self._before: tuple[Wave, float, float] | None = None
        self._larger = True
        self._widened = False
        self._fastest = math.inf
        self.light = math.inf
        """The mean latency, in seconds, of the wave that was answered most quickly."""
        self.light_wave = Wave(1, 1)
        """That wave."""
        self.alone = False
        self._by_step, self._may_be_by_step = False, True
        self._best: tuple[Wave, float] | None = None

    @property
    def is_first(self) -> bool:
        """Whether the wave under way is the first."""
        return self._before is None

    @property
    def too_slow_seconds(self) -> float:
        """A latency that ends the wave under way, before all of it has come back."""
        before = math.inf if self._before is None else self._before[1]
        return max(self._ceilings.highest_latency, 1.3 * before)

    def ended(self, concurrency: int, reason: str) -> Landing:
        """Something else is the limit: there is nothing to learn from waves."""
        return self._land(concurrency, 0.0, reason)

    @property
    def fastest(self) -> float:
        """The latency under a light load, in seconds."""
        return self._fastest

    def bound(self, ceilings: Ceilings) -> None:
        """From now on keep to other ceilings."""
        self._ceilings = ceilings
        self.wave = Wave(min(self.wave.concurrency, ceilings.concurrency), min(self.wave.items, ceilings.items))

    def unclear(self, latency_seconds: float, *, error: float, samples: int) -> bool:
        """Whether noise may hide if more work gave more: the wave goes on until it can be told, or for `FLIGHTS`.

        `error`: the standard error of ln(latency) over `samples` answers.
        """
        flights = FLIGHTS // 2 if self._larger and self._before is not None else FLIGHTS
        if samples >= flights * max(self.wave.concurrency, FEWEST_SAMPLES):
            return False
        if self._before is not None and self.wave.texts <= self._before[0].texts:
            return False
        if error > PRECISE or self._before is None:
            return error > PRECISE
        elasticity, doubt = self._elasticity(self._before, latency_seconds, error)
        return abs(elasticity - WORTH_IT) < doubt

    def _elasticity(
        self, before: tuple[Wave, float, float], latency_seconds: float, error: float
    ) -> tuple[float, float]:
        """That of throughput, from the wave before to this one, and how far it may be off."""
        wave, latency_before, error_before = before
        step = math.log(self.wave.texts / wave.texts)
        return 1.0 - math.log(latency_seconds / latency_before) / step, CONFIDENCE * math.hypot(
            error, error_before
        ) / step

    def answered(
        self, latency_seconds: float, answers: Sequence[tuple[float, float]], *, error: float = 0.0
    ) -> Landing | None:
        """A wave came back with this mean latency; `answers` are (sent at, done at) in the order of sending."""
        factor = 2.0
        if self._before is None:
            first = min(done - sent for sent, done in answers)
            unevenness = _one_by_one(answers)
            if unevenness < CERTAIN or (unevenness < LIKELY and self.alone):
                # A second request only waits; where waiting alone misses the target, it is not worth its gap.
                waits = 2.0 * first > self._ceilings.latency_seconds
                self._fastest = self.light = first
                concurrency = 1 if waits else 2
                reason = "answers came one by one: the server is serial"
                return self._land(concurrency, concurrency * first, reason, texts=1 if waits else None)
            slow = self._may_be_by_step and latency_seconds > STEPS_SHARE * self._ceilings.highest_latency
            if self.alone and slow and _in_two_steps(answers):
                self.alone, self._by_step = False, True
                self._fastest = self.light = first
                self._before = Wave(1, 1), first, error
                self.wave = Wave(1, min(FIRST_CONCURRENCY, self._ceilings.items))
                self.reason = "it works step by step, and to wait for one takes too long"
                return None
            last = max(done - sent for sent, done in answers)
            if not self.alone and (last > ALIKE * first or first > COLD_SECONDS or unevenness < LIKELY):
                self.alone = True
                self.reason = "the first answers paid for connections, and for a model that was loading"
                return None
            self.alone = False
            self._fastest = first
            if latency_seconds < self._ceilings.lowest_latency / 2.0 and last <= ALIKE * first:
                factor = 4.0
        self._fastest = min(self._fastest, latency_seconds)
        if latency_seconds < self.light:
            self.light, self.light_wave = latency_seconds, self.wave
        self._remember(latency_seconds)
        if self._before is not None:
            wave, before, _ = self._before
            if self.wave.texts <= wave.texts:
                # No larger requests are taken: this one tells nothing against the one before, and more of them come next.
                return self._grow(1.0 if self._by_step else 2.0, latency_seconds, error)
            step = math.log(self.wave.texts / wave.texts)
            elasticity, doubt = self._elasticity(self._before, latency_seconds, error)
            # What cannot be told is taken for growth in number: the next wave, with more answers, will tell.
            worth_it = elasticity >= WORTH_IT - (0.0 if self._larger else doubt)
            full = latency_seconds > max(self._ceilings.highest_latency, 1.3 * self._fastest)
            if self._by_step and (full or not worth_it):
                reason = f"one request at a time, e = {elasticity:.2f}"
                return self._land(1, min(before, latency_seconds), reason, texts=(wave if full else self.wave).texts)
            if not self._larger and (full or not worth_it):
                wide = math.ceil(wave.concurrency * math.exp(step * max(0.0, min(1.0, elasticity))))
                if self._best is not None and self._best[0].texts > self.wave.texts:
                    best, spent = self._best
                    reason = f"as good as it got, e = {elasticity:.2f}"
                    return self._land(best.concurrency, spent, reason, texts=best.texts, by_work=not self._widened)
                spent = latency_seconds if elasticity >= PRICE else before
                return self._land(wide, spent, f"saturated, e = {elasticity:.2f}", by_work=not self._widened)
            if full or not worth_it:
                self._larger = False
                if wave.concurrency == self._ceilings.concurrency:
                    return self._land(wave.concurrency, latency_seconds if full else 0.0, "at the ceiling")
                self.wave = Wave(min(2 * wave.concurrency, self._ceilings.concurrency), wave.items)
                self.reason = f"larger requests bought nothing, e = {elasticity:.2f}"
                return None
            self._widened = not self._larger
            idle = latency_seconds < max(self._ceilings.lowest_latency / 2.0, 1.15 * self._fastest)
            factor = 4.0 if elasticity > FREE and idle else 2.0
            if elasticity < FREE:
                # If it is saturated by now, the latency will grow with the work: little more than the target is risked.
                factor = min(factor, max(LEAST_GROWTH, self._ceilings.highest_latency / latency_seconds))
        return self._grow(factor, latency_seconds, error)

    def _remember(self, latency_seconds: float) -> None:
        """The wave with the highest throughput that keeps the latency target; more work must be worth its waiting."""
        if latency_seconds > self._ceilings.highest_latency:
            return
        if self._best is not None:
            best, latency = self._best
            step = math.log(self.wave.texts / best.texts)
            if step - math.log(latency_seconds / latency) <= PRICE * step:
                return
        self._best = self.wave, latency_seconds

    def _grow(self, factor: float, latency_seconds: float, error: float) -> Landing | None:
        wave = self.wave
        items = min(max(wave.items + 1, int(factor * wave.items)), self._ceilings.items)
        if self._by_step and items <= wave.items:
            if items >= ENOUGH_TEXTS:
                return self._land(1, latency_seconds, "one request at a time, at the ceiling", texts=wave.texts)
            self._by_step, self._may_be_by_step, self._before, self.alone = False, False, None, True
            self._fastest, self.light, self._best = math.inf, math.inf, None
            self.wave = Wave(min(FIRST_CONCURRENCY, self._ceilings.concurrency), 1)
            self.reason = "no request may be large enough to go alone"
            return None
        if self._larger and items > wave.items:
            grown = Wave(wave.concurrency, items)
        else:
            self._larger = False
            wider = max(wave.concurrency + 1, int(factor * wave.concurrency))
            grown = Wave(min(wider, self._ceilings.concurrency), wave.items)
        if grown == wave:
            return self._land(wave.concurrency, 0.0, "at the ceiling")
        self._before, self.wave, self.reason = (wave, latency_seconds, error), grown, "more work, more throughput"
        return None

    def _land(
        self,
        concurrency: int,
        latency_seconds: float,
        reason: str,
        *,
        texts: int | None = None,
        by_work: bool = False,
    ) -> Landing:
        low, high = self._ceilings.lowest_latency, self._ceilings.highest_latency
        target = max(low, min(high, 1.5 * self._fastest), min(high, latency_seconds))
        if high < self._fastest < math.inf:
            target = 1.2 * self._fastest
        elif self._fastest == math.inf:
            target = low
        concurrency = min(concurrency, self._ceilings.concurrency)
        return Landing(
            concurrency=concurrency,
            target_seconds=target,
            reason=reason,
            texts=texts,
            by_work=by_work,
            by_step=self._by_step,
        )


def _one_by_one(answers: Sequence[tuple[float, float]]) -> float:
    """How unevenly the answers of a serial server came: the largest gap over the mean one; infinite for another server.

    The gaps tell, not the first answer: it pays for the connection as well.
    """
    if len(answers) < 3:
        return math.inf
    gaps = [other[1] - one[1] for one, other in pairwise(answers)]
    span, last = math.fsum(gaps), answers[-1][1] - answers[-1][0]
    if min(gaps) < 0.0 or span < SERIAL_SHARE * last or span == 0.0:
        return math.inf
    return max(gaps) * len(gaps) / span


def _in_two_steps(answers: Sequence[tuple[float, float]]) -> bool:
    """Whether one was answered after a step of its own, and all others together after the next: a batching engine's steps."""
    first, *others = sorted(done - sent for sent, done in answers)
    return len(others) > 1 and others[-1] <= TOGETHER * others[0] and others[0] >= ALIKE * first
