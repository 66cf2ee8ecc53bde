"""Who waits for which text: every text that is accepted and not yet settled, once, however many callers want it.

Keeps the bound of the queue and the counters of the embedder. Knows no endpoints; what is sent when is
`embedding.embedder`.
"""

import asyncio
from collections.abc import Callable, Sequence

from era_dagster.control.batch import estimated_tokens
from era_dagster.domain.errors import EraError, TextsRejected
from era_dagster.embedding.model_profile import ModelProfile, Role
from era_dagster.embedding.report import Counters
from era_dagster.embedding.vectors import ModelIdentity, Vector, cache_key
from era_dagster.embedding.work import Batch, Call, Item


class Ledger:
    """The open items by the text they send, at most `queue_limit` of them.

    `accept` is told of each new item; whoever settles one frees its place.
    """

    def __init__(self, profile: ModelProfile, *, queue_limit: int, accept: Callable[[Item], None]) -> None:
        self.counters = Counters()
        self._profile = profile
        self._accept = accept
        self._items: dict[str, Item] = {}
        self._calls: set[Call] = set()
        self._places = asyncio.Semaphore(queue_limit)

    def __len__(self) -> int:
        return len(self._items)

    async def run(self, call: Call, role: Role, identity: ModelIdentity | None) -> None:
        """Accept the texts of `call` as places become free, and wait until all are settled or the call is ended."""
        self._calls.add(call)
        try:
            for position, text in enumerate(call.texts):
                await self._place(call, position, text, role, identity)
                if call.error is not None:
                    break
            await call.done.wait()
        finally:
            self._calls.discard(call)
            if call.is_open:
                self._forget(call)

    async def _place(self, call: Call, position: int, text: str, role: Role, identity: ModelIdentity | None) -> None:
        """Join whoever waits for the same text already, or take a place for it."""
        normalised = self._profile.normalised(text)
        reason = _unusable(normalised)
        if reason is not None:
            self.counters.failed += 1
            call.settle(position, None, TextsRejected(reason))
            return
        sent = self._profile.prefix(role) + normalised
        if sent not in self._items:
            await self._places.acquire()
            if sent in self._items or call.error is not None:
                self._places.release()
        if call.error is not None:
            return
        item = self._items.get(sent)
        if item is None:
            key = None if identity is None else cache_key(identity, role, text)
            item = Item(text=sent, tokens=estimated_tokens(len(sent)), key=key)
            item.waiters.append((call, position))
            self._accept(item)
            self._items[sent] = item
        else:
            item.waiters.append((call, position))

    def sent(self, batch: Batch, now: float) -> None:
        """The texts of `batch` go out in one request."""
        retried = batch.attempts > 0
        batch.attempts += 1
        if batch.first_sent_at is None:
            batch.first_sent_at = now
        self.counters.sent(len(batch.items), retried=retried)
        for call, texts in batch.calls().items():
            call.counters.sent(texts, retried=retried)

    def settle_vectors(self, made: Sequence[tuple[Item, Vector]]) -> None:
        """These texts have been embedded."""
        for item, vector in made:
            self.counters.embedded += 0 if item.settled else 1
            self._settle(item, vector)

    def settle_from_cache(self, item: Item, vector: Vector) -> None:
        """This text was known."""
        self.counters.from_cache += len(item.waiters)
        for call, _ in item.waiters:
            call.counters.from_cache += 1
        self._settle(item, vector)

    def fail(self, batch: Batch, error: EraError) -> None:
        """These texts get no vector."""
        for item in batch.items:
            self.counters.failed += 0 if item.settled else len(item.waiters)
            self._settle(item, None, error, batch.attempts)

    def end_all(self, error: BaseException) -> None:
        """End every call that waits, and let go of every text."""
        for call in list(self._calls):
            call.end(error)
        for item in list(self._items.values()):
            self._drop(item)

    def _settle(self, item: Item, vector: Vector | None, error: EraError | None = None, attempts: int = 0) -> None:
        if not item.settled:
            self._drop(item)
            for call, position in item.waiters:
                call.settle(position, vector, error, attempts)

    def _drop(self, item: Item) -> None:
        item.settled = True
        del self._items[item.text]
        self._places.release()

    def _forget(self, call: Call) -> None:
        """The call is over: texts that nobody else waits for are dropped, wherever they are."""
        for item in list(self._items.values()):
            item.waiters = [(waiting, position) for waiting, position in item.waiters if waiting is not call]
            if not item.waiters:
                self._drop(item)


def _unusable(text: str) -> str | None:
    """Why a text cannot be sent at all; servers answer blanks with nonsense or leave them out."""
    if not text.strip():
        return "The text is blank."
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "The text holds half of a surrogate pair, which UTF-8 cannot express."
    return None
