"""How much work one endpoint may have in flight, and in how many requests: the law of this project.

Two numbers are found together under a latency target: `concurrency`, the requests in flight, and `work`, the tokens in
flight, of which a request carries its share. The inner loop spends the latency target: by Little's law the work that gives
a latency is throughput times latency. The outer loop tries one change at a time and keeps what pays: more or less work
(which moves the target), more or fewer requests for the same work. docs/controller.md tells it on one page. No clock, no
I/O; numbers in, numbers out.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.flight import Flight
from era_dagster.control.measure import Measurement, doubt, together
from era_dagster.control.moves import TOLERANCE, on_target, probed, towards_target
from era_dagster.control.point import Judgement, Phase, Point
from era_dagster.control.probes import Probe, ProbeSchedule, gain_wanted
from era_dagster.control.rivals import Rivals
from era_dagster.control.startup import FEWEST_SAMPLES, FIRST_CONCURRENCY, Landing, Startup
from era_dagster.control.target import LatencyTarget
from era_dagster.control.trail import Step

SHORTEST_EPOCH_SECONDS = 0.4
"""However fast the answers come, a judgement waits this long: scheduling noise lives below it."""
MOST_MOVES = 4
"""After so many moves in a row the target is hidden by noise: as good as reached."""
CONFIDENCE = 3.0
"""Standard errors from which a latency is taken for what it is; below, noise takes its share of it."""
LATE_IN_A_ROW = 3
"""So many late requests, and at least half a flight, are news that no epoch's end is waited for."""
REFUSED_SHARE = 0.25
FLIGHT = 8
CEILING_SECONDS = 60.0
"""A quarter of a flight (of at least eight) refused as too many (503): the concurrency is cut, for so long."""


