"""How well two throughputs are told apart."""

import pytest

from era_dagster.control.measure import Measurement, doubt


def measured(*, samples: int = 100, flights: float = 1e9, cv: float = 0.0) -> Measurement:
    return Measurement(
        samples=samples,
        flights=flights,
        seconds=1.0,
        throughput=1000.0,
        latency=0.4,
        cv=cv,
        p95_ratio=1.2,
    )


def test_two_measurements_share_their_spread_and_each_has_its_own_number_of_samples() -> None:
    few, many = measured(samples=25, cv=0.0), measured(samples=75, cv=0.4)
    assert doubt(few, many) == pytest.approx(0.08), "three quarters of 0.16 are the variance, over 25 and over 75"
    assert doubt(many, few) == pytest.approx(0.08)


def test_few_flights_leave_doubt_however_even_the_answers_are() -> None:
    assert doubt(measured(flights=2.25), measured(flights=4.0)) == pytest.approx(0.05)
    assert doubt(measured(flights=4.0), measured(flights=2.25)) == pytest.approx(0.05)
