"""What an embedder tells of each request when it ends: for metrics, logs and benchmarks.

A frozen record handed to one function; nothing the embedder does depends on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import EraError


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request that ended.

    `endpoint`: its URL without credentials. `number`: the endpoint's count of requests, from 1. `ended_at`: the event
    loop's clock, `seconds` since it was sent. `texts` in it, `retried` of them not for the first time. `tokens`: the
    server's own count where it gave one, else estimated. `probe`: the text was the embedder's own. `outcome` is None and
    `error` too when the embedder gave the request up (its run stopped).
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
