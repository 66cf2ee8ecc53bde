"""Where the law may go from a point. The 95th percentile is held to 1 s, a text has ten tokens."""

import math

import pytest

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.measure import Measurement
from era_dagster.control.moves import Pace, on_target, probed, towards_target
from era_dagster.control.point import Point
from era_dagster.control.probes import Probe
from era_dagster.control.target import LatencyTarget

LOWEST = 0.33
HIGHEST = 0.92 / 1.2
LARGE = Point(4, 40_000.0)
"""A thousand texts in each of four requests: the smallest step up is next to nothing."""
PROBES: tuple[Probe, ...] = ("up", "down", "wider", "narrower")


def target(seconds: float = LOWEST, *, light: float = 0.05) -> LatencyTarget:
    found = LatencyTarget(Ceilings(latency_seconds=1.0))
    found.begin(seconds, light_latency=light)
    return found


def held(latency: float, cv: float) -> Measurement:
    return Measurement(
        samples=40,
        flights=10.0,
        seconds=1.0,
        throughput=1000.0,
        latency=latency,
        cv=cv,
        p95_ratio=1.2,
    )


def tried(
    probe: Probe,
    point: Point = LARGE,
    *,
    latency: float = 0.2,
    cv: float = 0.1,
    pace: Pace = None,
    kept_in_a_row: int = 0,
    untried: bool = True,
    other_way: bool = False,
    most_work: float = math.inf,
    shared: bool = False,
    seconds: float = LOWEST,
    light: float = 0.05,
) -> Point:
    return probed(
        probe,
        point,
        held(latency, cv),
        target(seconds, light=light),
        item_tokens=10.0,
        pace=pace,
        kept_in_a_row=kept_in_a_row,
        untried=untried,
        other_way=other_way,
        most_work=most_work,
        shared=shared,
    )


@pytest.mark.parametrize(
    ("off", "pace", "factor"),
    [
        (math.log(1.5), None, 1.5),
        (math.log(0.6), None, 0.6),
        (math.log(3.0), None, 2.0),
        (math.log(3.0), "items", 3.0),  # nothing queues
        (math.log(20.0), "items", 8.0),
        (math.log(20.0), "requests", 8.0),
        (math.log(0.1), None, 0.25),
        (math.log(0.1), "items", 0.25),
    ],
)
def test_one_move_towards_the_target_doubles_the_work_at_most_or_leaves_a_quarter(
    off: float, pace: Pace, factor: float
) -> None:
    moved = towards_target(Point(4, 400.0), off, 0.2, target(), item_tokens=10.0, pace=pace)
    assert (moved.concurrency, moved.work) == (4, pytest.approx(factor * 400.0))


@pytest.mark.parametrize(("off", "factor"), [(0.2, 1.0), (-0.2, math.exp(-0.2))])
def test_where_one_text_more_would_be_late_it_only_shrinks(off: float, factor: float) -> None:
    slow = target(0.7, light=0.6)
    moved = towards_target(Point(2, 20.0), off, 0.6, slow, item_tokens=10.0, pace=None)
    assert moved.work == pytest.approx(factor * 20.0)


@pytest.mark.parametrize(
    ("point", "off", "pace", "requests"),
    [
        (Point(4, 40.0), math.log(1.3), None, 5),
        (Point(4, 40.0), math.log(1.2), None, 4),  # texts are whole
        (Point(1, 10.0), math.log(1.9), None, 1),
        (Point(4, 40.0), math.log(1.3), "items", 4),  # nothing queues
        (Point(2, 40.0), math.log(1.9), None, 2),  # the requests have room to shrink
    ],
)
def test_where_single_texts_leave_no_room_for_a_second_more_work_is_more_requests(
    point: Point, off: float, pace: Pace, requests: int
) -> None:
    slow = target(0.7, light=0.6)
    assert towards_target(point, off, 0.6, slow, item_tokens=10.0, pace=pace).concurrency == requests


def grown(point: Point, off: float = 0.0, *, latency: float = 0.3, seconds: float = LOWEST, pace: Pace = None) -> Point:
    return on_target(point, off, latency, target(seconds), item_tokens=10.0, pace=pace)


def test_a_little_above_the_target_it_shrinks_by_its_share_and_else_grows() -> None:
    found = grown(LARGE, -0.071)
    assert (found.concurrency, found.work) == (4, pytest.approx(40_000.0 * math.exp(-0.071)))
    assert grown(LARGE, -0.069) == Point(4, 40_040.0)


def test_on_target_single_texts_become_more_in_number_unless_a_pace_holds_them_back() -> None:
    single = Point(10, 100.0)
    assert grown(single) == Point(11, 110.0)
    assert grown(single, 0.6, pace="items") == Point(10, 200.0)


def test_the_smallest_step_is_not_taken_where_it_leads_away_from_the_target() -> None:
    assert grown(Point(5, 100.0), 0.36) == Point(5, 150.0), "half as much again is within reach"
    assert grown(Point(5, 100.0)) == Point(5, 100.0)


@pytest.mark.parametrize(
    ("seconds", "point", "expected"),
    [
        (1.15 * LOWEST, Point(4, 40_000.0), Point(4, 40_040.0)),  # nobody else is there
        (1.25 * LOWEST, Point(4, 40_000.0), Point(4, 40_000.0 + 632.456)),
        (1.25 * LOWEST, Point(40, 1600.0), Point(40, 1726.491)),  # less than a text in each
    ],
)
def test_where_others_may_share_the_server_it_grows_by_the_root_of_what_it_has(
    seconds: float, point: Point, expected: Point
) -> None:
    found = grown(point, seconds=seconds)
    assert (found.concurrency, found.work) == (expected.concurrency, pytest.approx(expected.work))


