"""Runs one scenario under one controller and says what came of it, in the numbers that scenarios expect something of."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from era_dagster.control.gate import EndpointController
from era_dagster.control.trace import TraceRecord
from era_dagster_tests.bench.baselines import baseline
from era_dagster_tests.bench.engine import Controller, Result, run
from era_dagster_tests.bench.scenarios import Scenario

OURS = "ours"
PATIENCE_SECONDS = 600.0
RECOVERY_SECONDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One run, from its first second: learning is part of the price.

    `ratio`: texts delivered over those of the oracle. `p95_seconds` of the successful requests of all clients.
    `refused_share`: 429 and 503 over requests. `concurrency_end`, `work_end`: median limit of requests, and of requests x
    texts in each, in the last quarter. Only where the scenario says from when to when it is disturbed: `work_kept`: the
    lowest work limit in the five seconds after, over the median before; `recovery`: goodput in five seconds, from one
    second after, over that before. `fairness`: the worst client's share over the best one's, in the second half of
    their common time.
    """

    scenario: str
    controller: str
    seed: int
    ratio: float
    goodput: float
    p95_seconds: float
    refused_share: float
    lost: int
    most_in_flight: int
    concurrency_end: float
    work_end: float
    work_kept: float | None
    recovery: float | None
    fairness: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A controller's limits at one moment."""

    at: float
    concurrency: int
    work: int


def controllers_for(
    scenario: Scenario, name: str, trace: Callable[[TraceRecord], None] | None = None
) -> list[Controller]:
    """Fresh controllers, one for each client; `trace` hears the decisions of the first one of ours."""
    if name != OURS:
        return [baseline(name, most_requests=scenario.ceilings.concurrency) for _ in scenario.starts]
    return [
        EndpointController(scenario.ceilings, patience_seconds=PATIENCE_SECONDS, trace=trace if number == 0 else None)
        for number in range(len(scenario.starts))
    ]


def measured(
    scenario: Scenario,
    controllers: Sequence[Controller],
    *,
    name: str,
    seed: int,
    oracle_goodput: float,
) -> Score:
    """Run the scenario under these controllers."""
    samples: list[Sample] = []

    def watch(now: float, watched: Sequence[Controller]) -> None:
        first = watched[0]
        samples.append(Sample(now, first.concurrency, first.concurrency * first.batch_items))

    results = run(
        controllers,
        scenario.course,
        scenario.texts,
        seconds=scenario.seconds,
        seed=seed,
        starts=scenario.starts,
        told=scenario.told,
        watch=watch,
    )
    goodput = sum(result.goodput for result in results) if len(results) == 1 else _together(scenario, results)
    last = [sample for sample in samples if sample.at >= 0.75 * samples[-1].at]
    latencies = sorted(seconds for result in results for seconds in result.latencies)
    return Score(
        scenario=scenario.name,
        controller=name,
        seed=seed,
        ratio=goodput / oracle_goodput,
        goodput=goodput,
        p95_seconds=latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))] if latencies else math.inf,
        refused_share=sum(each.refusals for each in results) / max(1, sum(each.requests for each in results)),
        lost=sum(each.lost for each in results),
        most_in_flight=max(each.max_in_flight for each in results),
        concurrency_end=median(sample.concurrency for sample in last),
        work_end=median(sample.work for sample in last),
        work_kept=_work_kept(scenario, samples),
        recovery=_recovery(scenario, results),
        fairness=_fairness(scenario, results),
    )


def _together(scenario: Scenario, results: Sequence[Result]) -> float:
    return sum(result.texts for result in results) / scenario.seconds


def _work_kept(scenario: Scenario, samples: Sequence[Sample]) -> float | None:
    if scenario.disturbed is None:
        return None
    start, end = scenario.disturbed
    before = median(sample.work for sample in samples if start / 2 <= sample.at < start)
    after = [sample.work for sample in samples if end <= sample.at < end + RECOVERY_SECONDS]
    return min(after) / before if after else None


def _recovery(scenario: Scenario, results: Sequence[Result]) -> float | None:
    if scenario.disturbed is None:
        return None
    start, end = int(scenario.disturbed[0]), math.ceil(scenario.disturbed[1])
    before = sum(result.delivered(start // 2, start) for result in results) / max(1, start - start // 2)
    after = sum(result.delivered(end + 1, end + 1 + RECOVERY_SECONDS) for result in results) / RECOVERY_SECONDS
    return after / before if before else None


def _fairness(scenario: Scenario, results: Sequence[Result]) -> float | None:
    if len(results) == 1:
        return None
    middle = int(max(scenario.starts) + scenario.seconds) // 2
    shares = [result.delivered(middle, int(scenario.seconds)) for result in results]
    return min(shares) / max(1, *shares)


def misses(score: Score, expect: Mapping[str, tuple[float, float]]) -> list[str]:
    """What is out of its expected range, in words."""
    found: list[str] = []
    for measure, (low, high) in expect.items():
        value = getattr(score, measure)
        if value is None or not low <= value <= high:
            found.append(f"{measure} is {value}, expected {low:g} to {high:g}")
    return found
