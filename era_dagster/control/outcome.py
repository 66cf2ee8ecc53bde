"""How one embedding request ended, in the words the controllers understand.

Only the closed set of outcomes and the record of one finished request live here; which HTTP answer is which outcome is
decided in `embedding.responses`, what follows from it in the other modules of this package.
"""

from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """What a finished request says about the server.

    SUCCESS: vectors came. TEXTS: the server is well, these texts are refused or too large. RATE_LIMITED: 429.
    OVERLOADED: 503. TIMED_OUT: no answer in time; the server may still be working on it. FAILED: 5xx, reset, no
    connection.
    """

    SUCCESS = "success"
    TEXTS = "texts"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TIMED_OUT = "timed_out"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One finished request. Times are the caller's clock, in seconds; `tokens` is an estimate where nobody counted."""

    sent_at: float
    completed_at: float
    outcome: Outcome
    items: int
    tokens: int
