"""How a simulated server spends its time: requests arrive, answers come out, the caller moves the clock.

Pure and event-driven, so that the same physics serves a test bench on virtual time and `era simulate` over HTTP. No
vectors and no bytes: an answer is a status with its headers.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

from era_dagster.simulation.spec import Course, ServerSpec

BUSY = "server busy, please try again.  maximum pending requests exceeded"
TOO_LONG = "the input length exceeds the context length"
RUNNER_DIED = "llama runner process has terminated: exit status 2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of one request. Status 0: the connection is broken off."""

    request: int
    status: int
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class _Request:
    number: int
    tokens: Sequence[int]
    slowness: float | None = None
    pieces: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When each text, or the whole, begins and ends in a slot."""


class _Allowance:
    """What may be used up at a moment; starts full, and fills little by little, or at once when a window begins."""

    def __init__(self) -> None:
        self.level = -1.0
        self._at = 0.0

    def refill(self, now: float, rate: float, size: float, window_seconds: float | None) -> None:
        if window_seconds is None:
            came_in = (now - self._at) * rate
        else:
            came_in = size if now // window_seconds > self._at // window_seconds else 0.0
        self.level = size if self.level < 0 else min(size, self.level + came_in)
        self._at = now


class ServerPhysics:
    """One server. `arrive` and `advance` must be called with times that never go back."""

    def __init__(self, course: Course, *, random: Random) -> None:
        self._course = course
        self._random = random
        self.spec = course.spec
        self._changes = deque(course.changes)
        self._events: list[tuple[float, int, str, object]] = []
        self._order = 0
        self._slots: list[float] = [0.0] * self.spec.slots
        self._waiting: deque[_Request] = deque()
        self._engine_busy = False
        self._allowances = {name: _Allowance() for name in ("requests", "texts", "tokens")}
        self._warm_at: float | None = None
        self.texts_inside = 0
        self._starts: list[float] = []
        self.refused = 0
        for at, _ in course.changes:
            self._push(at, "change", None)

    @property
    def next_event_at(self) -> float:
        """When `advance` has something to do; infinite for never."""
        return self._events[0][0] if self._events else math.inf

    def arrive(self, now: float, number: int, tokens: Sequence[int]) -> None:
        """A request is sent by a client at `now`; it comes to an end in some `advance`."""
        request = _Request(number, tokens)
        self._push(now + self.spec.rtt_seconds / 2.0, "arrival", request)

    def advance(self, now: float) -> list[Finished]:
        """Everything that has reached its client by `now`."""
        done: list[Finished] = []
        while self._events and self._events[0][0] <= now:
            at, _, kind, what = heapq.heappop(self._events)
            if kind == "change":
                self._change(at)
            elif kind == "arrival":
                assert isinstance(what, _Request)
                self._arrival(at, what)
            elif kind == "worked":
                assert isinstance(what, _Request)
                self._worked(at, what)
            elif kind == "step":
                assert isinstance(what, list)
                self._step_ended(at, what)
            else:
                assert isinstance(what, Finished)
                done.append(what)
        return done

    # --- inside -----------------------------------------------------------------------------------------------------

    def _push(self, at: float, kind: str, what: object) -> None:
        self._order += 1
        heapq.heappush(self._events, (at, self._order, kind, what))

    def _change(self, at: float) -> None:
        _, change = self._changes.popleft()
        was_frozen, self.spec = self.spec.frozen, replace(self.spec, **change)
        if self.spec.frozen and not was_frozen:
            self._take_back(at)
        while len(self._slots) > self.spec.slots:
            heapq.heappop(self._slots)
        while len(self._slots) < self.spec.slots:
            heapq.heappush(self._slots, at)
        if self.spec.down:
            self._break_off(at)
        if not self.spec.frozen and self._waiting:
            waiting, self._waiting = self._waiting, deque()
            if self.spec.discipline == "batching":
                self._waiting = waiting
                if not self._engine_busy:
                    self._start_step(at)
            else:
                for request in waiting:
                    self._begin(at, request)

    def _take_back(self, at: float) -> None:
        """What is in a slot goes on as it began; what has not begun loses its slot and waits, before whatever comes later."""
        busy: list[float] = []
        again: list[_Request] = []
        kept: list[tuple[float, int, str, object]] = []
        for event in sorted(self._events, key=lambda each: each[1]):
            request = event[3]
            if event[2] == "worked":
                assert isinstance(request, _Request)
                begun = [piece for piece in request.pieces if piece[0] < at]
                busy += [end for _, end in begun if end > at]
                if not begun or len(begun) < len(request.pieces):
                    request.pieces = begun
                    again.append(request)
                    continue
            kept.append(event)
        self._events = sorted(kept)
        self._starts.clear()
        self._waiting.extendleft(reversed(again))
        self._slots = sorted(busy + [at] * (self.spec.slots - len(busy)))

    def _break_off(self, at: float) -> None:
        """The process dies: what is inside is lost, and whoever comes after it is back finds it idle and cold."""
        inside = list(self._waiting)
        kept: list[tuple[float, int, str, object]] = []
        stalled: list[object] = []
        for event in self._events:
            if event[2] == "worked":
                assert isinstance(event[3], _Request)
                inside.append(event[3])
            elif event[2] == "step":
                assert isinstance(event[3], list)
                inside.extend(event[3])
            elif event[2] == "reply" and event[0] > at + self.spec.rtt_seconds / 2.0:
                stalled.append(event[3])
            else:
                kept.append(event)
        heapq.heapify(kept)
        self._events = kept
        self._waiting.clear()
        self._starts.clear()
        self._slots = [at] * self.spec.slots
        self._engine_busy = False
        self._warm_at = None
        for request in inside:
            self.texts_inside -= len(request.tokens)
            self._reply(at, Finished(request=request.number, status=0))
        for finished in stalled:
            assert isinstance(finished, Finished)
            self._reply(at, Finished(request=finished.request, status=0))

    def _reply(self, at: float, finished: Finished) -> None:
        self._push(at + self.spec.rtt_seconds / 2.0, "reply", finished)

    def _arrival(self, at: float, request: _Request) -> None:
        spec = self.spec
        verdict = self._refusal(at, request)
        if verdict is not None:
            self.refused += verdict.status in (429, 503)
            self._reply(at, verdict)
            return
        lot = self._random.random()
        for share, status, message in (
            (spec.share_500, 500, RUNNER_DIED),
            (spec.share_503, 503, BUSY),
            (spec.share_reset, 0, ""),
        ):
            if lot < share:
                self._reply(at, Finished(request=request.number, status=status, message=message))
                return
            lot -= share
        if lot < spec.share_stall:
            self._reply(at + spec.stall_seconds, Finished(request=request.number, status=200))
            return
        self.texts_inside += len(request.tokens)
        if spec.frozen or spec.discipline == "batching":
            self._waiting.append(request)
            if not self._engine_busy and not spec.frozen:
                self._start_step(at)
        else:
            self._begin(at, request)

    def _refusal(self, at: float, request: _Request) -> Finished | None:
        spec, count = self.spec, len(request.tokens)
        if spec.down:
            return Finished(request=request.number, status=0)
        if spec.most_texts is not None and count > spec.most_texts:
            message = f"batch size {count} > maximum allowed batch size {spec.most_texts}"
            return Finished(request=request.number, status=413, message=message)
        if spec.context_tokens is not None and max(request.tokens, default=0) > spec.context_tokens:
            return Finished(request=request.number, status=400, message=TOO_LONG)
        full = spec.queue_limit is not None and self._queued(at) >= spec.queue_limit
        if full or (spec.most_inside is not None and self.texts_inside + count > spec.most_inside):
            return Finished(request=request.number, status=spec.full_status, message=BUSY)
        return self._rate_refusal(at, request)

    def _queued(self, at: float) -> int:
        if self.spec.discipline == "batching":
            return len(self._waiting)
        while self._starts and self._starts[0] <= at:
            heapq.heappop(self._starts)
        return len(self._starts) + sum(not request.pieces for request in self._waiting)

    def _rate_refusal(self, at: float, request: _Request) -> Finished | None:
        spec = self.spec
        if spec.requests_per_second is spec.texts_per_second is spec.tokens_per_second is None:
            return None
        needs = {"requests": 1.0, "texts": float(len(request.tokens)), "tokens": float(sum(request.tokens))}
        rates = {
            "requests": spec.requests_per_second,
            "texts": spec.texts_per_second,
            "tokens": spec.tokens_per_second,
        }
        waits = 0.0
        limited = {name: rate for name, rate in rates.items() if rate is not None}
        for name, rate in limited.items():
            allowance = self._allowances[name]
            allowance.refill(at, rate, spec.most_at_once(rate), spec.window_seconds)
            if allowance.level < needs[name] - 1e-9:
                waits = max(waits, self._fills_in(at, rate, needs[name] - allowance.level))
        if waits == 0.0:
            for name in limited:
                self._allowances[name].level -= needs[name]
            return None
        return Finished(
            request=request.number,
            status=spec.rate_status,
            message="rate limit exceeded",
            headers={**_retry_after(spec, waits), **self.announced(at)},
        )

    def _fills_in(self, at: float, rate: float, missing: float) -> float:
        window = self.spec.window_seconds
        return missing / rate if window is None else window - at % window

    def announced(self, at: float) -> dict[str, str]:
        """The `x-ratelimit-*` headers at this moment, in the form of hosted services; empty if it keeps them secret."""
        spec = self.spec
        if not spec.announce:
            return {}
        headers: dict[str, str] = {}
        for name, rate in (("requests", spec.requests_per_second), ("tokens", spec.tokens_per_second)):
            if rate is not None:
                allowance, size = self._allowances[name], spec.most_at_once(rate)
                if spec.window_seconds is not None or allowance.level < 0:
                    allowance.refill(at, rate, size, spec.window_seconds)
                level = max(0.0, allowance.level)
                headers[f"x-ratelimit-limit-{name}"] = str(round(size))
                headers[f"x-ratelimit-remaining-{name}"] = str(int(level))
                headers[f"x-ratelimit-reset-{name}"] = f"{self._fills_in(at, rate, size - level):.3f}s"
        return headers

    def _slowness(self, at: float) -> float:
        spec, factor = self.spec, 1.0
        if spec.knee is not None and self.texts_inside > spec.knee:
            factor *= 1.0 + spec.inflation * (self.texts_inside - spec.knee) / spec.knee
        if spec.jitter:
            sigma = math.sqrt(math.log1p(spec.jitter**2))
            factor *= self._random.lognormvariate(-sigma * sigma / 2.0, sigma)
        if spec.tail_share and self._random.random() < spec.tail_share:
            factor *= spec.tail_factor
        return factor

    def _warm(self, at: float) -> float:
        if self._warm_at is None:
            self._warm_at = at + self.spec.cold_start_seconds
        return max(at, self._warm_at)

    def _begin(self, at: float, request: _Request) -> None:
        """Slots are given in the order of arrival: the end of a request is known when it begins to wait, unless it freezes."""
        spec, slots, pieces = self.spec, self._slots, request.pieces
        ready = self._warm(at)
        slow = request.slowness = self._slowness(at) if request.slowness is None else request.slowness
        if spec.discipline == "requests":
            works = [spec.seconds_per_request + spec.work_seconds(request.tokens)]
        else:
            each, by_token, first = spec.seconds_per_text, spec.seconds_per_token, spec.seconds_per_request
            works = [each + tokens * by_token for tokens in request.tokens]
            works[:1] = [first + each + tokens * by_token for tokens in request.tokens[:1]]
        last = max([end for _, end in pieces], default=ready)
        for work in works[len(pieces) :]:
            start = slots[0] if slots[0] > ready else ready
            end = start + slow * work
            heapq.heapreplace(slots, end)
            pieces.append((start, end))
            last = max(last, end)
        if pieces and pieces[0][0] > at:
            heapq.heappush(self._starts, pieces[0][0])
        self._push(last, "worked", request)

    def _worked(self, at: float, request: _Request) -> None:
        self._leave(request)
        self._reply(at, Finished(request=request.number, status=200, headers=self.announced(at)))

    def _leave(self, request: _Request) -> None:
        self.texts_inside -= len(request.tokens)

    def _start_step(self, at: float) -> None:
        spec = self.spec
        taken: list[_Request] = []
        tokens = texts = 0
        while self._waiting and (not taken or tokens + sum(self._waiting[0].tokens) <= spec.step_tokens):
            request = self._waiting.popleft()
            taken.append(request)
            tokens += sum(request.tokens)
            texts += len(request.tokens)
        if not taken:
            self._engine_busy = False
            return
        self._engine_busy = True
        steps = math.ceil(tokens / spec.step_tokens)  # a request larger than a step takes several
        work = steps * spec.step_seconds + texts * spec.seconds_per_text + tokens * spec.seconds_per_token
        work += len(taken) * spec.seconds_per_request
        self._push(self._warm(at) + self._slowness(at) * work, "step", taken)

    def _step_ended(self, at: float, taken: list[_Request]) -> None:
        for request in taken:
            self._worked(at, request)
        self._engine_busy = False
        if not self.spec.frozen:
            self._start_step(at)


def _retry_after(spec: ServerSpec, seconds: float) -> dict[str, str]:
    if spec.retry_after == "seconds":
        return {"Retry-After": str(max(1, math.ceil(seconds)))}
    if spec.retry_after == "milliseconds":
        return {"retry-after-ms": str(math.ceil(seconds * 1000.0))}
    if spec.retry_after == "date":
        return {"Retry-After": f"date:{max(1, math.ceil(seconds))}"}
    return {}
