"""What a 503 means that is not explained by what is inside."""

from era_dagster.control.unavailable import CHANCE_SECONDS, Unavailable


def test_a_503_is_a_503_until_it_cannot_be_explained() -> None:
    unavailable = Unavailable()
    assert not unavailable.is_rate
    assert not unavailable.is_chance(0.0)
    unavailable.unexplained(10.0)
    assert unavailable.is_rate


def test_a_pace_that_lets_as_much_through_as_came_through_before_is_a_rate() -> None:
    unavailable = Unavailable()
    unavailable.unexplained(10.0)
    assert not unavailable.learnt(1.0, None), "nothing is known yet"
    assert not unavailable.learnt(1.0, 9.0)
    assert not unavailable.learnt(2.0, 3.0), "the first estimates are rough"
    assert unavailable.is_rate


def test_a_pace_that_lets_far_less_through_is_none_and_503_say_nothing_for_a_minute_then_for_two() -> None:
    unavailable = Unavailable()
    for seconds in (CHANCE_SECONDS, 2 * CHANCE_SECONDS):
        unavailable.unexplained(100.0)
        assert unavailable.learnt(10.0, 12.0)
        assert not unavailable.is_rate
        assert unavailable.is_chance(10.0 + 0.99 * seconds)
        assert not unavailable.is_chance(10.0 + seconds)


def test_a_429_that_was_never_a_503_is_not_judged() -> None:
    assert not Unavailable().learnt(1.0, 0.001)


def test_a_server_that_went_down_while_503_was_taken_for_a_rate_has_none() -> None:
    unavailable = Unavailable()
    assert not unavailable.went_down(), "it was not taken for one"
    unavailable.unexplained(10.0)
    assert unavailable.went_down()
    assert not unavailable.is_rate
    assert not unavailable.learnt(1.0, 0.001), "nor is it chance"
