"""Operating points: the smallest steps, and growth by the same means."""

import pytest

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.point import Point


def test_the_smallest_step_up_is_one_text_more_in_each_request() -> None:
    assert Point(4, 4 * 20.0).one_more(10.0, in_number=True) == Point(4, 4 * 30.0)


def test_where_requests_hold_a_single_text_it_is_one_request_more_unless_somebody_counts_them() -> None:
    single = Point(5, 50.0)
    assert single.one_more(10.0, in_number=True) == Point(6, 60.0)
    assert single.one_more(10.0, in_number=False) == Point(5, 100.0)


@pytest.mark.parametrize(
    ("point", "grown"),
    [
        (Point(10, 100.0), Point(13, 130.0)),  # single texts: more requests
        (Point(2, 20.0), Point(3, 30.0)),  # at least one more
        (Point(10, 1000.0), Point(10, 1300.0)),  # larger requests
        (Point(10, 200.0), Point(10, 300.0)),  # at least one text more in each
    ],
)
def test_growth_is_by_the_same_means_and_at_least_the_smallest_step(point: Point, grown: Point) -> None:
    assert point.grown(1.3, 10.0, in_number=True) == grown


def test_a_point_within_its_ceilings_has_a_text_for_each_request() -> None:
    assert Point(8, 30.0).bounded(Ceilings(), most_requests=256, item_tokens=10.0) == Point(3, 30.0)
