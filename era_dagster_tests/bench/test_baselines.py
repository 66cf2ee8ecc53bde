"""The laws of the field do what their descriptions say; a table against straw men would be worth nothing."""

import math
from collections.abc import Sequence

import pytest

from era_dagster.control.admission import WaitUntil
from era_dagster.control.outcome import Outcome
from era_dagster.simulation.spec import course_from
from era_dagster_tests.bench.baselines import (
    BASELINES,
    Aimd,
    Arc,
    AwsBucket,
    Baseline,
    Fixed,
    Gradient2,
    Law,
    Vegas,
    baseline,
)
from era_dagster_tests.bench.engine import Texts, run

OK = Outcome.SUCCESS


def feed(law: Law, rtts: Sequence[float], *, outcome: Outcome = OK, in_flight: int = 1000, now: float = 0.0) -> float:
    """The limit after requests with these latencies, one after the other."""
    for rtt in rtts:
        now += rtt
        law.ended(now, outcome, rtt, in_flight)
    return law.limit


def test_aimd_grows_by_one_and_falls_by_a_tenth() -> None:
    assert feed(Aimd(), [0.1]) == 21
    assert feed(Aimd(), [0.1], in_flight=9) == 20
    assert feed(Aimd(), [0.1], outcome=Outcome.OVERLOADED) == 18
    assert feed(Aimd(), [5.1]) == 18
    assert feed(Aimd(), [0.1], outcome=Outcome.FAILED) == 20


def test_vegas_grows_without_a_queue_and_falls_with_one() -> None:
    assert feed(Vegas(), [0.1, 0.1]) > 20
    assert feed(Vegas(), [0.1, 0.2]) < 20
    assert feed(Vegas(), [0.1], outcome=Outcome.RATE_LIMITED) < 20


def test_gradient2_creeps_up_while_latency_is_steady_and_falls_when_it_doubles() -> None:
    law = Gradient2()
    steady = feed(law, [0.1] * 50)
    assert steady > 50
    assert feed(law, [0.3] * 50) < steady


def test_arc_starts_at_one_adds_one_per_round_trip_and_falls_on_any_error() -> None:
    law = Arc()
    assert law.limit == 1.0
    grown = feed(law, [0.1] * 20)
    assert 5 <= grown <= 20
    assert feed(law, [0.1], outcome=Outcome.FAILED, now=100.0) == math.floor(0.9 * grown)
    assert feed(law, [0.1] * 10, in_flight=1, now=200.0) <= grown


def test_the_bucket_of_aws_only_knows_throttling() -> None:
    course = course_from({"slots": 16, "requests_per_second": 20})
    bucket = AwsBucket()
    result = run([bucket], course, Texts(), seconds=60.0, warm_up=20.0)[0]
    assert result.goodput == pytest.approx(160.0, rel=0.15)
    slow = run([AwsBucket()], course_from({"slots": 1}), Texts(), seconds=30.0)[0]
    assert slow.max_in_flight == 16


def test_retry_after_closes_the_gate_for_every_law() -> None:
    for name in BASELINES:
        client = baseline(name)
        ticket = client.started(0.0, items=8, tokens=800)
        client.completed(1.0, ticket, Outcome.RATE_LIMITED, retry_after_seconds=3.0)
        assert client.admit(1.0, 100) == WaitUntil(4.0)
        assert not isinstance(client.admit(4.0, 100), WaitUntil)


def test_without_retry_after_the_pause_doubles() -> None:
    client = Baseline(Fixed(1))
    now, pauses = 0.0, []
    for _ in range(4):
        ticket = client.started(now, items=8, tokens=800)
        client.completed(now, ticket, Outcome.RATE_LIMITED)
        until = client.admit(now, 100)
        assert isinstance(until, WaitUntil)
        pauses.append(until.at - now)
        now = until.at
    assert pauses == pytest.approx([0.5, 1.0, 2.0, 4.0])


def test_no_law_exceeds_what_somebody_decided() -> None:
    for name in BASELINES:
        result = run([baseline(name, most_requests=3)], course_from({"slots": 16}), Texts(), seconds=10.0)[0]
        assert result.max_in_flight <= 3
