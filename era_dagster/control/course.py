"""The law after the first waves: a point is held, others are tried, one at a time, and what pays is kept.

The inner loop spends the latency target; the outer loop probes. Decides only: `control.limit` measures and moves. No clock,
no I/O; numbers in, numbers out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.drain import Drain
from era_dagster.control.measure import Measurement, doubt, together
from era_dagster.control.moves import TOLERANCE, Pace, on_target, probed, towards_target
from era_dagster.control.point import Point
from era_dagster.control.probes import Probe, ProbeSchedule, gain_wanted
from era_dagster.control.rivals import RESHAPED_GAIN, Rivals
from era_dagster.control.startup import Landing, Wave
from era_dagster.control.target import LatencyTarget
from era_dagster.control.trail import Step

SHORTEST_EPOCH_SECONDS = 0.4
"""However fast the answers come, a judgement waits this long: scheduling noise lives below it."""
MOST_MOVES = 4
"""After so many moves in a row the target is hidden by noise: as good as reached."""
CONFIDENCE = 3.0
"""Standard errors from which a latency is taken for what it is; below, noise takes its share of it."""
MUCH_MORE = 1.5
"""Growth of the work by less is not why requests take twice as long as is aimed at."""
FEW = 4
"""So many texts under way are few."""
AT_THE_SAME_TIME = 0.5
"""More requests that gained more than this of what they may, in ln(throughput), are worked on at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Where the law stands at `now`: its point, the tokens of a text, the pace that holds requests back, if one does, and
    `bounded`, the nearest point that the ceilings allow."""

    now: float
    point: Point
    item_tokens: float
    pace: Pace
    bounded: Callable[[Point], Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Where to go on, and why. `then`: a step so small from there that nothing has to settle first."""

    point: Point
    reason: str
    measured: Measurement | None = None
    gain: float | None = None
    then: Point | None = None


