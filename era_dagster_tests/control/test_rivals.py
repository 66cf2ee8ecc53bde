"""Whether others share the server. A light load takes 0.1 s; a thousand tokens in flight took 0.3 s."""

import math

import pytest

from era_dagster.control.measure import Measurement
from era_dagster.control.point import Point
from era_dagster.control.rivals import News, Rivals

LIGHT = 0.1
WORK, LATENCY, REQUESTS = 1000.0, 0.3, 4
"""A server of one's own would take 0.1 s, and 0.2 s more for each thousand tokens."""


def measured(latency: float = LATENCY, *, cv: float = 0.0, samples: int = 400) -> Measurement:
    return Measurement(
        samples=samples,
        flights=100.0,
        seconds=1.0,
        throughput=WORK / LATENCY,
        latency=latency,
        cv=cv,
        p95_ratio=1.2,
    )


def rivals(reference: float = LATENCY) -> Rivals:
    found = Rivals()
    found.begin(LIGHT, (Point(REQUESTS, WORK), measured(reference)))
    return found


def news(
    found: Rivals,
    latency: float,
    *,
    work: float = WORK,
    requests: int = REQUESTS,
    cv: float = 0.0,
    raised: bool = True,
    may_rise: bool = True,
) -> News:
    seen = measured(latency, cv=cv)
    return found.news(10.0, Point(requests, work), seen, raised=raised, may_rise=may_rise)


@pytest.mark.parametrize(("work", "latency"), [(1000.0, 0.3), (4000.0, 0.9), (500.0, 0.2), (100.0, 0.12)])
def test_a_server_of_ones_own_is_no_news_whatever_the_work(work: float, latency: float) -> None:
    found = rivals()
    for factor in (math.exp(0.19), math.exp(-0.19)):
        assert news(found, factor * latency, work=work) is None
    assert not found.shared(10.0)


@pytest.mark.parametrize(("work", "latency"), [(1000.0, 0.3), (710.0, 0.242), (1040.0, 0.308)])
def test_others_took_where_no_more_work_takes_longer(work: float, latency: float) -> None:
    assert news(rivals(), math.exp(0.21) * latency, work=work) == "others took"


@pytest.mark.parametrize("work", [690.0, 1060.0])
def test_after_a_large_cut_or_growth_what_takes_longer_is_not_held_against_others(work: float) -> None:
    assert news(rivals(), 2.0, work=work) is None


def test_where_nobody_may_aim_higher_that_others_took_is_no_news() -> None:
    assert news(rivals(), 0.6, may_rise=False) is None


def test_what_others_took_is_told_once_and_what_they_take_next_again() -> None:
    found = rivals()
    assert [news(found, latency) for latency in (0.4, 0.4, 0.6)] == ["others took", None, "others took"]


def test_others_gave_way_where_growth_costs_less_than_it_would_alone() -> None:
    found = rivals()
    assert news(found, math.exp(-0.21) * 0.7, work=3000.0) == "others gave way"
    assert found.shared(69.9), "for a minute"
    assert not found.shared(70.0)


@pytest.mark.parametrize(("work", "raised"), [(3000.0, False), (1000.0, True)])
def test_at_the_lowest_target_or_without_growth_nobody_is_said_to_give_way(work: float, raised: bool) -> None:
    assert news(rivals(), 0.2, work=work, raised=raised) is None


def test_at_the_lowest_target_every_measurement_is_what_the_next_is_compared_with() -> None:
    found = rivals()
    assert news(found, 0.4, work=2000.0, raised=False) is None
    assert news(found, 0.5, work=2000.0) == "others took"


def test_above_the_lowest_target_the_comparison_stays_since_others_give_way_little_by_little() -> None:
    found = rivals()
    told = [news(found, 0.9 * (0.1 + 0.2 * work / WORK), work=work) for work in (1500.0, 2000.0)]
    assert told == [None, None]
    assert news(found, 0.75 * 0.7, work=3000.0) == "others gave way"


def test_more_work_in_more_requests_that_takes_no_longer_may_have_found_free_slots() -> None:
    assert news(rivals(), math.exp(-0.19) * LATENCY, work=2000.0, requests=8) is None
    assert news(rivals(), math.exp(-0.21) * LATENCY, work=2000.0, requests=8) == "others gave way"


@pytest.mark.parametrize("requests", [1, 2])
def test_in_fewer_requests_others_gave_way_where_the_work_grew(requests: int) -> None:
    assert news(rivals(), 0.8 * 0.34, work=1200.0, requests=requests) == "others gave way"
    assert news(rivals(), 0.8 * 0.3, work=1000.0, requests=requests) is None


def test_further_than_threefold_work_what_it_would_take_is_not_reckoned() -> None:
    assert news(rivals(), math.exp(-0.19) * 0.7, work=8000.0) is None
    assert news(rivals(), math.exp(-0.21) * 0.7, work=8000.0) == "others gave way"


def test_until_something_queues_there_is_nothing_to_compare_with() -> None:
    found = rivals(reference=1.09 * LIGHT)
    assert news(found, 0.2) is None, "from here on it does"
    assert news(found, 0.3) == "others took"


def test_what_noise_explains_is_no_news() -> None:
    assert news(rivals(), math.exp(0.3) * LATENCY, cv=1.9) is None
    assert news(rivals(), math.exp(-0.3) * 0.7, work=3000.0, cv=1.9) is None


def test_more_requests_that_gained_much_are_a_faster_server_and_no_rivals() -> None:
    found = rivals()
    found.reshaped(0.5)
    assert news(found, 0.1 + 0.6 * math.exp(-0.5), work=3000.0) is None
    little = rivals()
    little.reshaped(0.19)
    assert news(little, 0.7 * 0.7, work=3000.0) == "others gave way"


def test_who_is_left_alone_with_giving_way_shares_no_more_and_compares_anew() -> None:
    found = rivals()
    assert news(found, 0.5, work=3000.0) == "others gave way"
    found.alone()
    assert not found.shared(10.0)
    assert news(found, 0.5, work=3000.0) is None
    assert news(found, 0.7, work=3000.0) == "others took"


def test_without_a_light_load_that_was_seen_latency_is_all_queue() -> None:
    found = Rivals()
    found.begin(math.inf, (Point(REQUESTS, WORK), measured()))
    assert news(found, 0.65, work=2000.0) is None
    assert news(found, 0.48, work=2000.0) == "others gave way"
