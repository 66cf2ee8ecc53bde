"""What refusals tell about a rate, by hand: when a bucket was empty, and what it had given out by then."""

import math
from collections.abc import Sequence
from itertools import accumulate

import pytest

from era_dagster.control.evidence import NOTHING, STRETCHES, Empty, Sent, bounds, contradicted, explained


def emptied(stretches: Sequence[tuple[float, int, int]], *, refused: int = 1) -> list[Empty]:
    """Refusals after each (seconds, requests, texts in each); a request of `refused` texts is what was refused."""
    ends = accumulate(stretches, lambda at, each: (at[0] + each[0], at[1] + each[1], at[2] + each[1] * each[2]))
    return [
        Empty(
            at=at,
            number=requests + 1,
            accepted=Sent(requests=requests, items=items, tokens=20.0 * items),
            refused=Sent(requests=1, items=refused, tokens=20.0 * refused),
        )
        for at, requests, items in [(0.0, 0, 0), *ends][1:]
    ]


def test_what_one_rate_explains_is_looked_back_on_and_not_what_came_before() -> None:
    steady = emptied([(1.0, 10, 4), (5.0, 50, 4), (2.0, 20, 4), (3.0, 30, 4)])
    rate, seconds = explained(steady, "items")
    assert rate == pytest.approx(40.0, rel=0.02)
    assert seconds == pytest.approx(10.0)
    fallen = emptied([(1.0, 10, 4), (5.0, 50, 4), (2.0, 5, 4), (3.0, 8, 4)])
    rate, seconds = explained(fallen, "items")
    assert rate == pytest.approx(10.5, rel=0.05)
    assert seconds == pytest.approx(5.0)


def test_what_a_full_bucket_lost_does_not_lower_the_rate() -> None:
    rate, _ = explained(emptied([(1.0, 10, 4), (10.0, 92, 4), (10.0, 100, 4)]), "items")
    assert rate == pytest.approx(40.0, rel=0.02)


def test_what_is_counted_shows_when_the_size_of_requests_changes() -> None:
    by_requests = emptied([(1.0, 10, 1), (4.0, 40, 1), (4.0, 40, 16)])
    assert contradicted(by_requests, "requests") == 0.0
    assert contradicted(by_requests, "items") > len(STRETCHES) * math.log(8.0)
    by_items = emptied([(1.0, 64, 1), (4.0, 256, 1), (4.0, 16, 16)])
    assert contradicted(by_items, "items") == 0.0
    assert contradicted(by_items, "requests") > len(STRETCHES) * math.log(8.0)


def test_single_requests_contradict_nothing() -> None:
    few = emptied([(0.4, 1, 1), (0.9, 1, 7), (0.6, 1, 1), (1.8, 1, 2)], refused=7)
    assert contradicted(few, "requests") == contradicted(few, "items") == 0.0


def test_a_long_pause_after_which_not_even_one_request_fits_contradicts_the_counting_of_requests() -> None:
    barren = emptied([(1.0, 4, 1), (10.0, 40, 1), (2.0, 0, 1)], refused=12)
    assert contradicted(barren, "requests") > 0.0
    assert contradicted(barren, "items") == 0.0


def test_a_rate_is_known_to_within_the_requests_that_were_refused() -> None:
    older, newer = emptied([(1.0, 10, 4), (5.0, 50, 4)], refused=10)
    least, most = bounds(older, newer, "items")
    assert 34.0 < least < 38.0 + 1e-9
    assert 42.0 - 1e-9 < most < 47.0


def test_sent_requests_add_up_and_their_difference_is_what_was_sent_between() -> None:
    one = Sent(requests=1, items=3, tokens=60.0)
    assert one + one - one == one
    assert one - one == NOTHING
    assert (one.of("requests"), one.of("items")) == (1, 3)
