"""Where the law stands: an operating point, and why it moved there."""

import math
from dataclasses import dataclass
from typing import Literal

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.measure import Measurement

Phase = Literal["start", "hold", "probe"]


@dataclass(frozen=True, slots=True)
class Point:
    """An operating point: requests in flight, tokens in flight."""

    concurrency: int
    work: float

    def size(self, item_tokens: float) -> tuple[int, int]:
        """Requests and texts in each: between two neighbours there is nothing, so that going back and forth is no use."""
        return self.concurrency, round(self.work / self.concurrency / item_tokens)

    def one_more(self, item_tokens: float, *, in_number: bool) -> "Point":
        """The smallest step up: one text more in each request; where they hold a single text, `in_number` allows for one
        request more instead, since two texts would double them all."""
        if in_number and self.work < 1.5 * self.concurrency * item_tokens:
            return Point(self.concurrency + 1, self.work + item_tokens)
        return Point(self.concurrency, self.work + self.concurrency * item_tokens)

    def grown(self, step: float, item_tokens: float, *, in_number: bool) -> "Point":
        """The work times `step`, at least by the smallest step up, and by the same means."""
        more = self.one_more(item_tokens, in_number=in_number)
        work = max(self.work * step, more.work)
        wider = max(self.concurrency, round(work / item_tokens))
        return Point(wider if more.concurrency > self.concurrency else self.concurrency, work)

    def bounded(self, ceilings: Ceilings, *, most_requests: int, item_tokens: float) -> "Point":
        """The nearest point within the ceilings, with at least one text in a request; more requests rather than less work."""
        item = max(item_tokens, 1.0)
        most = min(ceilings.items * item, float(ceilings.tokens))
        concurrency = min(most_requests, max(self.concurrency, math.ceil(self.work / most)))
        concurrency = max(1, min(concurrency, int(self.work / item)))
        return Point(concurrency, max(item, min(self.work, concurrency * most)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What moved the point, or kept it, at the end of an epoch."""

    phase: Phase
    reason: str
    measured: Measurement | None
    target_seconds: float
    gain: float | None
