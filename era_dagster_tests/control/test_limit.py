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
