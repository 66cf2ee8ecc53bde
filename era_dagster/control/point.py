"""Where the law stands: an operating point, and why it moved there."""

import math
from dataclasses import dataclass
from typing import Literal

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.measure import Measurement

SLIGHT = 0.02
"""A change of the work by less is none: so much does the mean length of texts move while it is learnt."""

Phase = Literal["start", "hold", "probe"]


@dataclass(frozen=True, slots=True)
class Point:
    """An operating point: requests in flight, tokens in flight."""

    concurrency: int
    work: float

    def items(self, item_tokens: float) -> float:
        """Texts in each request, on the mean."""
        return self.work / self.concurrency / item_tokens

    def is_single(self, item_tokens: float) -> bool:
        """Whether a single text is in flight."""
        return self.concurrency == 1 and self.has_single_texts(item_tokens)

    def has_single_texts(self, item_tokens: float) -> bool:
        """Whether requests hold one text each."""
        return self.items(item_tokens) < 1.5

    def is_as_good_as(self, other: "Point", item_tokens: float) -> bool:
        """Whether going there changes nothing that could be measured: texts are whole, and their length varies."""
        if self.is_single(item_tokens) and other.is_single(item_tokens):
            return True
        return self.concurrency == other.concurrency and abs(self.work - other.work) <= SLIGHT * other.work

    def shrunk(self, step: float, item_tokens: float) -> "Point":
        """The work by `step` less; where requests hold a single text, one of them less at least."""
        whole = item_tokens if self.has_single_texts(item_tokens) else 0.0
        return Point(self.concurrency, min(self.work / step, self.work - whole))

    def grown(self, step: float, item_tokens: float, *, in_number: bool) -> "Point":
        """The work times `step`; where requests hold a single text, `in_number` makes them more instead, since a second
        text would double what one takes."""
        work = self.work * step
        if in_number and self.has_single_texts(item_tokens):
            work = max(work, self.work + item_tokens)
            return Point(max(self.concurrency, round(work / item_tokens)), work)
        return Point(self.concurrency, max(work, self.work + self.concurrency * item_tokens))

    def bounded(self, ceilings: Ceilings, *, most_requests: int, item_tokens: float) -> "Point":
        """The nearest point within the ceilings, with at least one text in a request; more requests rather than less work.

        Texts are whole: half of one that is left over is a request of its own."""
        item = max(item_tokens, 1.0)
        most = min(ceilings.items * item, float(ceilings.tokens))
        concurrency = min(most_requests, max(self.concurrency, math.ceil(self.work / most)))
        concurrency = max(1, min(concurrency, int(self.work / item + 0.5)))
        return Point(concurrency, max(concurrency * item, min(self.work, concurrency * most)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What moved the point, or kept it, at the end of an epoch."""

    phase: Phase
    reason: str
    measured: Measurement | None
    target_seconds: float
    gain: float | None