class AdaptiveLimit:
    """The law. `point` is where it stands; requests are told to it by number when they go out and when they end."""

    def __init__(self, ceilings: Ceilings) -> None:
        self._ceilings = ceilings
        self._startup: Startup | None = Startup(ceilings)
        self.point = Point(self._startup.wave.concurrency, 0.0)
        self.item_tokens = 0.0
        self.last: Measurement | None = None
        self._target = LatencyTarget(ceilings)
        self._rivals = Rivals()
        self._most_work = math.inf
        self._most_requests = (ceilings.concurrency, -math.inf)
        self._flight = Flight()
        self._answers: dict[int, tuple[float, float]] = {}
        self._answered_items = 0
        self._moved_at = self._watched_from = -math.inf
        self._refused_share = 0.0
        self._held: list[Measurement] = []
        self._came_from: Step | None = None
        self._moves = 0
        self._probes = ProbeSchedule()
        self._origin = self.point
        self._over = 0
        self._wave_cv = 0.0

    # --- what the gate asks and tells ----------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the law is: in the first waves, holding a point, or trying another."""
        return "start" if self._startup is not None else "hold" if self._probes.running is None else "probe"

    @property
    def most_items(self) -> int:
        """The most texts that any request may hold."""
        return self._ceilings.items

    @property
    def batch_items(self) -> int:
        """The most texts in one request at this point."""
        return max(1, min(self._ceilings.items, round(self._items)))

    @property
    def next_items(self) -> int:
        """The most texts in the next request: sizes differ by one where the work is no whole multiple of the requests."""
        count, items = self._flight.count, self._items
        return max(1, min(self._ceilings.items, math.floor((count + 1) * items) - math.floor(count * items)))

    @property
    def _items(self) -> float:
        return self._startup.wave.items if self._startup is not None else self.point.items(self.item_tokens)

    @property
    def batch_tokens(self) -> float:
        """The tokens of one request at this point; only the ceiling in the first waves, which count texts."""
        return self._ceilings.tokens if self._startup is not None else self.point.work / self.point.concurrency

    def paced(self, now: float, *, by_requests: bool) -> Judgement | None:
        """Only the pace holds requests back: the server is not asked for more, and what it shows is all there is.

        `by_requests`: it counts requests, so that larger ones are the way to more.
        """
        self.reached(now)
        self._flight.epoch.pace = "requests" if by_requests else "items"
        if self._startup is None or not self.item_tokens:
            return None
        self.point = Point(max(FIRST_CONCURRENCY, len(self._flight)), self.point.work)
        return self._land(now, self._startup.paced(self.point.concurrency), None)

    def interrupted(self, now: float) -> None:
        """The server closes the gate for a while: what was seen until now is no measure of what comes after."""
        self._flight.begin(now, settling=self.point.concurrency)
        self._answers = {}
        self._watched_from = now

    @property
    def must_empty(self) -> bool:
        """Whether nothing may be sent until everything has come back: the next wave is measured by itself."""
        early = self._startup is not None and self._startup.alone
        return early and self._flight.sent_before(self._moved_at)

    def reached(self, now: float) -> None:
        """The requests in flight are as many as may be, and more would go."""
        self._flight.reached(now)

    def freed(self, now: float) -> None:
        """A request ended: until `reached` again the sender may be what is slow."""
        self._flight.freed(now)

    def sent(self, now: float, tokens: int) -> int:
        """A request with `tokens` tokens goes out; returns the number under which it ends."""
        return self._flight.sent(now, tokens)

    def forget(self, number: int) -> None:
        """A request ended without vectors, or says nothing about the server any more."""
        self._flight.ended(number)

    def too_large(self, now: float, number: int, *, items: int) -> Judgement | None:
        """A request of `items` texts was refused for its size (413): no request is that large again."""
        self.forget(number)
        if items == 1 or items > 2 * self._ceilings.items:
            return None
        self._ceilings = replace(self._ceilings, items=items // 2)
        if self._startup is not None:
            self._startup.bound(self._ceilings)
            return None
        self._probes.dropped()
        return self._go(now, self._bounded(now, self.point), "the request was too large (413)")

    def overloaded(self, now: float, number: int) -> Judgement | None:
        """A request was refused because too much is waiting (503); a judgement if that cuts the concurrency."""
        known = self._flight.ended(number)
        if known is None or known[0] < self._moved_at:
            return None
        self._refused_share += (1.0 - self._refused_share) / max(self.point.concurrency, FLIGHT)
        if self._refused_share < REFUSED_SHARE or self.point.concurrency == 1 or not self.item_tokens:
            return None
        refused_at = self.point.concurrency
        if self._startup is not None:
            self._startup = None
            self._answers = {}
        self._probes.dropped()
        self._most_requests = (max(1, int(0.9 * refused_at)), now + CEILING_SECONDS)
        fewer = max(1, int(0.7 * refused_at))
        work = max(self.point.work, refused_at * self.item_tokens)
        cut = self._bounded(now, Point(fewer, min(work, fewer * self._ceilings.items * self.item_tokens)))
        return self._go(now, cut, "too many requests waited (503)")

    def succeeded(self, now: float, number: int, *, items: int) -> Judgement | None:
        """A request of `items` texts was answered; a judgement if that ended an epoch."""
        known = self._flight.ended(number)
        if known is None:
            return None
        sent_at, tokens = known
        self._refused_share *= 1.0 - 1.0 / max(self.point.concurrency, FLIGHT)
        self._answered_items += items
        self.item_tokens += max(0.02, items / self._answered_items) * (tokens / items - self.item_tokens)
        alone = self._startup is not None and self._startup.alone
        if alone and sent_at < self._moved_at:
            return None
        if self._startup is None and sent_at >= self._watched_from:
            late = self._target.is_late(now - sent_at, probing=self._probes.running is not None)
            self._over = self._over + 1 if late else 0
            if self._over >= max(LATE_IN_A_ROW, self.point.concurrency // 2):
                hurried = self._hurry(now, now - sent_at)
                if hurried is not None:
                    return hurried
        if not self._flight.settled(now, at_once=alone):
            return None
        epoch = self._flight.epoch
        epoch.add(now, sent_at=sent_at, tokens=tokens)
        if self._startup is not None:
            self._answers[number] = (sent_at, now)
            self._over += now - sent_at > self._startup.too_slow_seconds
            if self._over >= max(4, self.point.concurrency // 8):
                return self._judge_wave(now, self._startup, self._measured(now))
        if len(epoch.latencies) < self._fewest_samples():
            return None
        if not self._flight.was_full(now):
            # The sender was slow: its latencies say nothing about a fuller server.
            self._flight.begin(now)
            self._answers = {}
            return None
        measured = self._measured(now)
        judgement = self._judge(now, measured)
        if judgement is not None:
            self.last = measured
            self._target.saw(measured)
        return judgement

    # --- the law -------------------------------------------------------------------------------------------------

    def _measured(self, now: float) -> Measurement:
        return self._flight.measured(now, self.point.concurrency)

    def _fewest_samples(self) -> int:
        count = self.point.concurrency
        if self._startup is not None:
            return count if self._startup.is_first else max(count, FEWEST_SAMPLES)
        if self._probes.running:
            return max(count, 4)
        # Fewer are enough for the news that everything takes far longer.
        return max(count // 2, 4)

    def _judge(self, now: float, measured: Measurement) -> Judgement | None:
        if self._startup is not None:
            return self._judge_wave(now, self._startup, measured)
        if self._probes.running is not None:
            return self._judge_probe(now, self._probes.running, measured)
        return self._judge_hold(now, measured)

    def _judge_wave(self, now: float, startup: Startup, measured: Measurement) -> Judgement | None:
        if startup.alone or not startup.is_first:
            self._wave_cv = max(self._wave_cv, measured.cv)
        error = max(self._wave_cv, measured.cv) / math.sqrt(measured.samples)
        if self._over < 4 and startup.unclear(measured.latency, error=error, samples=measured.samples):
            return None
        answers = [self._answers[number] for number in sorted(self._answers)]
        self._answers = {}
        landing = startup.answered(measured.latency, answers, error=error)
        if landing is not None:
            return self._land(now, landing, measured)
        wave = startup.wave
        return self._go(now, Point(wave.concurrency, wave.texts * self.item_tokens), startup.reason, measured)

    def _land(self, now: float, landing: Landing, measured: Measurement | None) -> Judgement:
        assert self._startup is not None
        self._target.begin(landing.target_seconds, light_latency=self._startup.fastest)
        light = self._startup.light
        self._startup, self._answers = None, {}
        self._probes.begin(now, check_width=landing.concurrency <= 2)
        wave, work = self.point, (landing.texts or 0) * self.item_tokens
        if not work:
            work = wave.work or wave.concurrency * self.item_tokens
            if measured is not None:
                work *= max(0.5, min(2.0, self._target.seconds / measured.latency))
        judgement = self._go(now, self._bounded(now, Point(landing.concurrency, work)), landing.reason, measured)
        self._rivals.begin(light, (wave.work, measured) if measured and landing.by_work else None)
        if measured is not None and self.point.work > wave.work > 0:
            self._came_from = Step(wave, measured)
        return judgement

    def _judge_hold(self, now: float, measured: Measurement) -> Judgement | None:
        if self._flight.epoch.pace == "requests":
            self._target.paced()
        off = self._off(now, measured)
        samples, c = measured.samples, self.point.concurrency
        enough = samples >= min(60, max(8, 2 * c)) and measured.seconds >= SHORTEST_EPOCH_SECONDS
        far = abs(off) > max(0.4, CONFIDENCE * measured.error) and samples >= max(3 * c // 2, 8)
        slower = off < -0.7 and measured.fastest > 1.3 * math.exp(off) * measured.latency
        if not (enough or far or slower):
            return None
        if self._flight.epoch.pace is None and self._share(now, measured):
            off = self._off(now, measured)
        came_from, self._came_from = self._came_from, None
        undone = self._undo_harm(now, measured, came_from)
        if undone is not None:
            return undone
        if self._probes.urgent:
            self._held = [measured]
            return self._try(now, measured)
        pace = self._flight.epoch.pace
        if abs(off) > TOLERANCE and (self._moves < MOST_MOVES or abs(off) > 0.7):
            latency, tokens = measured.latency, self.item_tokens
            moved = towards_target(self.point, off, latency, self._target, item_tokens=tokens, pace=pace)
            moved = self._below_harm(now, moved)
            if moved != self.point:
                step = Step(self.point, measured)
                self._moves += 1
                judgement = self._go(now, moved, "towards the latency target", measured)
                self._came_from = step if came_from is None else came_from.then(step, moved.work)
                return judgement
        self._moves = 0
        self._held = [*self._held[-2:], measured]
        before = self.point
        fine = on_target(before, off, measured.latency, self._target, item_tokens=self.item_tokens, pace=pace)
        fine = self._below_harm(now, fine)
        judgement = self._try(now, measured)
        if self._probes.running is None:
            self.point, self._came_from = fine, Step(before, measured)
        return judgement

    def _off(self, now: float, measured: Measurement) -> float:
        """How far the latency is from what is aimed at, in ln; of what noise may have done, less."""
        shared = self.point.work / self.item_tokens if self._rivals.shared(now) else None
        off = math.log(self._target.aimed_at(shared) / measured.latency)
        if abs(off) < CONFIDENCE * measured.error:
            off *= TOLERANCE**2 / (TOLERANCE**2 + measured.error**2)
        return off

    def _share(self, now: float, measured: Measurement) -> bool:
        """Look for others at this server; whether there is news of them."""
        target = self._target
        pressed = target.lowest < measured.latency < target.highest
        free = target.may_rise and not target.is_slow_itself and pressed
        news = self._rivals.news(now, self.point.work, measured, raised=target.is_raised, may_rise=free)
        if news == "others took":
            target.others_took()
        return news is not None

    def _undo_harm(self, now: float, measured: Measurement, came_from: Step | None) -> Judgement | None:
        """Growth that cost far more throughput than noise is undone; so is a cut that helped nothing."""
        if came_from is None or self._flight.epoch.pace is not None:
            return None
        gain = came_from.gain(measured)
        if came_from.did_harm(self.point.work, measured):
            # Or it was the server that became slower: then less yet is what keeps the latency.
            fitting = self._target.fitting(self.point.work, measured.latency)
            back = replace(came_from.point, work=min(self._grew_too_far(came_from.point), fitting))
            return self._go(now, self._bounded(now, back), "more work gave less throughput", measured, gain)
        if (self._target.may_rise or self._rivals.shared(now)) and came_from.was_in_vain(self.point.work, measured):
            self._target.less_did_not_help(came_from.measured.latency)
            self._rivals.alone()
            return self._go(now, came_from.point, "less work did not lower the latency", measured, gain)
        return None

    def _try(self, now: float, measured: Measurement) -> Judgement:
        """Start the probe that is due."""
        probe = self._probes.next(now, held=len(self._held))
        if probe is None:
            return self._go(now, self.point, "on target", measured)
        tried = probed(
            probe,
            self.point,
            together(self._held),
            self._target,
            item_tokens=self.item_tokens,
            pace=self._flight.epoch.pace,
            kept_in_a_row=self._probes.kept_in_a_row,
            untried=self._probes.is_untried(probe),
            most_work=self._most_work,
            shared=self._rivals.shared(now),
        )
        tried = self._bounded(now, tried)
        if tried == self.point:
            self._probes.undone(now, probe)
            return self._go(now, self.point, "on target", measured)
        self._probes.started(now, probe)
        self._origin = self.point
        return self._go(now, tried, f"probe {probe}", measured, held=self._held)

    def _judge_probe(self, now: float, probe: Probe, measured: Measurement) -> Judgement | None:
        reference = together(self._held)
        gain = math.log(measured.throughput / reference.throughput)
        noise = doubt(measured, reference)
        threshold = gain_wanted(
            probe,
            step=math.log(self.point.work / self._origin.work),
            latency=measured.latency,
            before=reference.latency,
            lowest=self._ceilings.lowest_latency,
            highest=self._target.highest,
            concurrency=self.point.concurrency,
        )
        samples, c = measured.samples, self.point.concurrency
        enough = samples >= min(120, 6 * c) and measured.seconds >= SHORTEST_EPOCH_SECONDS
        if abs(gain - threshold) < (1.0 if enough else 2.5) * noise and samples < min(240, 12 * c):
            return None
        if gain <= threshold:
            self._probes.undone(now, probe, gain=gain, late=measured.latency > self._ceilings.latency_seconds)
            back = self._back(now, probe, measured.latency)
            return self._go(now, back, f"probe {probe} undone", measured, gain)
        self._probes.kept(now, probe)
        if probe == "up":
            self._target.more_paid(measured.latency)
            if self.point.work > self._most_work:
                clearly = gain > 0.5 * math.log(self.point.work / self._origin.work)
                self._most_work = (2.0 if clearly else 1.0) * self.point.work
        elif probe == "down":
            self._target.less_lost_nothing(measured.latency, before=reference.latency)
            if reference.latency <= 1.2 * self._target.lowest:
                self._most_work = self.point.work
        else:
            self._rivals.wider(gain)
        self._held = [measured]
        return self._go(now, self.point, f"probe {probe} kept", measured, gain)

    def _back(self, now: float, probe: Probe, latency: float) -> Point:
        """Where a probe came from; with less work if that would be as late by now: smaller requests and no more work are
        no reason for it."""
        latency *= self._origin.work / self.point.work
        if probe not in ("down", "wider") or not self._target.is_late(latency, probing=False):
            return self._origin
        return self._bounded(now, replace(self._origin, work=self._target.fitting(self._origin.work, latency)))

    def _hurry(self, now: float, latency: float) -> Judgement | None:
        """Several requests in a row were late: no epoch's end is waited for, unless to see what the last cut did."""
        probe, came_from = self._probes.running, self._came_from
        if probe is not None:
            self._probes.undone(now, probe, late=True)
            return self._go(now, self._back(now, probe, latency), f"probe {probe} given up: requests were late")
        before = self.point
        if (came_from is not None and came_from.point.work > before.work) or not self._flight.epoch.latencies:
            return None
        work = self._target.fitting(before.work, latency)
        if came_from is not None and came_from.point.work < before.work:
            work = min(work, self._grew_too_far(came_from.point))
        less = self._bounded(now, replace(before, work=work))
        if less == before:
            return None
        measured = self._measured(now)
        judgement = self._go(now, less, "requests were late", measured)
        self._came_from = Step(before, measured)
        return judgement

    def _grew_too_far(self, before: Point) -> float:
        """More work was worse: it stays below, and less is tried next. Returns the work to go back to."""
        self._most_work = (1.1 if self.point.work > 1.1 * before.work else 1.0) * before.work
        self._probes.hasten("down")
        return before.work

    def _below_harm(self, now: float, point: Point) -> Point:
        """The point, bounded, and not beyond where growth was harmful."""
        return self._bounded(now, replace(point, work=min(point.work, max(self._most_work, self.point.work))))

    def _bounded(self, now: float, point: Point) -> Point:
        requests, until = self._most_requests
        most_requests = min(self._ceilings.concurrency, requests) if now < until else self._ceilings.concurrency
        return point.bounded(self._ceilings, most_requests=most_requests, item_tokens=self.item_tokens)

    def _go(
        self,
        now: float,
        point: Point,
        reason: str,
        measured: Measurement | None = None,
        gain: float | None = None,
        *,
        held: Sequence[Measurement] = (),
    ) -> Judgement:
        """End the epoch; the next one is at `point`. `held`: what a probe will be compared with."""
        if point != self.point or self._startup is not None:
            self._flight.begin(now, settling=max(point.concurrency, len(self._flight)))
            self._moved_at = self._watched_from = now
            self._over = 0
            self._held = list(held)
            self._came_from = None
        else:
            self._flight.begin(now)
        self.point = point
        self._refused_share = 0.0
        return Judgement(
            phase=self.phase, reason=reason, measured=measured, target_seconds=self._target.seconds, gain=gain
        )
