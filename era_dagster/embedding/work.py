"""The texts of a run on their way: calls, items, batches, and what is sent next or again.

Plain data structures of one event loop, no I/O and no clock; `embedding.embedder` drives them.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice

from era_dagster.control.batch import BatchSize, fitting
from era_dagster.domain.errors import EraError
from era_dagster.embedding.report import Counters, EmbedReport, TextFailure, latency, text_failure
from era_dagster.embedding.responses import Verdict
from era_dagster.embedding.vectors import Vector


class Call:
    """One `embed` that waits for its texts; `done` is set when every text is settled or `error` ends it early."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.done = asyncio.Event()
        self.error: BaseException | None = None
        self.counters = Counters()
        self._vectors: list[Vector | None] = [None] * len(texts)
        self._failures: list[TextFailure] = []
        self._open = len(texts)
        if not texts:
            self.done.set()

    @property
    def is_open(self) -> bool:
        """Whether texts of it are not settled yet."""
        return self._open > 0

    def settle(self, position: int, vector: Vector | None, error: EraError | None = None, attempts: int = 0) -> None:
        """One text has its vector, or the reason why not."""
        self._vectors[position] = vector
        if error is not None:
            self._failures.append(text_failure(position, self.texts[position], error, attempts))
        self._open -= 1
        if self._open == 0:
            self.done.set()

    def end(self, error: BaseException) -> None:
        """Give the whole call up."""
        if not self.done.is_set():
            self.error = error
            self.done.set()

    def report(self, seconds: float) -> EmbedReport:
        """What came of it."""
        return EmbedReport(
            vectors=tuple(self._vectors),
            failures=tuple(sorted(self._failures, key=lambda failure: failure.position)),
            from_cache=self.counters.from_cache,
            requests=self.counters.requests,
            texts_sent=self.counters.texts_sent,
            retries=self.counters.retries,
            refusals=self.counters.refusals,
            tokens=self.counters.tokens,
            seconds=seconds,
            latency=latency(self.counters.latencies),
        )


@dataclass(slots=True, eq=False)
class Item:
    """One text as it is sent, and every place of every call that waits for it. `settled`: nobody does any more."""

    text: str
    tokens: int
    key: bytes | None
    waiters: list[tuple[Call, int]] = field(default_factory=list)
    settled: bool = False


@dataclass(slots=True, eq=False)
class Whole:
    """A request of so many `items` that the endpoint at `url` refused, and how many of them it has taken since, in parts."""

    url: str
    items: int
    taken: int = 0


@dataclass(slots=True, eq=False)
class Batch:
    """Texts that travel in one request, and what happened to them so far.

    `attempts` counts the requests, `failures` those that count against the retry limit, `rejections` those that failed by
    its text while the server was well, at `rejected_by` (URLs). `passed_over`: how often an endpoint refused it that had
    accepted others since its refusal before (`accepted_before` of them by then, by its URL). `doubled`: its request is stuck,
    and its texts were put in the queue once more. `may_join`: it was refused for no fault of its texts, which may travel with
    others then; never again once they are `suspect`. `whole`: the request, refused for its texts, of which it is a part.
    `unchecked`: what was said of its text alone, by URL, where a text of our own could not follow yet.
    """

    items: list[Item]
    attempts: int = 0
    failures: int = 0
    rejections: int = 0
    rejected_by: frozenset[str] = frozenset()
    passed_over: int = 0
    accepted_before: dict[str, int] = field(default_factory=dict)
    first_sent_at: float | None = None
    doubled: bool = False
    may_join: bool = False
    suspect: bool = False
    whole: Whole | None = None
    unchecked: Mapping[str, Verdict] = field(default_factory=dict[str, Verdict])

    @property
    def tokens(self) -> int:
        """Estimated tokens of all texts."""
        return sum(item.tokens for item in self.items)

    def calls(self) -> dict[Call, int]:
        """Which calls wait for texts of it, and for how many."""
        found: dict[Call, int] = {}
        for item in self.items:
            for call in {call for call, _ in item.waiters}:
                found[call] = found.get(call, 0) + 1
        return found

    def taken(self, url: str) -> int | None:
        """The endpoint at `url` has taken it. Of how many texts its `whole` was, if by now all of them were taken: it was
        refused for its size and not for one of its texts."""
        if self.whole is None or self.whole.url != url or self.doubled:
            return None
        self.whole.taken += len(self.items)
        return self.whole.items if self.whole.taken == self.whole.items else None

    def not_checked(self, url: str, said: Verdict) -> None:
        """The endpoint at `url` said so of its text alone, and a text of our own has not followed; it stays alone."""
        self.unchecked = {**self.unchecked, url: said}
        self.suspect, self.may_join = True, False

    def checked(self, url: str) -> None:
        """A text of our own has followed there."""
        self.unchecked = {other: said for other, said in self.unchecked.items() if other != url}

    def part(self, items: list[Item]) -> "Batch":
        """Some of its items with the same history."""
        return replace(self, items=items, doubled=False)


