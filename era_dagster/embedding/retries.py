"""What becomes of a batch that failed: it is sent again, later, in halves, or its text is given up.

Decides by the history of the batch and the policy. Sends nothing, and knows neither endpoints nor clock.
"""

import math
from collections import Counter, defaultdict, deque
from functools import partial
from random import Random

from era_dagster.control.outcome import Outcome
from era_dagster.control.retry import RetryPolicy
from era_dagster.domain.errors import EndpointBusy, EraError
from era_dagster.embedding.ledger import Ledger
from era_dagster.embedding.provider import Answer
from era_dagster.embedding.responses import Verdict
from era_dagster.embedding.work import Batch, Whole, WorkQueue

FAILURES_TO_SPLIT = 3
"""From its third failure on a batch goes in halves: one text may crash the server, or be too much for its time-out."""
REJECTIONS_TO_GIVE_UP = 2
"""A server that recovers between a text and the text of our own that follows makes one look rejected, but hardly twice. One that
fails by chance does: so many more are needed as there were `doubts` among its last checks."""
CHECKS_KEPT = 20
PASSES_TO_GIVE_UP = 20
"""A text that is refused alone while others are accepted is too large for the server's whole allowance, or it was its turn at
the wrong moment: hardly so often, since what has waited longest goes first."""
PASSES_WHEN_TOLD, PASSES_AT_THE_END = 3, 2
"""So often is enough where the server says when to come back; and where nothing else is left, and the patience is over."""

ASIDE_SHARE = 0.5
"""How often a text that is refused alone lets another go first, where the server does not say when to come back."""


