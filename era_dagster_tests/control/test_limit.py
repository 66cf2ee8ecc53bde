"""The law at an operating point that was set by hand: how its work becomes requests."""

import math

import pytest

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.limit import AdaptiveLimit
from era_dagster.control.point import Point
from era_dagster.control.room import REMEMBERED_SECONDS


def held_at(point: Point, *, items: int = 128) -> AdaptiveLimit:
    """A law that has left its first waves, after one text of ten tokens, and stands at `point`."""
    limit = AdaptiveLimit(Ceilings(items=items))
    limit.succeeded(0.1, limit.sent(0.0, 10, items=1), items=1)
    limit.paced(0.2, by_requests=False)
    limit.point = point
    return limit


def sizes(limit: AdaptiveLimit, count: int) -> list[int]:
    found = []
    for _ in range(count):
        assert limit.next_items == limit.next_items, "asking changes nothing"
        found.append(limit.next_items)
        limit.sent(1.0, 10 * found[-1], items=found[-1])
    return found


@pytest.mark.parametrize(("items", "allowed"), [(2.5, {2, 3}), (1.2, {1, 2}), (7.0, {7}), (100.3, {100, 101})])
def test_requests_differ_by_one_text_so_that_together_they_are_the_work(items: float, allowed: set[int]) -> None:
    found = sizes(held_at(Point(4, 40.0 * items)), 100)
    assert set(found) == allowed
    assert sum(found) == pytest.approx(100 * items, abs=1)


def test_no_request_is_larger_than_its_ceiling_or_empty() -> None:
    assert set(sizes(held_at(Point(4, 400.0), items=8), 20)) == {8}
    assert set(sizes(held_at(Point(4, 20.0)), 20)) == {1}


def flight(limit: AdaptiveLimit, now: float, seconds: float = 0.165, *, items: int = 10) -> float:
    """As many requests as may be, of so many texts, all answered after so long."""
    numbers = [limit.sent(now, 10 * items, items=items) for _ in range(limit.point.concurrency)]
    limit.reached(now)
    for number in numbers:
        limit.freed(now + seconds)
        limit.succeeded(now + seconds, number, items=items)
    return now + seconds


def steady(point: Point) -> tuple[AdaptiveLimit, float]:
    """A law that has seen a few quiet flights at `point`, and the time by then."""
    limit, now = held_at(point), 1.0
    for _ in range(6):
        now = flight(limit, now)
    assert limit.last is not None
    return limit, now


@pytest.mark.parametrize(("in_parts", "measured"), [(0, True), (1, True), (2, False), (4, False)])
def test_what_is_sent_in_parts_is_no_measure_of_whole_requests(in_parts: int, measured: bool) -> None:
    limit, now = steady(Point(4, 400.0))
    limit.interrupted(now)
    before, judged = limit.last, None
    for _ in range(12):
        numbers = [limit.sent(now, 10, items=1, in_parts=each < in_parts) for each in range(4)]
        limit.reached(now)
        now += 0.05
        for number in numbers:
            limit.freed(now)
            judged = limit.succeeded(now, number, items=1) or judged
    assert ((judged is not None), (limit.last is not before)) == (measured, measured)


@pytest.mark.parametrize(("sent_at", "drains"), [(0.0, True), (0.5, False)])
def test_one_late_answer_is_enough_where_half_of_those_under_way_are_late_too_by_then(
    sent_at: float, drains: bool
) -> None:
    limit, now = steady(Point(8, 800.0))
    first, *_ = [limit.sent(now + (sent_at if number else 0.0), 100, items=10) for number in range(8)]
    assert limit.succeeded(now + 0.6, first, items=10) is None
    assert limit.must_drain == drains


def test_late_requests_stop_the_sending_until_what_is_under_way_is_what_the_server_takes() -> None:
    limit, now = steady(Point(8, 800.0))
    numbers = [limit.sent(now, 100, items=10) for _ in range(8)]
    cuts = [limit.succeeded(now + 1.6 + 0.2 * n, number, items=10) for n, number in enumerate(numbers)]
    assert [cut is not None for cut in cuts] == [False] * 7 + [True], (
        "one in 0.2 s: less than one in a sixth of a second"
    )
    assert not limit.must_drain
    assert limit.point == Point(8, pytest.approx(500 * 0.165)), "500 tokens a second"


def test_answers_that_come_all_at_once_are_what_was_worked_off_since_they_were_sent() -> None:
    limit, now = steady(Point(8, 800.0))
    for number in [limit.sent(now, 100, items=10) for _ in range(8)]:
        limit.succeeded(now + 0.9, number, items=10)
    assert not limit.must_drain
    assert 800 / 0.9 * 0.165 <= limit.point.work <= 2 * 800 / 0.9 * 0.165, (
        "a server that works in steps is no faster for it"
    )


def test_a_pause_of_the_server_ends_the_wait_for_what_is_under_way() -> None:
    limit, now = steady(Point(8, 800.0))
    first, *_ = [limit.sent(now, 100, items=10) for _ in range(8)]
    limit.succeeded(now + 0.6, first, items=10)
    assert limit.must_drain
    limit.interrupted(now + 0.7)
    assert not limit.must_drain


def test_what_was_sent_before_a_pause_of_the_server_is_not_late_for_what_came_after() -> None:
    limit, now = steady(Point(8, 800.0))
    for _ in range(8):
        limit.sent(now, 100, items=10)
    limit.interrupted(now + 0.1)
    number = limit.sent(now + 0.2, 100, items=10)
    assert limit.succeeded(now + 0.6, number, items=10) is None


