"""What a benchmark run found: frozen records, and their JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from era_dagster.bench.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A client during one tenth of a second that ended at `at` (seconds since the run's start).

    `limit`: requests in flight it allows itself; `batch`: texts in a request; `rate`: its own pace in texts a second
    (None: unpaced); `texts_per_second`: delivered.
    """

    at: float
    limit: int
    in_flight: int
    batch: float | None
    rate: float | None
    texts_per_second: float
    mode: str
    memory_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The server's own limit in texts a second (None: it has none) between two times of the run, in seconds."""

    start: float
    end: float
    texts_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyBin:
    """Median and 95th percentile of the requests that ended in a quarter of a second up to `at`, in seconds."""

    at: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One client on one scenario. Counts are of the measured window, except what became of the texts, which is of all.

    `ratio`: delivered texts to the most the server could have given in the same window, a request on its edge counted in
    part; so is `texts_per_second`, while `texts` counts what arrived. `lost`: texts without a vector
    that should have one; of the poison texts `poison_missing` of `poison_asked` were given up, as they must be.
    """

    scenario: str
    client: str
    ratio: float | None
    texts: int
    window_seconds: float
    texts_per_second: float
    limit_texts_per_second: float | None
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None
    requests: int
    refusals: int
    retries: int
    asked: int
    lost: int
    poison_asked: int
    poison_missing: int
    vectors_checked: int
    wrong_vectors: int
    cpu_ms_per_text: float | None
    server_cpu_ms_per_text: float | None
    most_in_flight: int
    drain_seconds: float
    memory_mb_start: float
    memory_mb_end: float
    error: str | None
    warm_up_seconds: float
    samples: Sequence[Sample]
    latencies: Sequence[LatencyBin]
    limits: Sequence[Stretch]

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing mixed up, and exactly the poison missing."""
        return self.lost == 0 and self.wrong_vectors == 0 and self.poison_missing == self.poison_asked

    def misses(self, scenario: Scenario) -> list[str]:
        """Which expectations of its scenario it does not reach."""
        expect, found = scenario.expect, []
        if expect.ratio is not None and (self.ratio or 0.0) < expect.ratio:
            found.append(f"ratio < {expect.ratio:g}")
        if expect.p95_seconds is not None and (self.p95_seconds or 0.0) > expect.p95_seconds:
            found.append(f"P95 > {expect.p95_seconds * 1000:g}")
        return found


def as_json(run: Run) -> dict[str, Any]:
    """A run as plain data."""
    return {**asdict(run), "clean": run.clean}