class WorkQueue:
    """What may be sent: batches that failed, from the time they may go again, before texts nobody has sent yet.

    Two kinds of batches wait beside: those that let another go first, and those that are for another endpoint.
    """

    def __init__(self) -> None:
        self._fresh: deque[Item] = deque()
        self._again: list[tuple[float, int, Batch]] = []
        self._aside: list[tuple[float, Batch]] = []
        self._elsewhere: list[Batch] = []
        self._order = count()
        self._again_items = 0

    @property
    def pending(self) -> int:
        """Texts waiting to be sent."""
        return len(self._fresh) + self._again_items

    @property
    def only_aside(self) -> bool:
        """Whether nothing waits but what stands aside for others."""
        return bool(self._aside) and self.pending == sum(len(batch.items) for _, batch in self._aside)

    @property
    def next_ready_at(self) -> float | None:
        """When the earliest failed batch may go again."""
        return self._again[0][0] if self._again else None

    def add(self, item: Item) -> None:
        """A text nobody has sent yet."""
        self._fresh.append(item)

    def again(self, batch: Batch, at: float) -> None:
        """Send `batch` again, not before `at`."""
        heapq.heappush(self._again, (at, next(self._order), batch))
        self._again_items += len(batch.items)

    def aside(self, batch: Batch, at: float) -> None:
        """Send `batch` again when something else was sent, or nothing else can be; then in its place by `at`."""
        self._aside.append((at, batch))
        self._again_items += len(batch.items)

    def nobody_aside(self) -> None:
        """What stood aside may go again."""
        aside, self._aside = self._aside, []
        for at, batch in aside:
            self._again_items -= len(batch.items)
            self.again(batch, at)

    def take_passed_over(self, times: int) -> list[Batch]:
        """All that waits, if each of it was passed over so many times; else nothing."""
        waiting = [*(batch for _, batch in self._aside), *(batch for _, _, batch in self._again), *self._elsewhere]
        if any(not item.settled for item in self._fresh) or any(batch.passed_over < times for batch in waiting):
            return []
        self._aside, self._again, self._elsewhere, self._again_items = [], [], [], 0
        return waiting

    def again_in_halves(self, batch: Batch, at: float) -> None:
        """Send the two halves of a batch of more than one text, each with its history, not before `at`.

        Smaller requests may be accepted where a larger one was passed over.
        """
        batch.passed_over = 0
        middle = len(batch.items) // 2
        self.again(batch.part(batch.items[:middle]), at)
        self.again(batch.part(batch.items[middle:]), at)

    def take(self, now: float, size: BatchSize, *, url: str, open_at: frozenset[str]) -> Batch | None:
        """The next batch of at most `size` for the endpoint at `url`; None when nothing may be sent there now.

        A failed batch keeps its company, so that halving it isolates the text that spoils it; one that was only refused is
        filled up with others like it. One that this endpoint rejected waits for another of those that are `open_at` their URLs
        and did not.
        """
        batch = self._next(now, size, url, open_at)
        if self._aside:
            self.nobody_aside()
            batch = batch or self._next(now, size, url, open_at)
        return batch

    def _next(self, now: float, size: BatchSize, url: str, open_at: frozenset[str]) -> Batch | None:
        for place, batch in enumerate(self._elsewhere):
            if not _is_for_another(batch, url, open_at):
                del self._elsewhere[place]
                self._again_items -= len(batch.items)
                self.again(batch, now)
                break
        while self._again and self._again[0][0] <= now:
            at, _, batch = heapq.heappop(self._again)
            if _is_for_another(batch, url, open_at):
                self._elsewhere.append(batch)
                continue
            self._again_items -= len(batch.items)
            batch.items = [item for item in batch.items if not item.settled]
            if not batch.items:
                continue
            fits = fitting((item.tokens for item in batch.items), size)
            if fits < len(batch.items):
                self.again(batch.part(batch.items[fits:]), at)
            return self._filled_up(batch.part(batch.items[:fits]), now, size)
        while self._fresh and self._fresh[0].settled:
            self._fresh.popleft()
        fits = fitting((item.tokens for item in islice(self._fresh, size.items)), size)
        taken = (self._fresh.popleft() for _ in range(fits))
        items = [item for item in taken if not item.settled]
        return Batch(items=items) if items else None

    def _filled_up(self, batch: Batch, now: float, size: BatchSize) -> Batch:
        """The batch with what of others like it fits: many small requests that were refused need not stay many."""
        while batch.may_join and self._again and self._again[0][0] <= now:
            other = self._again[0][2]
            if not other.may_join or other.failures != batch.failures:
                break
            items = [*batch.items, *(item for item in other.items if not item.settled)]
            if fitting((item.tokens for item in items), size) < len(items):
                break
            heapq.heappop(self._again)
            self._again_items -= len(other.items)
            starts = [each.first_sent_at for each in (batch, other) if each.first_sent_at is not None]
            attempts = max(batch.attempts, other.attempts)
            batch = replace(batch, items=items, attempts=attempts, first_sent_at=min(starts, default=None))
        return batch


def _is_for_another(batch: Batch, url: str, open_at: frozenset[str]) -> bool:
    return url in batch.rejected_by and not open_at <= batch.rejected_by
