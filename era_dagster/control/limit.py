"""How much work one endpoint may have in flight, and in how many requests: the law of this project.

Two numbers are found together under a latency target: `concurrency`, the requests in flight, and `work`, the tokens in
flight, of which a request carries its share. Here requests are followed and epochs measured; `startup` finds where to
begin, and `course` where to go on. docs/controller.md tells it on one page. No clock, no I/O; numbers in, numbers out.
"""

import math
from dataclasses import replace

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.course import Course, Move, Situation
from era_dagster.control.drain import Drain
from era_dagster.control.flight import Flight
from era_dagster.control.measure import Measurement
from era_dagster.control.moves import Pace
from era_dagster.control.point import Judgement, Phase, Point
from era_dagster.control.room import Inside, Largest, Room
from era_dagster.control.startup import FEWEST_SAMPLES, FIRST_CONCURRENCY, Landing, Startup
from era_dagster.control.trail import Step

LATE_IN_A_ROW = 3
"""So many late requests, and at least half a flight, are news that no epoch's end is waited for; the last is answered,
those that are under way still may be among them."""
REFUSED_SHARE = 0.25
FEWEST_REFUSED_AMONG = 16
"""A quarter of two flights (of sixteen requests at least) refused with 503 is news; less may be chance."""


class AdaptiveLimit:
    """The law. `point` is where it stands; requests are told to it by number when they go out and when they end."""

    def __init__(self, ceilings: Ceilings) -> None:
        self._ceilings = ceilings
        self._startup: Startup | None = Startup(ceilings)
        self.point = Point(self._startup.wave.concurrency, 0.0)
        self.item_tokens = 0.0
        self.last: Measurement | None = None
        self._course = Course(ceilings)
        self._room = Room()
        self._most_items, self._largest = ceilings.items, Largest()
        self._before_refusals = 0
        self._waves_cut_short = False
        self._flight = Flight()
        self._answers: dict[int, tuple[float, float]] = {}
        self._answered_items = 0
        self._moved_at = self._watched_from = -math.inf
        self._refused_share = 0.0
        self._over = 0
        self._drain: Drain | None = None
        self._pace: Pace = None
        self._wave_cv = 0.0

    # --- what the gate asks and tells ----------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the law is: in the first waves, holding a point, or trying another."""
        return "start" if self._startup is not None else "probe" if self._course.is_probing else "hold"

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

    def told_of_others(self, *, present: bool) -> None:
        """Whether clients that follow the same law share the server, by their own word."""
        self._course.told_of_others(present=present)

    def paced(self, now: float, *, by_requests: bool) -> Judgement | None:
        """Only the pace holds requests back: the server is not asked for more, and what it shows is all there is.

        `by_requests`: it counts requests, so that larger ones are the way to more.
        """
        self.reached(now)
        self._flight.epoch.pace = self._pace = "requests" if by_requests else "items"
        if self._startup is None or not self.item_tokens:
            return None
        self.point = Point(max(FIRST_CONCURRENCY, len(self._flight)), self.point.work)
        return self._land(now, self._startup.ended(self.point.concurrency, "the pace is the limit"), None)

    def interrupted(self, now: float) -> None:
        """The server closes the gate for a while: what was seen until now is no measure of what comes after."""
        self._flight.begin(now, settling=self.point.concurrency)
        self._answers, self._drain = {}, None
        self._watched_from = now

    @property
    def must_empty(self) -> bool:
        """Whether nothing may be sent until everything has come back: the next wave is measured by itself."""
        early = self._startup is not None and self._startup.alone
        return early and self._flight.sent_before(self._moved_at)

    @property
    def expected_latency(self) -> float:
        """What a request takes, in seconds, as far as it was seen; infinite before anything was."""
        if self.last is None:
            return math.inf
        return self.last.latency if self._drain is None else max(self.last.latency, self._drain.latency)

    @property
    def must_drain(self) -> bool:
        """Whether nothing may be sent, unless nothing is under way: more is than the server takes."""
        return self._drain is not None

    def room(self, now: float) -> float:
        """The most texts that one more request may hold, as far as the server was seen to be full; none if it may not go."""
        if len(self._flight) >= self._room.most("requests", now):
            return 0
        return self._room.most("texts", now) - self._flight.texts

    def reached(self, now: float) -> None:
        """The requests in flight are as many as may be, and more would go."""
        self._flight.reached(now)

    def freed(self, now: float) -> None:
        """A request ended: until `reached` again the sender may be what is slow."""
        self._flight.freed(now)

    def sent(self, now: float, tokens: int, *, items: int, in_parts: bool = False) -> int:
        """A request of `items` texts goes out; returns the number under which it ends. `in_parts`: twice as many might have gone,
        but for what became of these."""
        return self._flight.sent(now, items, tokens, in_parts=in_parts)

    def forget(self, number: int) -> None:
        """A request ended without vectors, or says nothing about the server any more."""
        self._flight.ended(number)

    def turned_away(self, now: float, number: int) -> None:
        """A request was refused, of which no more is to be known than that it never was inside."""
        self._flight.refused(now, number)

    def too_large(self, now: float, *, items: int, certain: bool) -> Judgement | None:
        """A request of `items` texts was refused for its size: hardly any is that large again. `certain`: it says so."""
        if items == 1 or items > self._most_items:
            return None
        self._largest.refused(now, items, certain=certain)
        if not self._keep_to_largest(now) or self._startup is not None:
            return None
        self._course.moved()
        return self._go(now, self._bounded(now, self.point), "the request was too large")

    def _keep_to_largest(self, now: float) -> bool:
        """Whether requests have to be smaller than they were."""
        before, most = self._ceilings.items, int(min(self._most_items, self._largest.most(now)))
        if most != before:
            self._ceilings = replace(self._ceilings, items=most)
            if self._startup is not None:
                self._startup.bound(self._ceilings)
        return most < before

    def refused(self, now: float, number: int, *, limited: bool) -> tuple[bool | None, Judgement | None]:
        """A request was refused: whether because too much is inside, None if that cannot be said yet; and a judgement if less
        is sent from now on, or more again. `limited`: with 429, which is news at once; of 503 a quarter of two flights is.
        """
        known = self._flight.refused(now, number)
        if known is None or not self.item_tokens:
            return None, None
        if known.sent_at < self._moved_at:
            return True, None
        self._refused_share += (1.0 - self._refused_share) / self._refused_among
        if self._refused_share < REFUSED_SHARE and not limited:
            return None, None
        self._refused_share = 0.0
        before = self._before_refusals if self._room.most("requests", now) < math.inf else 0
        bounds = self._room.refused(now, known.inside, Inside(1, known.texts), limited=limited)
        if bounds is None:
            return None, None
        point = self.point
        if "requests" not in bounds:
            point = replace(point, concurrency=max(point.concurrency, before))
        self._before_refusals = max(before, self.point.concurrency)
        less = self._bounded(now, point)
        if self._startup is not None or less == self.point:
            return bool(bounds), None
        self._course.moved(most_requests=less.concurrency if "requests" in bounds else None)
        return bool(bounds), self._go(now, less, "the server is full" if bounds else "it was not full")

    def was_never_full(self, now: float) -> Judgement | None:
        """Refusals said nothing of what it holds: first waves that they cut short begin anew."""
        self._room = Room()
        if not self._waves_cut_short:
            return None
        self._waves_cut_short = False
        self._startup = Startup(self._ceilings)
        self._wave_cv, self._over, self._drain = 0.0, 0, None
        wave = self._startup.wave
        return self._go(
            now, Point(wave.concurrency, wave.texts * self.item_tokens), "it never was full: first waves anew"
        )

    @property
    def _refused_among(self) -> int:
        return max(2 * self.point.concurrency, FEWEST_REFUSED_AMONG)

    @property
    def items_per_second(self) -> float:
        """The texts that were taken while others were refused although the server was not full."""
        return self._room.items_per_second

    @property
    def is_surely_full(self) -> bool:
        """Whether what is refused is too much inside, as was seen for a while."""
        return self._room.is_sure

    def succeeded(self, now: float, number: int, *, items: int) -> Judgement | None:
        """A request of `items` texts was answered; a judgement if that ended an epoch."""
        known = self._flight.answered(now, number)
        if known is None:
            return None
        sent_at, tokens = known.sent_at, known.tokens
        self._room.took(now, known.inside, items=items)
        self._largest.took(items)
        self._keep_to_largest(now)
        self._refused_share *= 1.0 - 1.0 / self._refused_among
        self._answered_items += items
        self.item_tokens += max(0.02, items / self._answered_items) * (tokens / items - self.item_tokens)
        alone = self._startup is not None and self._startup.alone
        if alone and sent_at < self._moved_at:
            return None
        if self._drain is not None:
            self._drain.answered(tokens)
            return self._drained(now, self._drain)
        if self._is_news(now, sent_at):
            given_up = self._course.give_up_narrower(self._situation(now))
            if given_up is not None:
                return self._follow(now, given_up)
            seen = self._measured(now) if self._flight.epoch.latencies else self.last
            if seen is not None and self._course.may_shrink(self._situation(now)):
                self._drain = Drain(now, since=sent_at, tokens=self._flight.tokens + tokens, before=seen)
                return self._drained(now, self._drain)
        if not self._flight.settled(now, at_once=alone):
            return None
        epoch = self._flight.epoch
        epoch.add(now, sent_at=sent_at, tokens=tokens, in_parts=known.in_parts)
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
            self._course.target.saw(measured)
        return judgement

    def _is_news(self, now: float, sent_at: float) -> bool:
        """Whether one that was sent at `sent_at` is late, and so many before it, or still under way, that no epoch's end is
        waited for."""
        if self._startup is not None or sent_at < self._watched_from:
            return False
        if not self._course.is_late(now - sent_at, self.point.work):
            self._over = 0
            return False
        self._over += 1
        since = self._flight.sent_since(self._watched_from)
        overdue = sum(self._course.is_late(now - other, self.point.work) for other in since)
        return self._over + overdue >= max(LATE_IN_A_ROW, self.point.concurrency // 2)

    def _drained(self, now: float, drain: Drain) -> Judgement | None:
        if self._flight.tokens > drain.throughput(now) * self._course.target.aimed_at():
            return None
        self._drain = None
        return self._follow(now, self._course.drained_to(self._situation(now), drain))

    # --- the law -------------------------------------------------------------------------------------------------

    def _measured(self, now: float) -> Measurement:
        return self._flight.measured(now, self.point.concurrency)

    def _fewest_samples(self) -> int:
        count = self.point.concurrency
        if self._startup is not None:
            return count if self._startup.is_first else max(count, FEWEST_SAMPLES)
        return max(count, 4)

    def _judge(self, now: float, measured: Measurement) -> Judgement | None:
        if self._startup is not None:
            return self._judge_wave(now, self._startup, measured)
        self._pace = self._flight.epoch.pace
        move = self._course.judge(self._situation(now), measured)
        return None if move is None else self._follow(now, move)

    def _situation(self, now: float) -> Situation:
        return Situation(
            now=now,
            point=self.point,
            item_tokens=self.item_tokens,
            pace=self._flight.epoch.pace or self._pace,
            bounded=lambda point: self._bounded(now, point),
        )

    def _follow(self, now: float, move: Move) -> Judgement:
        judgement = self._go(now, move.point, move.reason, move.measured, move.gain)
        self.point = move.then or self.point
        return judgement

    def _judge_wave(self, now: float, startup: Startup, measured: Measurement) -> Judgement | None:
        wave, room = startup.wave, self._room
        if room.most("texts", now) < wave.texts or room.most("requests", now) < wave.concurrency:
            self._waves_cut_short = True
            return self._land(now, startup.ended(wave.concurrency, "the server is full"), measured)
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
        startup, wave = self._startup, self.point
        assert startup is not None
        self._startup, self._answers = None, {}
        self._course.begin(
            now,
            landing,
            fastest=startup.fastest,
            light=startup.light,
            light_wave=startup.light_wave,
            wave=wave,
            measured=measured,
        )
        work = (landing.texts or 0) * self.item_tokens
        if not work:
            work = wave.work or wave.concurrency * self.item_tokens
            if measured is not None:
                work *= max(0.5, min(2.0, self._course.target.seconds / measured.latency))
        judgement = self._go(now, self._bounded(now, Point(landing.concurrency, work)), landing.reason, measured)
        grew = measured is not None and self.point.work > wave.work > 0
        self._course.moved(Step(wave, measured) if measured is not None and grew else None)
        return judgement

    def _bounded(self, now: float, point: Point) -> Point:
        most_requests = int(min(self._ceilings.concurrency, self._room.most("requests", now)))
        point = replace(point, work=min(point.work, self._room.most("texts", now) * max(self.item_tokens, 1.0)))
        return point.bounded(self._ceilings, most_requests=most_requests, item_tokens=self.item_tokens)

    def _go(
        self,
        now: float,
        point: Point,
        reason: str,
        measured: Measurement | None = None,
        gain: float | None = None,
    ) -> Judgement:
        """End the epoch; the next one is at `point`."""
        if point != self.point or self._startup is not None:
            self._flight.begin(now, settling=max(point.concurrency, len(self._flight)))
            self._moved_at = now
            if self._startup is not None or point.work < self.point.work:
                # What was sent before a cut is late for what was under way then; else it is late all the more.
                self._watched_from, self._over = now, 0
        else:
            self._flight.begin(now)
        self.point = point
        return Judgement(
            phase=self.phase, reason=reason, measured=measured, target_seconds=self._course.target.seconds, gain=gain
        )
