"""What somebody decided, and no controller exceeds: ceilings and the latency target."""

from dataclasses import dataclass

MOST_REQUESTS = 256
MOST_TEXTS = 128
MOST_TOKENS = 16384
"""Where nobody decided: bounds that no server is meant to reach. Many refuse more connections, or more texts in one."""

PRICE = 0.15
"""Above the lowest latency, work must raise throughput by this share of its own increase to be worth its waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Most requests in flight, most texts and most tokens in one request; `latency_seconds`: the target for the 95th
    percentile of requests."""

    concurrency: int = MOST_REQUESTS
    items: int = MOST_TEXTS
    tokens: int = MOST_TOKENS
    latency_seconds: float = 0.5

    @property
    def lowest_latency(self) -> float:
        """Up to this mean latency a queue costs nobody anything: no proof of gain is asked for."""
        return 0.33 * self.latency_seconds

    @property
    def highest_latency(self) -> float:
        """Above this mean latency the 95th percentile would miss its target."""
        return 0.88 * self.latency_seconds
