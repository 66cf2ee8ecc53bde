"""The mean latency aimed at: what raises it, what lowers it, and what counts as late. The 95th percentile is held to 1 s."""

import pytest

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.measure import Measurement
from era_dagster.control.target import LatencyTarget

LOWEST = 0.33
HIGHEST = 0.92 / 1.2
QUICK, SLOW = 0.05, 0.7
"""What a light load takes on a server that can keep the target, and on one that cannot."""


def target(seconds: float, *, light: float = QUICK) -> LatencyTarget:
    found = LatencyTarget(Ceilings(latency_seconds=1.0))
    found.begin(seconds, light_latency=light)
    return found


def tail(p95_ratio: float) -> Measurement:
    return Measurement(
        samples=40,
        flights=10.0,
        seconds=1.0,
        throughput=1000.0,
        latency=0.4,
        cv=0.1,
        p95_ratio=p95_ratio,
    )


def test_before_anything_was_seen_it_is_what_costs_nobody_anything() -> None:
    assert LatencyTarget(Ceilings(latency_seconds=1.0)).seconds == pytest.approx(LOWEST)


def test_the_highest_leaves_room_for_the_tail_and_learns_it_a_tenth_at_a_time() -> None:
    heavy = target(0.4)
    assert heavy.highest == pytest.approx(HIGHEST)
    heavy.saw(tail(2.2))
    assert heavy.highest == pytest.approx(0.92 / 1.3)


def test_without_any_tail_the_ceiling_is_the_highest() -> None:
    steady = target(0.4)
    for _ in range(60):
        steady.saw(tail(1.0))
    assert steady.highest == pytest.approx(0.88)


def test_a_server_is_slow_itself_where_a_light_load_takes_half_of_the_highest() -> None:
    assert not target(0.4, light=0.49 * HIGHEST).is_slow_itself
    assert target(0.4, light=0.51 * HIGHEST).is_slow_itself


@pytest.mark.parametrize(
    ("seconds", "light", "aimed_at"),
    [
        (0.5, QUICK, 0.5),
        (2.0, QUICK, HIGHEST),  # a quick server need never be late
        (0.5, SLOW, 1.1 * SLOW),  # no less than a light load takes
        (2.0, SLOW, 1.4 * SLOW),  # of what it takes, little is waiting
    ],
)
def test_only_a_server_that_is_slow_itself_is_aimed_beyond_what_is_in_time(
    seconds: float, light: float, aimed_at: float
) -> None:
    assert target(seconds, light=light).aimed_at() == pytest.approx(aimed_at)


@pytest.mark.parametrize(
    ("light", "lowest"), [(QUICK, LOWEST), (0.3, LOWEST), (0.5, 1.1 * 0.5), (SLOW, 1.1 * SLOW), (2.0, 0.88)]
)
def test_the_lowest_is_no_less_than_what_a_light_load_takes_up_to_the_ceiling(light: float, lowest: float) -> None:
    assert target(0.4, light=light).lowest == pytest.approx(lowest)


def test_what_waits_for_nothing_shows_how_slow_the_service_is_and_quicker_requests_do_not_lower_it() -> None:
    found = target(0.4)
    found.waits_for_nothing(SLOW)
    assert found.is_slow_itself
    assert found.highest == pytest.approx(1.4 * SLOW)
    found.waits_for_nothing(QUICK)
    assert found.highest == pytest.approx(1.4 * SLOW)


@pytest.mark.parametrize(
    ("items", "share"),
    [(1.0, 1.0), (4.0, 1.0), (40.0, 10.0**-0.16), (400.0, 100.0**-0.16), (4e6, LOWEST / HIGHEST)],
)
def test_of_a_shared_server_whoever_has_less_aims_higher(items: float, share: float) -> None:
    assert target(HIGHEST).aimed_at(items) == pytest.approx(share * HIGHEST)


def test_sharing_raises_nothing() -> None:
    assert target(LOWEST).aimed_at(1.0) == pytest.approx(LOWEST)
    assert target(0.5 * HIGHEST).aimed_at(4.0) == pytest.approx(0.5 * HIGHEST)


@pytest.mark.parametrize(("items", "share"), [(1.0, 1.0), (4.0, 1.0), (40.0, 10.0**-0.16), (4e6, LOWEST / HIGHEST)])
def test_clients_that_know_of_each_other_aim_by_their_texts_alone_whatever_they_have_learnt(
    items: float, share: float
) -> None:
    quick, slow, heavy = target(LOWEST), target(0.6, light=0.6), target(0.5)
    heavy.saw(tail(3.0))
    for found in (quick, slow, heavy):
        assert found.fair(items) == pytest.approx(share * HIGHEST)


def test_a_server_that_is_slower_by_itself_than_any_of_them_aims_is_aimed_at_as_it_is() -> None:
    assert target(2.0, light=0.9).fair(4.0) == pytest.approx(1.4 * 0.9)


def test_where_others_took_more_the_highest_is_aimed_at() -> None:
    found = target(LOWEST)
    assert not found.is_raised
    found.others_took()
    assert found.seconds == pytest.approx(HIGHEST)
    assert found.is_raised


