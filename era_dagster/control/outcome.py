"""How one embedding request ended, in the words the controllers understand.

Only the closed set of outcomes lives here; which HTTP answer is which outcome is
decided in `embedding.responses`, what follows from it in the other modules of this package.
"""

from enum import Enum


class Outcome(Enum):
    """What a finished request says about the server.

    SUCCESS: vectors came. TEXTS: the server is well, these texts are refused. TOO_LARGE: it takes smaller requests only.
    RATE_LIMITED: 429. OVERLOADED: 503. TIMED_OUT: no answer in time; the server may still be working on it. FAILED: 5xx,
    reset, no connection.
    """

    SUCCESS = "success"
    TEXTS = "texts"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TIMED_OUT = "timed_out"
    FAILED = "failed"
