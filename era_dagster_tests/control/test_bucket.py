"""How much may be sent at a moment, asked by hand."""

import pytest

from era_dagster.control.bucket import Bucket, Window


def window(*, seconds: float, size: float, level: float, even: bool = True) -> Window:
    """A window that began when its clock was 0, with `level` left, and ends when it is `seconds`."""
    spread = Bucket(0.0, rate=1.0, size=1.0, level=1.0) if even else None
    return Window(0.0, seconds=seconds, size=size, level=level, ends_at=seconds, even=spread)


@pytest.mark.parametrize(
    "bucket", [Bucket(0.0, rate=2.0, size=8.0, level=8.0), window(seconds=4.0, size=8.0, level=8.0, even=False)]
)
def test_what_is_larger_than_all_that_is_given_at_once_may_go_when_all_of_it_is_there(bucket: Bucket) -> None:
    assert bucket.ready_at(0.0, 9.0) == 0.0
    assert bucket.pace == 2.0
    bucket.take(0.0, 8.0)
    assert bucket.ready_at(0.0, 9.0) == 4.0


@pytest.mark.parametrize(
    ("seconds", "size", "level", "pace"),
    [(60.0, 100.0, 59.0, 1.0), (86_400.0, 12_000.0, 12_000.0, 100.0), (86_400.0, 12_000.0, 6_600.0, 10.0)],
    ids=["a minute", "a day", "a day, nearly half of it used"],
)
def test_what_a_window_has_left_is_spread_over_its_time_but_the_first_half_over_no_more_than_a_minute(
    seconds: float, size: float, level: float, pace: float
) -> None:
    spread = window(seconds=seconds, size=size, level=level)
    spread.ready_at(0.0, 1.0)
    assert spread.pace == pytest.approx(pace)
    assert window(seconds=seconds, size=size, level=level, even=False).pace == size / seconds


@pytest.mark.parametrize(("size", "at_once"), [(2_400.0, 10), (60.0, 1)])
def test_of_what_is_spread_a_quarter_of_a_second_goes_at_once_after_a_pause(size: float, at_once: int) -> None:
    spread, sent = window(seconds=60.0, size=size, level=size), 0
    spread.ready_at(0.0, 1.0)
    while spread.ready_at(1.0, 1.0) <= 1.0:
        spread.take(1.0, 1.0)
        sent += 1
    assert sent == at_once
