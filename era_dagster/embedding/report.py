"""What embedding hands back: vectors or reasons, and the counts that go into metadata and progress bars.

Records and their arithmetic only; they are filled by `embedding.work` and `embedding.embedder`.
"""

import hashlib
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from era_dagster.control.trace import Mode
from era_dagster.domain.errors import EraError
from era_dagster.domain.fingerprint import fingerprint
from era_dagster.embedding.vectors import Vector

LATENCIES_KEPT = 10_000
"""Percentiles are of the last so many requests, so that a long run does not grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFailure:
    """Why one text has no vector. `position` is its place in the texts asked for.

    `text_hash`: SHA-256 of the original text, hex. `fingerprint`: 16 hex digits, equal for failures of one kind.
    `attempts`: requests that carried the text.
    """

    position: int
    text_hash: str
    stage: str
    error_class: str
    message: str
    fingerprint: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds from sending a request to its vectors, of successful requests; None while there was none."""

    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedReport:
    """The answer to one `embed`: one normalised float32 vector of shape (dimension,) or None per text, in order.

    `requests`, `texts_sent` and `latency` count every request that carried a text of this call, and its texts;
    `retries` those sent again after trouble, `refusals` the answers 429 and 503. `tokens` is its share, by number of
    texts, of the tokens of answered requests. `from_cache` counts texts, `seconds` the whole call.
    """

    # Not in the repr: asyncio.run formats its result once, for nobody, and 2,000 vectors take 12 seconds.
    vectors: tuple[Vector | None, ...] = field(repr=False)
    failures: tuple[TextFailure, ...]
    from_cache: int
    requests: int
    texts_sent: int
    retries: int
    refusals: int
    tokens: int
    seconds: float
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStats:
    """One endpoint at this moment; `url` without credentials.

    `limit`: most requests in flight; `batch`: most texts in one; `rate`: most texts a second, None while unpaced.
    """

    url: str
    mode: Mode
    in_flight: int
    limit: int
    batch: int
    rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedStats:
    """Counters of an embedder since it was opened. Texts that wait are those accepted and not yet settled."""

    embedded: int
    from_cache: int
    failed: int
    waiting: int
    requests: int
    texts_sent: int
    retries: int
    refusals: int
    tokens: int
    latency: Latency
    endpoints: tuple[EndpointStats, ...]


@dataclass(slots=True, kw_only=True)
class Counters:
    """Running counts, of one call or of a whole embedder; fields as in `EmbedReport` and `EmbedStats`."""

    embedded: int = 0
    from_cache: int = 0
    failed: int = 0
    requests: int = 0
    texts_sent: int = 0
    retries: int = 0
    refusals: int = 0
    tokens: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))

    def sent(self, texts: int, *, retried: bool) -> None:
        """One request with `texts` texts goes out."""
        self.requests += 1
        self.texts_sent += texts
        self.retries += texts if retried else 0

    def answered(self, seconds: float, tokens: int) -> None:
        """One request came back with vectors; tokens as the server counts them where it does, else estimated."""
        self.latencies.append(seconds)
        self.tokens += tokens


def latency(seconds: Collection[float]) -> Latency:
    """The percentiles of some latencies, linear between neighbours.

    Plain Python: a call has a handful of them, for which numpy's percentile costs a hundred times more.
    """
    if not seconds:
        return Latency(p50_seconds=None, p95_seconds=None, p99_seconds=None)
    ordered = sorted(seconds)

    def at(share: float) -> float:
        place = (len(ordered) - 1) * share
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

    return Latency(p50_seconds=at(0.50), p95_seconds=at(0.95), p99_seconds=at(0.99))


def stats_of(counters: Counters, *, waiting: int, endpoints: tuple[EndpointStats, ...]) -> EmbedStats:
    """The counters of a whole embedder at this moment."""
    return EmbedStats(
        embedded=counters.embedded,
        from_cache=counters.from_cache,
        failed=counters.failed,
        waiting=waiting,
        requests=counters.requests,
        texts_sent=counters.texts_sent,
        retries=counters.retries,
        refusals=counters.refusals,
        tokens=counters.tokens,
        latency=latency(counters.latencies),
        endpoints=endpoints,
    )


def text_failure(position: int, text: str, error: EraError, attempts: int) -> TextFailure:
    """The record of one failed text."""
    error_class = type(error).__name__
    return TextFailure(
        position=position,
        text_hash=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        stage="embeddings",
        error_class=error_class,
        message=error.message,
        fingerprint=fingerprint(error_class, error.message),
        attempts=attempts,
    )
