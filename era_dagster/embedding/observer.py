"""What an embedder tells of each request when it ends: for metrics, logs and benchmarks.

A frozen record handed to one function; nothing the embedder does depends on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from era_dagster.control.admission import Ticket
from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import EraError
from era_dagster.embedding.provider import Answer
from era_dagster.embedding.responses import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request that ended.

    `endpoint`: its URL without credentials. `number`: the endpoint's count of requests, from 1; a probe that follows the
    failure of a single text has the same. `ended_at`: the event loop's clock, `seconds` since it was sent. `texts` in it,
    `retried` of them not for the first time. `tokens`: the server's own count where it gave one, else estimated. `probe`:
    the text was the embedder's own. `outcome` is None and `error` too when the embedder gave the request up (its run
    stopped).
    """

    endpoint: str
    number: int
    ended_at: float
    seconds: float
    texts: int
    retried: int
    tokens: int
    probe: bool
    outcome: Outcome | None
    error: EraError | None


RequestObserver = Callable[[RequestRecord], None]
"""Called in the event loop for every request; must return quickly and never raise."""


def ended_request(
    endpoint: str, ticket: Ticket, answer: Answer | Verdict | None, *, now: float, texts: int, retried: bool
) -> RequestRecord:
    """The record of a request that ended `now` with `answer`, None: it was given up."""
    counted = answer.tokens if isinstance(answer, Answer) else None
    failed = answer if isinstance(answer, Verdict) else None
    return RequestRecord(
        endpoint=endpoint,
        number=ticket.number,
        ended_at=now,
        seconds=now - ticket.sent_at,
        texts=texts,
        retried=texts if retried else 0,
        tokens=ticket.tokens if counted is None else counted,
        probe=ticket.probe,
        outcome=failed.outcome if failed else None if answer is None else Outcome.SUCCESS,
        error=failed.error if failed else None,
    )