@pytest.mark.parametrize(("latency", "work"), [(0.98, 1726.491), (1.01, 1600.0)])
def test_nothing_grows_where_one_text_more_would_be_late(latency: float, work: float) -> None:
    assert grown(Point(40, 1600.0), latency=latency, seconds=1.25 * LOWEST).work == pytest.approx(work)


def test_a_pace_counted_in_texts_leaves_all_but_more_requests() -> None:
    assert [probe for probe in PROBES if tried(probe, pace="items") == LARGE] == ["wider"]
    assert [probe for probe in PROBES if tried(probe, pace=None) == LARGE] == []


@pytest.mark.parametrize(("kept_in_a_row", "factor"), [(0, 1.3), (1, 1.3**2), (2, 1.3**3), (5, 1.3**3)])
def test_more_work_goes_further_each_time_it_was_kept_up_to_the_third(kept_in_a_row: int, factor: float) -> None:
    assert tried("up", kept_in_a_row=kept_in_a_row).work == pytest.approx(factor * 40_000.0)


@pytest.mark.parametrize(
    ("latency", "factor"),
    [
        (HIGHEST / 1.2, 1.2),
        (HIGHEST / 1.07, 1.07),
        (HIGHEST / 1.03, 1.0),  # no room that is worth trying
        (HIGHEST * 1.88, 1.0),
        (HIGHEST * 1.92, 1.3),  # the target is no measure of such a server
    ],
)
def test_more_work_takes_no_more_than_the_highest_latency_unless_it_is_far_beyond(
    latency: float, factor: float
) -> None:
    assert tried("up", latency=latency).work == pytest.approx(factor * 40_000.0)


@pytest.mark.parametrize("point", [Point(1, 10.0), Point(1, 14.0)])
def test_a_single_text_is_never_so_late_that_a_second_is_not_tried(point: Point) -> None:
    assert tried("up", point, latency=HIGHEST * 1.5).concurrency == 2
    assert tried("up", Point(1, 16.0), latency=HIGHEST * 1.5) == Point(1, 16.0)


def test_where_a_second_request_beside_a_single_text_did_not_pay_a_second_text_is_tried() -> None:
    assert tried("up", Point(1, 10.0)) == Point(2, 20.0)
    assert tried("up", Point(1, 10.0), other_way=True) == Point(1, 20.0)
    assert tried("up", Point(3, 30.0), other_way=True) == Point(4, 40.0), "three requests are worked on at a time"


def test_less_than_single_texts_is_a_request_less() -> None:
    assert tried("down", Point(2, 20.0)).work == 10.0


def test_at_a_shared_server_more_work_is_not_tried_once_the_highest_latency_may_be_aimed_at() -> None:
    assert tried("up", shared=True, seconds=HIGHEST) == LARGE
    assert tried("up", shared=False, seconds=HIGHEST) != LARGE
    assert tried("up", shared=True) != LARGE


def test_more_of_single_texts_is_more_requests_unless_a_pace_holds_them_back() -> None:
    single = Point(10, 100.0)
    assert tried("up", single) == Point(13, 130.0)
    assert tried("up", single, pace="items") == Point(10, 200.0)


def test_less_work_is_tried_in_as_many_requests_and_fewer_requests_with_as_much_work() -> None:
    assert tried("down", Point(4, 1300.0)) == Point(4, 1000.0)
    assert tried("narrower", Point(5, 1000.0)) == Point(2, 1000.0)
    assert tried("narrower", Point(1, 1000.0)) == Point(1, 1000.0)


def test_fewer_requests_are_not_tried_where_one_text_more_in_each_would_be_late() -> None:
    assert tried("narrower", Point(4, 40.0), latency=0.6, light=0.3) == Point(2, 40.0)
    assert tried("narrower", Point(4, 40.0), latency=0.6, light=0.5) == Point(4, 40.0)


def test_more_requests_hold_whole_texts_where_that_is_little_more_work() -> None:
    assert tried("wider", Point(1, 19.0)) == Point(2, 20.0)
    assert tried("wider", Point(4, 60.0)) == Point(8, 80.0)
    assert tried("wider", Point(4, 59.0)) == Point(8, 59.0)


@pytest.mark.parametrize(("cv", "untried"), [(0.24, True), (0.4, False)])
def test_more_requests_share_the_same_work_where_answers_are_even_or_it_failed_before(cv: float, untried: bool) -> None:
    assert tried("wider", Point(5, 1000.0), cv=cv, untried=untried) == Point(10, 1000.0)


@pytest.mark.parametrize(
    ("latency", "most_work", "work"),
    [
        (0.2, math.inf, 2000.0),
        (HIGHEST / 1.5, math.inf, 1500.0),
        (HIGHEST * 1.5, math.inf, 1000.0),
        (0.2, 1700.0, 1700.0),
        (0.2, 700.0, 1000.0),  # the same work in any case
    ],
)
def test_where_answers_vary_more_requests_bring_what_the_latency_allows_short_of_what_did_harm(
    latency: float, most_work: float, work: float
) -> None:
    found = tried("wider", Point(5, 1000.0), latency=latency, cv=0.26, most_work=most_work)
    assert (found.concurrency, found.work) == (10, pytest.approx(work))