@pytest.mark.parametrize(
    ("latency", "items", "light", "allowed"),
    [
        (0.6, 1.0, 0.44, True),
        (0.6, 1.0, 0.46, False),  # a second text takes as long as the first
        (0.6, 2.0, 0.46, True),  # or as long as one of two did
        (1.0, 100.0, QUICK, True),
        (1.04, 100.0, QUICK, False),
    ],
)
def test_one_text_more_is_allowed_where_a_request_with_it_would_be_in_time(
    latency: float, items: float, light: float, allowed: bool
) -> None:
    assert target(0.5, light=light).allows_another(latency, items) is allowed


def test_a_long_tail_leaves_less_room_for_another_text() -> None:
    found = target(0.5, light=0.3)
    assert found.allows_another(0.6, 1.0)
    for _ in range(60):
        found.saw(tail(2.0))
    assert found.allows_another(0.3, 1.0)
    assert not found.allows_another(0.4, 1.0)


def test_it_may_rise_up_to_the_highest_and_further_where_the_server_is_slow_itself() -> None:
    assert target(0.94 * HIGHEST).may_rise
    assert not target(0.96 * HIGHEST).may_rise, "the highest moves with what is learnt"
    assert target(1.01 * HIGHEST, light=SLOW).may_rise


def test_at_a_pace_all_of_the_latency_is_spent_and_nothing_is_given_back() -> None:
    low, beyond = target(0.4), target(2.0, light=SLOW)
    low.paced()
    beyond.paced()
    assert (low.seconds, beyond.seconds) == pytest.approx((HIGHEST, 2.0))


@pytest.mark.parametrize(
    ("seconds", "latency", "after"),
    [
        (0.2, 0.3, 0.3),  # up to the lowest it pays for itself alone
        (0.2, LOWEST, LOWEST),
        (LOWEST, 0.34, HIGHEST),
        (LOWEST, 0.9, 0.9),
        (2.0, 0.5, 2.0),
    ],
)
def test_where_more_paid_above_the_lowest_the_next_may_take_the_highest(
    seconds: float, latency: float, after: float
) -> None:
    found = target(seconds)
    found.more_paid(latency)
    assert found.seconds == pytest.approx(after)


@pytest.mark.parametrize(
    ("latency", "before", "after"),
    [
        (0.5, 0.6, 0.5),
        (0.2, 0.6, LOWEST),
        (0.9, 1.2, 0.7),  # less work never raises it
        (0.35, 0.41, 0.35),
        (0.35, 0.39, 0.7),  # there was no latency to save
    ],
)
def test_where_less_lost_nothing_the_shorter_latency_is_aimed_at(latency: float, before: float, after: float) -> None:
    found = target(0.7)
    found.less_lost_nothing(latency, before=before)
    assert found.seconds == pytest.approx(after)


@pytest.mark.parametrize(("seconds", "after"), [(0.4, 1.4 * SLOW), (3.0, 3.0)])
def test_where_less_did_not_help_the_highest_is_aimed_at_and_no_less_than_before(seconds: float, after: float) -> None:
    found = target(seconds, light=SLOW)
    found.less_did_not_help()
    assert found.seconds == pytest.approx(after)


def test_less_work_fits_by_little_s_law_but_a_quarter_is_left_and_it_is_never_more() -> None:
    found = target(0.4)
    assert found.fitting(1000.0, 0.8) == pytest.approx(500.0)
    assert found.fitting(1000.0, 4.0) == 250.0
    assert found.fitting(1000.0, 0.1) == 1000.0


@pytest.mark.parametrize(
    ("seconds", "growth", "limit"),
    [
        (0.5, 1.0, 2.0 * 0.5),
        (0.2, 1.0, 2.0 * LOWEST),
        (0.5, 1.3, 2.0 * 1.3 * 0.5),  # more under way takes longer
    ],
)
def test_a_request_is_late_beyond_what_noise_or_more_work_explains(seconds: float, growth: float, limit: float) -> None:
    found = target(seconds)
    assert not found.is_late(0.99 * limit, growth=growth)
    assert found.is_late(1.01 * limit, growth=growth)


def test_where_the_tail_is_long_a_request_is_late_later() -> None:
    found = target(0.5)
    for _ in range(100):
        found.saw(tail(3.0))
    assert not found.is_late(1.9)
    assert found.is_late(2.1)


def test_what_a_light_load_takes_is_corrected_by_what_it_takes_later() -> None:
    quick = target(LOWEST, light=0.2)
    quick.took_when_light(0.5, samples=16)
    quick.took_when_light(0.5, samples=16)
    assert quick.lowest == pytest.approx(1.1 * (0.2 + 0.75 * 0.3))
    for _ in range(20):
        quick.took_when_light(0.1, samples=16)
    assert quick.lowest == pytest.approx(LOWEST), "it was a slow moment"


def test_what_was_much_quicker_than_is_aimed_at_was_so_for_want_of_others_and_not_by_chance() -> None:
    quick = target(LOWEST, light=0.2 * LOWEST)
    for _ in range(40):
        quick.took_when_light(0.5, samples=16)
    assert quick.lowest == pytest.approx(LOWEST)


def test_no_more_than_the_latency_target_is_aimed_at_for_a_light_load_that_others_may_slow_down() -> None:
    shared = target(LOWEST, light=0.2)
    for _ in range(40):
        shared.took_when_light(3.0, samples=16)
    assert shared.highest == pytest.approx(HIGHEST)
    slow = target(SLOW, light=SLOW)
    before = slow.highest
    slow.took_when_light(3.0, samples=16)
    assert slow.highest == before