class Course:
    """The way from point to point: the latency aimed at, the probes, and what every step did."""

    def __init__(self, ceilings: Ceilings) -> None:
        self._ceilings = ceilings
        self.target = LatencyTarget(ceilings)
        self._rivals = Rivals()
        self._probes = ProbeSchedule()
        self._most_work = math.inf
        self._held: list[Measurement] = []
        self._came_from: Step | None = None
        self._moves = 0
        self._origin = Point(1, 0.0)
        self._width = 1
        """As many requests as did no harm; a cut that leaves fewer texts than that does not change it."""
        self._by_step = False
        self._light_wave = Wave(1, 1)

    @property
    def is_probing(self) -> bool:
        """Whether another point is being tried."""
        return self._probes.running is not None

    def is_late(self, latency: float, work: float) -> bool:
        """Whether one request, with so much work under way, took longer than noise explains, or what a probe has more."""
        growth = max(1.0, work / self._origin.work) if self.is_probing else 1.0
        return self.target.is_late(latency, growth=growth)

    def begin(
        self,
        now: float,
        landing: Landing,
        *,
        fastest: float,
        light: float,
        light_wave: Wave,
        wave: Point,
        measured: Measurement | None,
    ) -> None:
        """The first waves are over: `wave` is the last of them and what was `measured` there, `fastest` the shortest latency
        under a light load and `light` the mean one of `light_wave`, in seconds."""
        self._width = landing.concurrency
        self._by_step = landing.by_step
        self._light_wave = light_wave
        self.target.begin(landing.target_seconds, light_latency=light if math.isfinite(light) else fastest)
        self._probes.begin(now, check_width=landing.concurrency <= 2)
        self._rivals.begin(light, (wave, measured) if measured and landing.by_work else None)

    def told_of_others(self, *, present: bool) -> None:
        """Whether clients that follow the same law share the server, by their own word."""
        self._rivals.known = present

    def moved(self, step: Step | None = None, *, most_requests: int | None = None) -> None:
        """The point was changed for another reason; a probe under way is void. `step`: what it did is to be looked back on.
        `most_requests`: no more were taken."""
        self._probes.dropped()
        self._width = min(self._width, most_requests or self._width)
        self._held, self._came_from = [], step

    def judge(self, at: Situation, measured: Measurement) -> Move | None:
        """What an epoch says; None if it has to go on."""
        probe = self._probes.running
        move = self._judge_hold(at, measured) if probe is None else self._judge_probe(at, probe, measured)
        if move is not None and at.pace is None and not self.target.is_raised and self._is_light_load(at):
            self.target.took_when_light(measured.latency, samples=measured.samples)
        return move

    def _is_light_load(self, at: Situation) -> bool:
        """Whether no more is in flight than in the wave that was answered most quickly."""
        wave = self._light_wave
        return at.point.concurrency <= wave.concurrency and at.point.work < (wave.texts + 0.5) * at.item_tokens

    def _judge_hold(self, at: Situation, measured: Measurement) -> Move | None:
        if at.pace == "requests":
            self.target.paced()
        off = self._off(at, measured)
        samples, c = measured.samples, at.point.concurrency
        enough = samples >= min(60, max(8, 2 * c)) and measured.seconds >= SHORTEST_EPOCH_SECONDS
        far = abs(off) > max(0.4, CONFIDENCE * measured.error) and samples >= max(3 * c // 2, 8)
        if not (enough or far):
            return None
        if at.pace == "requests":
            # Each carries what its latency allows, whatever the point says; by Little's law this much is under way then.
            work = measured.throughput * self.target.aimed_at()
            return self._go(at, at.bounded(replace(at.point, work=work)), "as much as the pace lets through", measured)
        if self._rivals.known:
            self.target.others_took()
        elif at.pace is None and self._share(at, measured):
            off = self._off(at, measured)
        came_from, self._came_from = self._came_from, None
        if came_from is not None and at.pace is None:
            undone = self._undo_width(at, measured, came_from) or self._undo_harm(at, measured, came_from)
            if undone is not None:
                return undone
        self._width = max(self._width, c)
        if self._probes.urgent:
            self._held = [measured]
            return self._try(at, measured)
        tokens, pace = at.item_tokens, at.pace
        if abs(off) > TOLERANCE and (self._moves < MOST_MOVES or abs(off) > 0.7):
            moved = towards_target(at.point, off, measured.latency, self.target, item_tokens=tokens, pace=pace)
            moved = self._as_one(at, self._as_wide(at, self._below_harm(at, moved)))
            if pace:
                # Twice what the pace lets through is no limit, and more would all be sent when there is a pace no more.
                work = max(at.point.work, 2.0 * measured.throughput * self.target.aimed_at())
                moved = at.bounded(replace(moved, work=min(moved.work, work)))
            if not moved.is_as_good_as(at.point, tokens):
                step = Step(at.point, measured)
                self._moves += 1
                self._probes.strayed()
                move = self._go(at, moved, "towards the latency target", measured)
                self._came_from = step if came_from is None else came_from.then(step, moved.work)
                return move
        self._moves = 0
        self._held = [*self._held[-2:], measured]
        before = at.point
        fine = on_target(before, off, measured.latency, self.target, item_tokens=tokens, pace=pace)
        fine = self._below_harm(at, fine)
        if before.has_single_texts(tokens):
            fine = self._as_wide(at, fine)
        fine = self._as_one(at, fine)
        move = self._try(at, measured)
        if self._probes.running is not None:
            return move
        step = Step(before, measured)
        self._came_from = step if came_from is None else came_from.then(step, fine.work)
        return replace(move, then=fine)

    def _off(self, at: Situation, measured: Measurement) -> float:
        """How far the latency is from what is aimed at, in ln; of what noise may have done, less."""
        items = at.point.work / at.item_tokens
        if self._rivals.known:
            aim = self.target.fair(items)
        else:
            aim = self.target.aimed_at(items if self._rivals.shared(at.now) else None)
        off = math.log(aim / measured.latency)
        if abs(off) < CONFIDENCE * measured.error:
            off *= TOLERANCE**2 / (TOLERANCE**2 + measured.error**2)
        return off

    def _share(self, at: Situation, measured: Measurement) -> bool:
        """Look for others at this server; whether there is news of them."""
        target = self.target
        pressed = target.lowest < measured.latency < target.highest
        free = target.may_rise and not target.is_slow_itself and pressed
        news = self._rivals.news(at.now, at.point, measured, raised=target.is_raised, may_rise=free)
        if news == "others took":
            target.others_took()
            if self._probes.is_untried("down"):
                # Or it is our own work that slows the server down: then less loses nothing.
                self._probes.hasten("down")
        return news is not None

    def _undo_width(self, at: Situation, measured: Measurement, came_from: Step) -> Move | None:
        """As many requests again as before a cut, that gained less than half of what they may, are not what is needed now."""
        if not came_from.point.concurrency < at.point.concurrency <= self._width:
            return None
        work, gain = at.point.work, came_from.gain(measured)
        if not (came_from.paid_little(work, measured) or came_from.did_harm(work, measured)):
            return None
        before = came_from.point
        self._width = before.concurrency
        larger = self.target.allows_another(came_from.measured.latency, before.items(at.item_tokens))
        fewer = at.bounded(replace(before, work=work)) if larger else before
        move = self._go(at, fewer, "as many requests as before bought nothing", measured, gain)
        self._came_from = came_from
        return move

    def _undo_harm(self, at: Situation, measured: Measurement, came_from: Step) -> Move | None:
        """Growth that cost far more throughput than noise is undone; so is a cut that helped nothing."""
        gain = came_from.gain(measured)
        if came_from.did_harm(at.point.work, measured):
            # Or it was the server that became slower: then less yet is what keeps the latency.
            fitting = self.target.fitting(at.point.work, measured.latency)
            back = replace(came_from.point, work=min(self._grew_too_far(at, came_from.point), fitting))
            return self._go(at, at.bounded(back), "more work gave less throughput", measured, gain)
        may_rise = not self._rivals.known and (self.target.may_rise or self._rivals.shared(at.now))
        if may_rise and came_from.was_in_vain(at.point.work, measured):
            self.target.less_did_not_help()
            self._rivals.alone()
            return self._go(at, came_from.point, "less work did not lower the latency", measured, gain)
        return None

    def _try(self, at: Situation, measured: Measurement) -> Move:
        """Start the probe that is due."""
        few = at.point.work < (FEW + 0.5) * at.item_tokens
        probe = self._probes.next(at.now, held=len(self._held), few=few)
        if probe is None:
            return self._go(at, at.point, "on target", measured)
        tried = probed(
            probe,
            at.point,
            together(self._held),
            self.target,
            item_tokens=at.item_tokens,
            pace=at.pace,
            kept_in_a_row=self._probes.kept_in_a_row,
            untried=self._probes.is_untried(probe),
            other_way=self._probes.other_way,
            most_work=self._most_work,
            shared=self._rivals.known or self._rivals.shared(at.now),
        )
        second_text = self._probes.other_way and at.point.is_single(at.item_tokens)
        tried = self._as_wide(at, tried) if probe == "up" and not second_text else at.bounded(tried)
        tried = self._as_one(at, tried) if probe == "up" else tried
        if tried.is_as_good_as(at.point, at.item_tokens):
            self._probes.undone(at.now, probe)
            return self._go(at, at.point, "on target", measured)
        self._probes.started(at.now, probe)
        self._origin = at.point
        return self._go(at, tried, f"probe {probe}", measured, held=self._held)

    def _judge_probe(self, at: Situation, probe: Probe, measured: Measurement) -> Move | None:
        reference = together(self._held)
        gain = math.log(measured.throughput / reference.throughput)
        step = math.log(at.point.work / self._origin.work)
        noise = doubt(measured, reference)
        threshold = gain_wanted(
            probe,
            step=step,
            latency=measured.latency,
            before=reference.latency,
            lowest=self._ceilings.lowest_latency,
            highest=self.target.highest,
            concurrency=at.point.concurrency,
        )
        samples, c = measured.samples, at.point.concurrency
        enough = samples >= min(120, 6 * c) and measured.seconds >= SHORTEST_EPOCH_SECONDS
        if abs(gain - threshold) < (1.0 if enough else 2.5) * noise and samples < min(240, 12 * c):
            return None
        if gain <= threshold:
            self._probes.undone(at.now, probe, gain=gain, late=measured.latency > self._ceilings.latency_seconds)
            return self._go(at, self._origin, f"probe {probe} undone", measured, gain)
        wider = math.log(at.point.concurrency / self._origin.concurrency)
        self._probes.kept(at.now, probe, gain=gain, step=wider if probe == "wider" else step)
        if probe == "narrower":
            self._width = at.point.concurrency
        if probe == "up":
            self.target.more_paid(measured.latency)
            if at.point.work > self._most_work:
                clearly = gain > 0.5 * step
                self._most_work = (2.0 if clearly else 1.0) * at.point.work
        elif probe == "down":
            self.target.less_lost_nothing(measured.latency, before=reference.latency)
            if reference.latency <= 1.2 * self.target.lowest:
                self._most_work = at.point.work
        else:
            self._rivals.reshaped(gain)
            if probe == "narrower" and gain > RESHAPED_GAIN:
                # The work that did harm did it in requests of another size.
                self._most_work = math.inf
            if probe == "wider" and gain > AT_THE_SAME_TIME * wider and not self._rivals.known:
                self.target.waits_for_nothing(measured.latency / max(1.0, at.point.items(at.item_tokens)))
        self._held = [measured]
        return self._go(at, at.point, f"probe {probe} kept", measured, gain)

    def give_up_narrower(self, at: Situation) -> Move | None:
        """Several requests in a row were late; None unless fewer of them were being tried, which may be what made them late."""
        if self._probes.running != "narrower":
            return None
        return self._give_up(at, "narrower", self._origin)

    def may_shrink(self, at: Situation) -> bool:
        """Whether less work is what late requests ask for, and there can be less."""
        return at.pace is None and not at.point.is_single(at.item_tokens)

    def drained_to(self, at: Situation, drain: Drain) -> Move:
        """Requests were late, and what was under way came back until the rest is what the server takes."""
        probe, came_from = self._probes.running, self._came_from
        before = at.point if probe is None else self._origin
        work = min(before.work, drain.throughput(at.now) * self.target.aimed_at())
        if came_from is not None and MUCH_MORE * came_from.point.work < before.work:
            work = min(work, self._grew_too_far(at, came_from.point))
        less = at.bounded(replace(before, work=work))
        move = self._give_up(at, probe, less) if probe else self._go(at, less, "requests were late", drain.before)
        if less.work < before.work:
            latency = max(drain.before.latency, drain.seconds(at.now))
            self._came_from = Step(before, replace(drain.before, latency=latency))
        return move

    def _give_up(self, at: Situation, probe: Probe, point: Point) -> Move:
        self._probes.undone(at.now, probe, late=True)
        return self._go(at, point, f"probe {probe} given up: requests were late")

    def _grew_too_far(self, at: Situation, before: Point) -> float:
        """More work was worse: it stays below, and less is tried next. Returns the work to go back to."""
        self._most_work = (1.1 if at.point.work > 1.1 * before.work else 1.0) * before.work
        self._probes.hasten("down")
        return before.work

    def _below_harm(self, at: Situation, point: Point) -> Point:
        """The point, bounded, and not beyond where growth was harmful."""
        if self._rivals.known:
            # What cost throughput was perhaps another client's growth.
            return at.bounded(point)
        return at.bounded(replace(point, work=min(point.work, max(self._most_work, at.point.work))))

    def _as_one(self, at: Situation, point: Point) -> Point:
        """One request at a time stays one where the others would wait for its step, unless a probe shows otherwise."""
        more = at.bounded(point).concurrency > 1 == at.point.concurrency
        return at.point if self._by_step and more else point

    def _as_wide(self, at: Situation, point: Point) -> Point:
        """The point, bounded; more work goes into as many requests again as there were before a cut left too few texts."""
        if point.work > at.point.work and at.pace is None:
            requests = min(self._width, round(point.work / at.item_tokens))
            point = replace(point, concurrency=max(point.concurrency, requests))
        return at.bounded(point)

    def _go(
        self,
        at: Situation,
        point: Point,
        reason: str,
        measured: Measurement | None = None,
        gain: float | None = None,
        *,
        held: Sequence[Measurement] = (),
    ) -> Move:
        """`held`: what a probe will be compared with."""
        if point != at.point:
            self._held, self._came_from = list(held), None
        return Move(point=point, reason=reason, measured=measured, gain=gain)
