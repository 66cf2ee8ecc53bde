"""How often and after which wait a failed request is sent again.

Full jitter (a random part of an exponentially growing ceiling), bounded by attempts and by time. The random number and
the clock come from the caller.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Bounds of the retries of one text: it is given up at the first bound it reaches, or at both where it was only refused."""

    attempts: int
    budget_seconds: float
    first_delay_seconds: float = 0.25
    longest_delay_seconds: float = 20.0

    def delay_seconds(self, failures: int, fraction: float) -> float:
        """The wait after the `failures`-th failure in a row (from 1); `fraction` is a random number in [0, 1)."""
        ceiling = self.first_delay_seconds * 2.0 ** min(max(failures, 1) - 1, 30)
        return fraction * min(self.longest_delay_seconds, ceiling)

    def is_exhausted(self, *, failures: int, seconds: float, busy: bool = False) -> bool:
        """Whether a text that failed `failures` times within `seconds` of its first sending is given up.

        `busy`: at last it was only refused because the server was busy, which says little of the text.
        """
        often, long = failures >= self.attempts, seconds >= self.budget_seconds
        return (often and long) if busy else (often or long)