class Retries:
    """Puts batches that failed back into the queue, or gives their texts up."""

    def __init__(self, policy: RetryPolicy, random: Random, queue: WorkQueue, ledger: Ledger) -> None:
        self._policy = policy
        self._random = random
        self._queue = queue
        self._ledger = ledger
        self._accepted: Counter[str] = Counter()
        self._doubts: dict[str, deque[bool]] = defaultdict(partial(deque, maxlen=CHECKS_KEPT))
        self._refusals: dict[str, EraError] = {}

    def accepted(self, url: str, *, after_all: bool = False) -> None:
        """A request to `url` was answered with vectors; `after_all`: that of a text it had rejected."""
        self._accepted[url] += 1
        if after_all:
            self.checked(url, doubt=True)

    def checked(self, url: str, *, doubt: bool) -> None:
        """Whether what `url` says of texts is to be doubted: it failed with a text of our own too, or takes one after all."""
        self._doubts[url].append(doubt)

    def not_checked(self, batch: Batch, own: Answer | Verdict | None, now: float) -> None:
        """A text of our own (`own`, None where it was not sent) has told nothing of a text that failed alone.

        It follows first of all as soon as it may: not one after the other is to wait for its check. After a 503, which asks
        for no pause, it waits as a text would.
        """
        busy = isinstance(own, Verdict) and own.outcome is Outcome.OVERLOADED
        if not batch.doubled:
            wait = self._policy.delay_seconds(1, self._random.random()) if busy else -math.inf
            self._queue.again(batch, now + wait)

    def said_no(self, url: str, verdict: Verdict) -> None:
        """A request to `url` failed. Its last refusal is what texts are given up with, unless it fails otherwise since."""
        if verdict.outcome is Outcome.RATE_LIMITED:
            self._refusals[url] = verdict.error
        else:
            self._refusals.pop(url, None)

    def failed(
        self, batch: Batch, verdict: Verdict, now: float, *, url: str, alone: bool, patience_is_over: bool
    ) -> None:
        """The endpoint failed or refused: later, in halves when its company may be what fails; at last it is given up.

        `alone`: it was the only request that was allowed to go. `patience_is_over`: with every endpoint, by no text's fault.
        """
        self.said_no(url, verdict)
        if isinstance(verdict.error, EndpointBusy):
            for counters in (self._ledger.counters, *(call.counters for call in batch.calls())):
                counters.refusals += 1
        first_sent_at = now if batch.first_sent_at is None else batch.first_sent_at
        seconds = now - first_sent_at
        if verdict.outcome is Outcome.RATE_LIMITED:
            self._refused(batch, verdict, first_sent_at, seconds, url=url, alone=alone)
            return
        batch.failures += 1
        busy = verdict.outcome is Outcome.OVERLOADED
        batch.suspect |= not busy or batch.failures >= FAILURES_TO_SPLIT
        batch.may_join = not batch.suspect
        exhausted = not patience_is_over and self._policy.is_exhausted(
            failures=batch.failures, seconds=seconds, busy=busy
        )
        again_at = now + self._policy.delay_seconds(batch.failures, self._random.random())
        if len(batch.items) > 1 and (exhausted or batch.failures >= FAILURES_TO_SPLIT):
            self._queue.again_in_halves(batch, again_at)
        elif exhausted:
            self._ledger.fail(batch, verdict.error)
        else:
            self._queue.again(batch, again_at)

    def _refused(self, batch: Batch, verdict: Verdict, place: float, seconds: float, *, url: str, alone: bool) -> None:
        """A 429 says nothing about the texts, unless others are accepted again and again and this one never, even alone.

        It may then be larger than the server's whole allowance. As long as nothing is accepted, the endpoints' patience
        is the bound. What has waited longest goes first: a server may have room for one request a minute. Refused alone it
        lets another go first, since one that is never accepted would hold up all others. By chance where the server does not
        say when to come back: turns might keep step with what it gives. Not after an endpoint that takes nothing while another
        does: that one's turns would be lost.
        """
        if alone and batch.accepted_before.get(url, 0) != self._accepted[url]:
            batch.accepted_before = {**batch.accepted_before, url: self._accepted[url]}
            batch.passed_over += 1
        batch.may_join = not (batch.suspect or batch.passed_over)
        only_others_accept = bool(self._accepted) and not self._accepted[url]
        told = bool(verdict.retry_after_seconds)
        passes = PASSES_WHEN_TOLD if told else PASSES_TO_GIVE_UP
        exhausted = batch.passed_over >= passes and seconds >= self._policy.budget_seconds
        if len(batch.items) > 1 and (exhausted or (alone and batch.attempts >= FAILURES_TO_SPLIT)):
            self._queue.again_in_halves(batch, place)
        elif exhausted:
            self._ledger.fail(batch, verdict.error)
        elif alone and not only_others_accept and (told or self._random.random() < ASIDE_SHARE):
            self._queue.aside(batch, place)
        else:
            self._queue.again(batch, place)

    def give_up_what_was_passed_over(self) -> bool:
        """The endpoints' patience is over: whether that was the fault of the texts that are left, which are given up then."""
        refusal = next(iter(self._refusals.values()), None)
        if refusal is None:
            return False
        left = self._queue.take_passed_over(PASSES_AT_THE_END)
        for batch in left:
            self._ledger.fail(batch, refusal)
        return bool(left)

    def rejected(self, batch: Batch, error: EraError, now: float, *, url: str, open_at: frozenset[str]) -> None:
        """Its texts are refused while the server is well: halved until the text that spoils its company is alone.

        `open_at`: the URLs of the endpoints that take work at this moment; what one of them rejects another may take.
        """
        batch.suspect, batch.may_join = True, False
        if len(batch.items) > 1:
            batch.whole = Whole(url, len(batch.items))
            self._queue.again_in_halves(batch, now)
            return
        enough = min(self._policy.attempts, REJECTIONS_TO_GIVE_UP + sum(self._doubts[url]))
        batch.rejections += 1
        batch.rejected_by |= {url}
        if batch.rejections >= enough and open_at <= batch.rejected_by:
            self._ledger.fail(batch, error)
        else:
            self._queue.again(batch, now)
