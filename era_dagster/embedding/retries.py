"""What becomes of a batch that failed: it is sent again, later, in halves, or its text is given up.

Decides by the history of the batch and the policy. Sends nothing, and knows neither endpoints nor clock.
"""

from random import Random

from era_dagster.control.outcome import Outcome
from era_dagster.control.retry import RetryPolicy
from era_dagster.domain.errors import EndpointBusy, EraError, TextsTooLarge
from era_dagster.embedding.ledger import Ledger
from era_dagster.embedding.responses import Verdict
from era_dagster.embedding.work import Batch, WorkQueue

FAILURES_TO_SPLIT = 3
"""From its third failure on a batch goes in halves: one text may crash the server, or be too much for its time-out."""
REJECTIONS_TO_GIVE_UP = 2
"""A server that recovers between a text and the text of our own that follows makes one look rejected, but hardly twice."""
PASSES_TO_GIVE_UP = 20
"""A text that is refused alone while others are accepted is too large for the server's whole allowance, or it was its turn at
the wrong moment: hardly so often, since what has waited longest goes first."""
PASSES_WHEN_TOLD, PASSES_AT_THE_END = 3, 2
"""So often is enough where the server says when to come back; and where nothing else is left, and the patience is over."""


class Retries:
    """Puts batches that failed back into the queue, or gives their texts up."""

    def __init__(self, policy: RetryPolicy, random: Random, queue: WorkQueue, ledger: Ledger) -> None:
        self._policy = policy
        self._random = random
        self._queue = queue
        self._ledger = ledger
        self._accepted = 0
        self._refusal: EraError | None = None

    def accepted(self) -> None:
        """A request was answered with vectors."""
        self._accepted += 1

    def failed(self, batch: Batch, verdict: Verdict, now: float, *, alone: bool) -> None:
        """The endpoint failed or refused: later, in halves when its company may be what fails; at last it is given up.

        `alone`: it was the only request that was allowed to go.
        """
        if isinstance(verdict.error, EndpointBusy):
            for counters in (self._ledger.counters, *(call.counters for call in batch.calls())):
                counters.refusals += 1
        first_sent_at = now if batch.first_sent_at is None else batch.first_sent_at
        seconds = now - first_sent_at
        if verdict.outcome is Outcome.RATE_LIMITED:
            self._refused(batch, verdict, first_sent_at, seconds, alone=alone)
            return
        batch.failures += 1
        exhausted = self._policy.is_exhausted(failures=batch.failures, seconds=seconds)
        again_at = now + self._policy.delay_seconds(batch.failures, self._random.random())
        if len(batch.items) > 1 and (exhausted or batch.failures >= FAILURES_TO_SPLIT):
            self._queue.again_in_halves(batch, again_at)
        elif exhausted:
            self._ledger.fail(batch, verdict.error)
        else:
            self._queue.again(batch, again_at)

    def _refused(self, batch: Batch, verdict: Verdict, place: float, seconds: float, *, alone: bool) -> None:
        """A 429 says nothing about the texts, unless others are accepted again and again and this one never, even alone.

        It may then be larger than the server's whole allowance. As long as nothing is accepted, the endpoints' patience
        is the bound. What has waited longest goes first: a server may have room for one request a minute. Refused alone it
        lets another go first, since one that is never accepted would hold up all others.
        """
        self._refusal = verdict.error
        if alone and batch.accepted_before != self._accepted:
            batch.accepted_before = self._accepted
            batch.passed_over += 1
        passes = PASSES_WHEN_TOLD if verdict.retry_after_seconds else PASSES_TO_GIVE_UP
        exhausted = batch.passed_over >= passes and seconds >= self._policy.budget_seconds
        if len(batch.items) > 1 and (exhausted or (alone and batch.attempts >= FAILURES_TO_SPLIT)):
            self._queue.again_in_halves(batch, place)
        elif exhausted:
            self._ledger.fail(batch, verdict.error)
        elif alone:
            self._queue.aside(batch, place)
        else:
            self._queue.again(batch, place)

    def give_up_what_was_passed_over(self) -> bool:
        """The endpoints' patience is over: whether that was the fault of the texts that are left, which are given up then."""
        if self._refusal is None:
            return False
        left = self._queue.take_passed_over(PASSES_AT_THE_END)
        for batch in left:
            self._ledger.fail(batch, self._refusal)
        return bool(left)

    def rejected(self, batch: Batch, error: EraError, now: float) -> None:
        """Its texts are refused while the server is well: halved until the text that spoils its company is alone."""
        if len(batch.items) > 1:
            self._queue.again_in_halves(batch, now)
        elif isinstance(error, TextsTooLarge):
            self._ledger.fail(batch, error)
        else:
            self._count(batch, error, now)

    def without_vector(self, batch: Batch, error: EraError, now: float, *, others_have_one: bool) -> None:
        """A text whose vector was none among others of the same request: alone from now on."""
        if others_have_one:
            self._count(batch, error, now)
        else:
            self._queue.again(batch, now)

    def _count(self, batch: Batch, error: EraError, now: float) -> None:
        batch.rejections += 1
        if batch.rejections >= REJECTIONS_TO_GIVE_UP:
            self._ledger.fail(batch, error)
        else:
            self._queue.again(batch, now)
