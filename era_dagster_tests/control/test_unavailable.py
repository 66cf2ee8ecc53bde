"""What a 503 means that is not explained by what is inside."""

import pytest

from era_dagster.control.unavailable import (
    CHANCE_SECONDS,
    IN_A_ROW,
    MANY_PER_SECOND,
    RELAPSES,
    STARVED_SECONDS,
    SURE,
    Unavailable,
)


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
    assert unavailable.went_down(0.0, refused=True) is None, "it was not taken for one"
    unavailable.unexplained(10.0)
    assert unavailable.went_down(0.0, refused=True) is False
    assert not unavailable.is_rate
    assert not unavailable.learnt(1.0, 0.001), "nor is it chance"


def test_a_small_bucket_may_be_behind_a_pace_after_several_that_stood_and_with_429_at_once() -> None:
    unavailable = Unavailable()
    assert unavailable.is_sure
    unavailable.unexplained(10.0)
    for _ in range(SURE):
        assert not unavailable.is_sure
        assert not unavailable.learnt(1.0, 9.0)
    assert unavailable.is_sure
    assert unavailable.learnt(1.0, 1.0), "which does not mean that it cannot be chance"
    unavailable.unexplained(10.0)
    assert not unavailable.is_sure, "another rate, perhaps"


def by_chance() -> Unavailable:
    unavailable = Unavailable()
    unavailable.unexplained(100.0)
    assert unavailable.learnt(0.0, 1.0)
    return unavailable


def hear(unavailable: Unavailable, second: int, *, accepted: int, refused: int) -> None:
    for _ in range(accepted):
        unavailable.heard(second + 0.1, refused=False)
    for _ in range(refused):
        unavailable.heard(second + 0.2, refused=True)


def test_what_refuses_most_of_all_requests_for_seconds_is_no_chance_and_not_called_so_again_soon() -> None:
    unavailable = by_chance()
    for second in range(IN_A_ROW):
        hear(unavailable, second, accepted=10, refused=31)
        assert unavailable.is_chance(second + 0.5)
    hear(unavailable, IN_A_ROW, accepted=10, refused=31)
    assert not unavailable.is_chance(IN_A_ROW + 0.5)
    unavailable.unexplained(100.0)
    assert not unavailable.learnt(2.0 * CHANCE_SECONDS, 1.0), "a small bucket that pauses fill makes a pace small, too"
    assert unavailable.is_rate
    assert unavailable.learnt(2.2 * CHANCE_SECONDS, 1.0), "but not for ever"


@pytest.mark.parametrize(
    ("accepted", "refused"), [(10, 30), (0, 8)], ids=["three of four are down", "too few to say that of"]
)
def test_chance_remains_chance_where_as_many_are_refused_as_chance_may(accepted: int, refused: int) -> None:
    unavailable = by_chance()
    for second in range(3 * IN_A_ROW):
        hear(unavailable, second, accepted=accepted, refused=refused)
    assert unavailable.is_chance(3 * IN_A_ROW)


def test_moments_in_which_all_is_refused_are_no_reason_to_think_otherwise_of_chance() -> None:
    unavailable = by_chance()
    for second in range(5 * IN_A_ROW):
        hear(unavailable, second, accepted=10, refused=5 if second % IN_A_ROW == 0 else 100)
    assert unavailable.is_chance(5 * IN_A_ROW)


def test_bursts_of_refusals_with_pauses_between_them_are_no_reason_either() -> None:
    unavailable = by_chance()
    for second in range(0, 58, 3):
        hear(unavailable, second, accepted=0, refused=100)
    assert unavailable.is_chance(59.0)


def test_what_was_heard_before_it_is_taken_for_chance_does_not_count() -> None:
    unavailable = Unavailable()
    for again in (0, 1000):
        for second in range(again, again + IN_A_ROW - 1):
            hear(unavailable, second, accepted=0, refused=100)
        unavailable.unexplained(100.0)
        assert unavailable.learnt(again + IN_A_ROW - 1.0, 1.0)
        for second in range(again + IN_A_ROW, again + 2 * IN_A_ROW):
            hear(unavailable, second, accepted=0, refused=100)
            assert unavailable.is_chance(second + 0.5)
        hear(unavailable, again + 2 * IN_A_ROW, accepted=0, refused=100)
        assert not unavailable.is_chance(again + 2 * IN_A_ROW + 0.5)


def relapse(unavailable: Unavailable, *, now: float = 0.0, refused: bool = True) -> bool | None:
    unavailable.heard(now, refused=False, probe=True)
    return unavailable.went_down(now, refused=refused)


def test_a_server_that_answers_probes_and_nothing_else_again_and_again_has_a_rate_that_they_use_up() -> None:
    unavailable = Unavailable()
    assert unavailable.went_down(0.0, refused=True) is None
    assert [relapse(unavailable) for _ in range(RELAPSES)] == [None] * (RELAPSES - 1) + [True]
    assert unavailable.is_rate
    assert not unavailable.learnt(1.0, 0.001), "what came through before is not known, and no pace is far less"


@pytest.mark.parametrize("between", ["a text was taken", "a time-out", "no probe was answered"])
def test_a_server_that_comes_and_goes_otherwise_is_taken_for_nothing(between: str) -> None:
    unavailable = Unavailable()
    for _ in range(RELAPSES - 1):
        relapse(unavailable)
    if between == "a text was taken":
        unavailable.heard(0.0, refused=False)
    elif between == "a time-out":
        relapse(unavailable, refused=False)
    else:
        unavailable.went_down(0.0, refused=True)
    assert relapse(unavailable) is None
    assert not unavailable.is_rate


def test_a_server_that_takes_many_has_no_rate_that_a_probe_uses_up_any_more() -> None:
    unavailable = Unavailable()
    for _ in range(RELAPSES):
        relapse(unavailable)
    for second in (10, 11, 12):
        hear(unavailable, second, accepted=MANY_PER_SECOND - 1, refused=0)
    assert unavailable.is_rate
    for second in (13, 14):
        hear(unavailable, second, accepted=MANY_PER_SECOND, refused=0)
    assert not unavailable.is_rate
    unavailable.unexplained(100.0)
    for second in (15, 16):
        hear(unavailable, second, accepted=MANY_PER_SECOND, refused=0)
    assert unavailable.is_rate, "what was seen otherwise may be as high as it likes"


def test_texts_that_are_refused_for_long_after_every_probe_are_refused_for_no_rate() -> None:
    unavailable = Unavailable()
    for _ in range(RELAPSES):
        relapse(unavailable)
    assert relapse(unavailable, now=STARVED_SECONDS - 0.1) is None
    assert unavailable.is_rate, "a low one may take some pauses"
    unavailable.heard(STARVED_SECONDS - 0.1, refused=False)
    assert relapse(unavailable, now=2.0 * STARVED_SECONDS - 0.2) is None
    assert unavailable.is_rate, "a text was taken"
    later = 2.0 * STARVED_SECONDS
    assert relapse(unavailable, now=later) is False
    assert [relapse(unavailable, now=later) for _ in range(2 * RELAPSES)] == [None] * 2 * RELAPSES, (
        "nor is it tried again"
    )
    unavailable.heard(later, refused=False)
    assert [relapse(unavailable, now=later) for _ in range(RELAPSES)][-1], "until a text was taken"