def refused_beside(limit: AdaptiveLimit, now: float, *, requests: int, items: int) -> list[str]:
    """So many requests of so many texts are answered; others beside them are refused with 503; the reasons of the moves."""
    answered = [limit.sent(now, 10 * items, items=items) for _ in range(requests)]
    judgements = [
        limit.refused(now + 0.1, limit.sent(now, 10 * items, items=items), limited=False)[1] for _ in range(8)
    ]
    for number in answered:
        limit.succeeded(now + 0.165, number, items=items)
    return [judgement.reason for judgement in judgements if judgement is not None]


@pytest.mark.parametrize("seconds", [0.0, REMEMBERED_SECONDS])
def test_after_too_many_requests_and_a_cut_to_one_no_more_come_back_than_were_not_refused(seconds: float) -> None:
    limit, now = steady(Point(8, 800.0))
    assert "the server is full" in refused_beside(limit, now, requests=8, items=10)
    assert limit.point.concurrency == 7
    assert limit.point.work >= 800.0, "fewer requests, and as much work"
    limit.point, now = Point(1, 100.0), now + seconds
    while limit.point.concurrency == 1:
        now = flight(limit, now, seconds=0.05)
    assert limit.point.concurrency == 7


@pytest.mark.parametrize(("seconds", "concurrency"), [(1.0, 8), (REMEMBERED_SECONDS, 2)])
def test_where_fewer_requests_were_refused_as_well_there_are_as_many_again_as_a_moment_ago_with_fewer_texts(
    seconds: float, concurrency: int
) -> None:
    limit, now = steady(Point(8, 800.0))
    refused_beside(limit, now, requests=8, items=10)
    assert limit.point.concurrency == 7
    limit.point = Point(2, 800.0)
    refused_beside(limit, now + 0.1 + seconds, requests=0, items=200)
    assert limit.point.concurrency == concurrency
    assert limit.room(now + 0.3 + seconds) < 200


def test_of_a_request_that_is_not_known_any_more_or_came_before_any_answer_nothing_can_be_said() -> None:
    limit = AdaptiveLimit(Ceilings())
    assert limit.refused(0.1, limit.sent(0.0, 10, items=1), limited=True) == (None, None)
    limit, now = steady(Point(8, 800.0))
    assert limit.refused(now, -1, limited=True) == (None, None)


def test_after_a_cut_what_was_sent_before_it_says_no_more_and_what_is_sent_now_is_counted_anew() -> None:
    limit, now = steady(Point(8, 800.0))
    numbers, judgement = [limit.sent(now, 100, items=10) for _ in range(24)], None
    while judgement is None:
        _, judgement = limit.refused(now + 0.1, numbers.pop(), limited=False)
    for limited in (True, False):
        assert limit.refused(now + 0.2, numbers.pop(), limited=limited) == (True, None)
    assert limit.refused(now + 0.3, limit.sent(now + 0.2, 100, items=10), limited=False) == (None, None)


def test_a_server_that_is_full_of_texts_gets_as_many_fewer_in_as_many_requests() -> None:
    limit, now = steady(Point(8, 800.0))
    full, judgement = limit.refused(now + 0.1, limit.sent(now, 1_000, items=100), limited=True)
    assert full and judgement is not None
    assert limit.point == Point(8, int(0.7 * 80) * 10.0)


def test_a_refusal_that_was_no_matter_of_room_and_changes_nothing_ends_no_epoch() -> None:
    limit, now = steady(Point(8, 800.0))
    assert limit.refused(now + 0.1, limit.sent(now, 100, items=10), limited=True) == (False, None)


def test_a_few_503_change_nothing() -> None:
    limit, now = steady(Point(8, 800.0))
    before = limit.point
    for _ in range(4):
        assert limit.refused(now, limit.sent(now, 100, items=10), limited=False) == (None, None)
    assert limit.point == before


def test_what_a_server_was_thought_to_hold_is_forgotten_where_refusals_said_nothing_of_it() -> None:
    limit, now = steady(Point(8, 800.0))
    numbers = [limit.sent(now, 100, items=10) for _ in range(8)]
    limit.refused(now, numbers[-1], limited=True)
    assert limit.room(now) < math.inf
    assert limit.was_never_full(now) is None, "its first waves were not cut short"
    assert limit.room(now) == math.inf


def test_first_waves_that_refusals_cut_short_begin_anew_where_these_said_nothing() -> None:
    limit = AdaptiveLimit(Ceilings())
    assert limit.was_never_full(0.0) is None
    limit.succeeded(0.05, limit.sent(0.0, 10, items=1), items=1)
    for _ in range(6):
        limit.refused(0.1, limit.sent(0.1, 10, items=1), limited=False)
        limit.sent(0.1, 10, items=1)
    now = 0.1
    while limit.phase == "start":
        now = flight(limit, now, items=1)
    for _ in range(6):
        now = flight(limit, now, items=1)
    first, *_ = [limit.sent(now, 10, items=1) for _ in range(8)]
    limit.succeeded(now + 5.0, first, items=1)
    assert limit.must_drain
    assert limit.was_never_full(now) is not None
    assert (limit.phase, limit.must_drain) == ("start", False)
    assert limit.was_never_full(now) is None, "once"
