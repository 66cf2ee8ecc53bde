"""The law at an operating point that was set by hand: how its work becomes requests."""

import pytest

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.limit import AdaptiveLimit
from era_dagster.control.point import Point


def held_at(point: Point, *, items: int = 128) -> AdaptiveLimit:
    """A law that has left its first waves, after one text of ten tokens, and stands at `point`."""
    limit = AdaptiveLimit(Ceilings(items=items))
    limit.succeeded(0.1, limit.sent(0.0, 10), items=1)
    limit.paced(0.2, by_requests=False)
    limit.point = point
    return limit


def sizes(limit: AdaptiveLimit, count: int) -> list[int]:
    found = []
    for _ in range(count):
        assert limit.next_items == limit.next_items, "asking changes nothing"
        found.append(limit.next_items)
        limit.sent(1.0, 10 * found[-1])
    return found


@pytest.mark.parametrize(("items", "allowed"), [(2.5, {2, 3}), (1.2, {1, 2}), (7.0, {7}), (100.3, {100, 101})])
def test_requests_differ_by_one_text_so_that_together_they_are_the_work(items: float, allowed: set[int]) -> None:
    found = sizes(held_at(Point(4, 40.0 * items)), 100)
    assert set(found) == allowed
    assert sum(found) == pytest.approx(100 * items, abs=1)


def test_no_request_is_larger_than_its_ceiling_or_empty() -> None:
    assert set(sizes(held_at(Point(4, 400.0), items=8), 20)) == {8}
    assert set(sizes(held_at(Point(4, 20.0)), 20)) == {1}


def flight(limit: AdaptiveLimit, now: float, seconds: float = 0.165) -> float:
    """As many requests as may be, of ten texts, all answered after so long."""
    numbers = [limit.sent(now, 100) for _ in range(limit.point.concurrency)]
    limit.reached(now)
    for number in numbers:
        limit.freed(now + seconds)
        limit.succeeded(now + seconds, number, items=10)
    return now + seconds


@pytest.mark.parametrize(("sent_at", "reason"), [(0.0, "requests were late"), (0.5, None)])
def test_one_late_answer_is_enough_where_half_of_those_under_way_are_late_too_by_then(
    sent_at: float, reason: str | None
) -> None:
    limit, now = held_at(Point(8, 800.0)), 1.0
    for _ in range(6):
        now = flight(limit, now)
    assert limit.last is not None
    first, *_ = [limit.sent(now + (sent_at if number else 0.0), 100) for number in range(8)]
    cut = limit.succeeded(now + 0.6, first, items=10)
    assert reason == (None if cut is None else cut.reason)


def test_what_was_sent_before_a_pause_of_the_server_is_not_late_for_what_came_after() -> None:
    limit, now = held_at(Point(8, 800.0)), 1.0
    for _ in range(6):
        now = flight(limit, now)
    for _ in range(8):
        limit.sent(now, 100)
    limit.interrupted(now + 0.1)
    number = limit.sent(now + 0.2, 100)
    assert limit.succeeded(now + 0.6, number, items=10) is None


def test_a_cut_is_not_in_vain_where_what_was_under_way_took_longer_still() -> None:
    limit, now = held_at(Point(8, 800.0)), 1.0
    for _ in range(6):
        now = flight(limit, now)
    first, *others = [limit.sent(now, 100) for _ in range(8)]
    cut = limit.succeeded(now + 0.4, first, items=10)
    assert cut is not None and cut.reason == "requests were late"
    for number in others:
        limit.succeeded(now + 0.66, number, items=10)
    less, now = limit.point.work, now + 0.66
    while limit.point.work == less:
        now = flight(limit, now, seconds=0.36)
    assert limit.point.work < less


def test_after_too_many_requests_and_a_cut_to_one_no_more_come_back_than_were_not_refused() -> None:
    limit, now = held_at(Point(8, 800.0)), 1.0
    for _ in range(6):
        now = flight(limit, now)
    refused = (limit.overloaded(now + 0.1, limit.sent(now, 100)) for _ in range(8))
    assert "503" in next(cut.reason for cut in refused if cut is not None)
    assert limit.point.concurrency == 5
    limit.point = Point(1, 100.0)
    while limit.point.concurrency == 1:
        now = flight(limit, now, seconds=0.05)
    assert limit.point.concurrency == 5
