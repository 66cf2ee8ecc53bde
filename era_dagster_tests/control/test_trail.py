"""Where the law came from: several steps the same way are one, and growth or cuts that were worth nothing."""

import math

import pytest

from era_dagster.control.measure import Measurement
from era_dagster.control.point import Point
from era_dagster.control.trail import Step


def measured(*, gain: float = 0.0, longer: float = 0.0, error: float = 0.0) -> Measurement:
    """A thousand tokens a second in 0.4 s, times e to the `gain` and to the `longer`; `error` that of ln(throughput)."""
    return Measurement(
        samples=100,
        flights=1e9,
        seconds=1.0,
        throughput=1000.0 * math.exp(gain),
        latency=0.4 * math.exp(longer),
        cv=error * 10.0,
        p95_ratio=1.2,
    )


def step(work: float = 1000.0, *, gain: float = 0.0, longer: float = 0.0, error: float = 0.0) -> Step:
    return Step(Point(10, work), measured(gain=gain, longer=longer, error=error))


def test_growth_in_several_steps_is_compared_with_the_best_throughput_on_the_way() -> None:
    first, better, worse = step(100.0), step(200.0, gain=0.1), step(200.0, gain=-0.1)
    assert first.then(better, 400.0) is better
    assert first.then(worse, 400.0) is first


@pytest.mark.parametrize("work", [100.0, 200.0])
def test_cuts_in_several_steps_are_one_from_the_first_point_even_where_nothing_is_cut_on_the_way(work: float) -> None:
    first = step(400.0)
    assert first.then(step(200.0, longer=-0.1), work) == first


def test_cuts_are_compared_with_the_latency_they_began_at_unless_it_has_clearly_become_longer() -> None:
    first = step(400.0, error=0.03)
    noisy, clear = (step(200.0, longer=longer, error=0.04) for longer in (0.14, 0.16))
    assert first.then(noisy, 100.0) == first
    assert first.then(clear, 100.0) == Step(first.point, clear.measured)


@pytest.mark.parametrize(
    ("before", "at", "to"), [(100, 200, 150), (100, 200, 200), (200, 100, 150), (100, 100, 200), (200, 200, 100)]
)
def test_a_step_the_other_way_or_after_none_stands_alone(before: float, at: float, to: float) -> None:
    first, later = step(before, gain=0.5, longer=0.5), step(at)
    assert first.then(later, to) is later


def test_the_gain_is_the_logarithm_of_what_the_throughput_became() -> None:
    assert step().gain(measured(gain=0.3)) == pytest.approx(0.3)
    assert step(gain=0.3).gain(measured()) == pytest.approx(-0.3)


def test_growth_does_harm_where_a_seventh_is_lost_and_a_cut_never_does() -> None:
    lost, little = measured(gain=-0.16), measured(gain=-0.14)
    assert step().did_harm(1010.0, lost)
    assert not step().did_harm(1010.0, little)
    assert not step().did_harm(1000.0, lost)
    assert not step().did_harm(500.0, lost)


@pytest.mark.parametrize(("before", "after"), [(0.3, 0.4), (0.5, 0.0), (0.0, 0.5)])
def test_what_noise_at_either_end_explains_is_no_harm(before: float, after: float) -> None:
    assert not step(error=before).did_harm(2000.0, measured(gain=-1.48, error=after))
    assert step(error=before).did_harm(2000.0, measured(gain=-1.52, error=after))


def test_a_cut_that_lowered_no_latency_was_in_vain() -> None:
    assert step().was_in_vain(500.0, measured(gain=-0.6, longer=0.3))
    assert step().was_in_vain(500.0, measured(gain=-0.6, longer=-0.13))
    assert not step().was_in_vain(500.0, measured(gain=-0.6, longer=-0.15))


def test_what_a_small_cut_or_growth_did_to_the_latency_is_not_asked() -> None:
    lost = measured(gain=-0.6)
    assert step().was_in_vain(1000.0 * math.exp(-0.26), lost)
    assert not step().was_in_vain(1000.0 * math.exp(-0.24), lost)
    assert not step().was_in_vain(2000.0, lost)


@pytest.mark.parametrize(("before", "after", "noise"), [(0.0, 0.0, 0.0), (0.03, 0.04, 0.05), (0.1, 0.0, 0.1)])
def test_a_cut_that_cost_less_than_three_quarters_of_it_and_noise_was_not_in_vain(
    before: float, after: float, noise: float
) -> None:
    work = 1000.0 * math.exp(-0.4)
    assert not step(error=before).was_in_vain(work, measured(gain=-0.29 - noise, error=after))
    assert step(error=before).was_in_vain(work, measured(gain=-0.31 - noise, error=after))


def test_growth_paid_little_where_it_clearly_gained_less_than_half_of_what_it_may() -> None:
    assert step(100.0).paid_little(200.0, measured(gain=0.3))
    assert not step(100.0).paid_little(200.0, measured(gain=0.4)), "half of ln 2 is 0.35"
    assert not step(100.0, error=0.1).paid_little(200.0, measured(gain=0.3)), "that may be noise"
    assert not step(100.0).paid_little(125.0, measured()), "what so small a step does cannot be told"
