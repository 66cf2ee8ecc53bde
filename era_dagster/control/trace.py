"""The record of one decision of a controller, for logs, metrics and plots."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["start", "hold", "probe", "paced", "throttled", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecord:
    """What a controller did at `at` (the caller's clock, seconds), and why.

    `concurrency`: requests in flight at most; `batch_items`: texts in one request at most; `rate`: texts a second at most,
    None while unpaced. What it rests on, of the stretch before: `throughput` in tokens a second, `latency_seconds` the mean
    of requests, `target_seconds` the mean latency aimed at, `gain` the change of ln(throughput) that was judged; None where
    nothing was measured.
    """

    at: float
    mode: Mode
    reason: str
    concurrency: int
    batch_items: int
    rate: float | None
    throughput: float | None = None
    latency_seconds: float | None = None
    target_seconds: float | None = None
    gain: float | None = None
