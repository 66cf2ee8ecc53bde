"""Operating points: growth by the means at hand, and what the ceilings leave of them."""

import pytest

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.point import Point


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


def test_where_requests_are_counted_single_texts_grow_larger() -> None:
    assert Point(5, 50.0).grown(1.3, 10.0, in_number=False) == Point(5, 100.0)


def test_the_texts_of_a_request_are_a_mean() -> None:
    assert Point(4, 100.0).items(10.0) == 2.5


def test_a_point_within_its_ceilings_has_a_text_for_each_request() -> None:
    assert Point(8, 30.0).bounded(Ceilings(), most_requests=256, item_tokens=10.0) == Point(3, 30.0)


@pytest.mark.parametrize(
    ("work", "left"), [(24.0, Point(2, 24.0)), (25.5, Point(3, 30.0)), (16.0, Point(2, 20.0)), (14.0, Point(1, 14.0))]
)
def test_texts_are_whole_and_half_of_one_is_a_request_of_its_own(work: float, left: Point) -> None:
    assert Point(8, work).bounded(Ceilings(), most_requests=256, item_tokens=10.0) == left


def test_less_of_single_texts_is_one_request_less_at_least() -> None:
    assert Point(2, 20.0).shrunk(1.3, 10.0).work == 10.0
    assert Point(10, 100.0).shrunk(1.3, 10.0).work == pytest.approx(100.0 / 1.3)
    assert Point(2, 40.0).shrunk(1.3, 10.0).work == pytest.approx(40.0 / 1.3)
