"""The first waves, told by hand how a server's answers come."""

from collections.abc import Sequence

import pytest

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.startup import Landing, Startup, Wave

# Four texts at a batching engine: the first has a step of its own, and the others wait for the next.
TWO_STEPS = [0.3, 0.601, 0.602, 0.603]


def answers(startup: Startup, seconds: list[float]) -> Landing | None:
    """One wave, all sent at 0, answered after `seconds` in the order of sending."""
    assert len(seconds) == startup.wave.concurrency
    return startup.answered(sum(seconds) / len(seconds), [(0.0, each) for each in seconds])


def even(startup: Startup, seconds: float) -> Landing | None:
    return answers(startup, [seconds] * startup.wave.concurrency)


def after(*waves: float, concurrency: int = 256) -> Startup:
    """First waves of which so many were answered, evenly, and have not ended yet."""
    startup = Startup(Ceilings(concurrency=concurrency))
    for seconds in waves:
        assert even(startup, seconds) is None
    return startup


def test_a_serial_server_is_recognised_by_its_first_wave() -> None:
    landing = answers(Startup(Ceilings()), [0.02, 0.04, 0.06, 0.08])
    assert landing is not None
    assert landing.concurrency == 2
    assert landing.target_seconds == Ceilings().lowest_latency


def test_a_serial_server_is_recognised_although_the_first_answer_paid_for_the_connection() -> None:
    landing = answers(Startup(Ceilings()), [0.014, 0.020, 0.027, 0.033])
    assert landing is not None
    assert landing.concurrency == 2


@pytest.mark.parametrize(("first", "concurrency", "texts", "target"), [(0.3, 1, 1, 0.44), (0.2, 2, None, 0.4)])
def test_a_slow_serial_server_gets_one_request_at_a_time_where_a_second_one_could_not_keep_the_target(
    first: float, concurrency: int, texts: int | None, target: float
) -> None:
    startup = Startup(Ceilings())
    landing = answers(startup, [first, 2 * first, 3 * first, 4 * first])
    assert landing is not None
    assert (landing.concurrency, landing.texts) == (concurrency, texts)
    assert landing.target_seconds == pytest.approx(target)
    assert startup.light == first


def test_answers_one_by_one_that_are_not_quite_even_are_those_of_a_serial_server_the_second_time() -> None:
    startup = Startup(Ceilings())
    assert answers(startup, [0.02, 0.04, 0.06, 0.09]) is None
    assert (startup.wave, startup.alone) == (Wave(4, 1), True)
    landing = answers(startup, [0.02, 0.04, 0.06, 0.09])
    assert landing is not None
    assert landing.concurrency == 2


@pytest.mark.parametrize(
    ("waves", "wave"),
    [
        # Four times as much while nothing queues at all, else twice as much.
        ([0.08], Wave(4, 4)),
        ([0.085], Wave(4, 2)),
        ([0.05, 0.07], Wave(4, 8)),
        ([0.1, 0.135], Wave(4, 4)),
        ([0.1, 0.11], Wave(4, 8)),
        ([0.1, 0.11, 0.125], Wave(4, 16)),
        # A service slower than the target is not full for that.
        ([0.5, 0.55], Wave(4, 8)),
        # Little more where the target is near; and beyond it more of them, as large as before.
        ([0.3, 0.41], Wave(4, 3)),
        ([0.3, 0.41, 0.5], Wave(8, 2)),
    ],
)
def test_how_much_more_is_tried_next(waves: Sequence[float], wave: Wave) -> None:
    assert after(*waves).wave == wave


@pytest.mark.parametrize(
    ("waves", "concurrency", "target", "by_work"),
    [
        # Twice as many bought a little, which is worth its waiting; or next to nothing, or less than nothing.
        ([0.1, 0.4, 0.17], 5, 0.17, True),
        ([0.1, 0.4, 0.199], 5, 0.165, True),
        ([0.1, 0.4, 0.3], 4, 0.165, True),
        # More of them paid, and in the end missed the target.
        ([0.3, 0.9, 0.41, 0.5], 10, 0.44, False),
        # What gave most missed the target.
        ([0.15, 0.16, 0.46, 0.3], 5, 0.225, True),
    ],
)
def test_where_waves_land_that_came_to_more_requests(
    waves: Sequence[float], concurrency: int, target: float, by_work: bool
) -> None:
    *before, last = waves
    landing = even(after(*before), last)
    assert landing is not None
    assert (landing.concurrency, landing.texts, landing.by_work) == (concurrency, None, by_work)
    assert landing.target_seconds == pytest.approx(target)


@pytest.mark.parametrize(("seconds", "target"), [(0.4, 0.165), (0.5, 0.44)])
def test_where_larger_requests_buy_nothing_no_more_of_them_go_than_the_ceiling_allows(
    seconds: float, target: float
) -> None:
    assert even(startup := after(0.1, concurrency=6), seconds) is None
    assert startup.wave == Wave(6, 1)
    landing = even(after(0.1, concurrency=4), seconds)
    assert landing is not None
    assert landing.concurrency == 4
    assert landing.target_seconds == pytest.approx(target)


def test_more_in_number_gets_the_benefit_of_the_doubt_and_larger_requests_do_not() -> None:
    for error, goes_on in ((0.1, True), (0.0, False)):
        startup = after(0.1, 0.4)
        assert (startup.answered(0.152, [(0.0, 0.152)] * 8, error=error) is None) == goes_on
    startup = after(0.1)
    startup.answered(0.152, [(0.0, 0.152)] * 4, error=0.1)
    assert startup.wave == Wave(8, 1)


@pytest.mark.parametrize(
    ("waves", "latency", "error", "samples", "unclear"),
    [
        # What is noisy goes on, the first wave up to four flights of six, larger requests up to two, more of them to four.
        ([], 0.05, 0.3, 23, True),
        ([], 0.05, 0.3, 24, False),
        ([], 0.05, 0.19, 4, False),
        ([0.1], 0.56, 0.3, 11, True),
        ([0.1], 0.56, 0.3, 12, False),
        ([0.1, 0.4], 0.1, 0.3, 31, True),
        ([0.1, 0.4], 0.1, 0.3, 32, False),
        # And what is not where it cannot be told if twice as much gave half as much again.
        ([0.1], 0.1, 0.05, 6, False),
        ([0.1], 0.132, 0.05, 6, True),
        ([0.1], 0.132, 0.04, 6, False),
    ],
)
def test_a_wave_goes_on_where_noise_may_hide_what_it_shows(
    waves: Sequence[float], latency: float, error: float, samples: int, unclear: bool
) -> None:
    assert after(*waves).unclear(latency, error=error, samples=samples) == unclear


@pytest.mark.parametrize(("waves", "seconds"), [([], float("inf")), ([0.1], 0.44), ([0.8], 1.04)])
def test_a_wave_ends_early_that_takes_far_longer_than_the_one_before_and_misses_the_target(
    waves: Sequence[float], seconds: float
) -> None:
    startup = after(*waves)
    assert startup.too_slow_seconds == pytest.approx(seconds)
    assert startup.is_first == (not waves)


def test_a_wave_keeps_to_new_ceilings_and_ends_the_waves_where_they_leave_no_more_than_the_one_before_had() -> None:
    startup = after(0.05)
    startup.bound(Ceilings(items=100))
    assert startup.wave == Wave(4, 4)
    startup.bound(Ceilings(concurrency=2, items=3))
    assert startup.wave == Wave(2, 3)
    startup.bound(Ceilings(concurrency=2, items=2))
    landing = even(startup, 0.05)
    assert landing is not None
    assert landing.concurrency == 2


def test_answers_out_of_order_are_no_serial_server() -> None:
    assert answers(Startup(Ceilings()), [0.08, 0.02, 0.06, 0.04]) is None


def test_a_model_that_was_loading_is_forgotten_and_a_slow_server_is_not() -> None:
    startup = Startup(Ceilings())
    assert even(startup, 15.0) is None
    assert startup.wave == Wave(4, 1)
    assert startup.alone
    assert even(startup, 0.02) is None
    assert startup.wave == Wave(4, 4), "nothing waited for anything"
    assert not startup.alone
    slow = Startup(Ceilings())
    even(slow, 15.0)
    assert even(slow, 15.0) is None
    assert slow.wave == Wave(4, 2), "it is slow, not cold"


def test_a_serial_server_that_was_loading_is_recognised_by_the_second_wave() -> None:
    startup = Startup(Ceilings())
    assert answers(startup, [15.0, 15.02, 15.04, 15.06]) is None
    landing = answers(startup, [0.02, 0.04, 0.06, 0.08])
    assert landing is not None
    assert landing.concurrency == 2


def test_a_server_that_works_on_whole_requests_gets_more_of_them() -> None:
    startup = Startup(Ceilings())
    landing = None
    while landing is None:
        wave = startup.wave
        # Not 16: from 8 to 32 it would be worth exactly what is just worth it, and how Python adds up would decide.
        landing = even(startup, 0.02 * wave.items * max(1.0, wave.concurrency / 15))
    assert 14 <= landing.concurrency <= 18


def test_a_server_that_batches_gets_larger_requests_first() -> None:
    startup = Startup(Ceilings())
    for _ in range(4):
        even(startup, 0.05)
    assert startup.wave.concurrency == 4
    assert startup.wave.items >= 64


def test_the_ceilings_hold_and_end_the_waves() -> None:
    startup = Startup(Ceilings(concurrency=2, items=3))
    landing = None
    while landing is None:
        assert startup.wave.concurrency <= 2
        assert startup.wave.items <= 3
        landing = even(startup, 0.05)
    assert landing.concurrency == 2


def test_a_service_slower_than_the_target_is_not_asked_to_be_faster() -> None:
    startup = Startup(Ceilings())
    landing = None
    while landing is None:
        landing = even(startup, 0.8 * startup.wave.items * max(1.0, startup.wave.concurrency / 8))
    assert landing.target_seconds > 0.8
    assert landing.concurrency >= 8


def test_noise_makes_a_wave_go_on_and_one_that_a_413_cut_to_the_size_before_is_judged_at_once() -> None:
    startup = Startup(Ceilings())
    even(startup, 0.05)
    startup.answered(0.05, [(0.0, 0.05)] * 4, error=0.3)
    assert startup.wave.texts > 4
    assert startup.unclear(0.07, error=0.3, samples=8)
    assert not startup.unclear(0.07, error=0.3, samples=1000), "enough is enough"
    startup.bound(Ceilings(items=1))
    assert not startup.unclear(0.07, error=0.3, samples=8)


def test_it_lands_on_the_best_of_the_waves_where_more_in_number_was_worse() -> None:
    startup = Startup(Ceilings())
    landing = None
    while landing is None:
        wave = startup.wave
        landing = even(startup, 0.04 * max(1.0, wave.texts / 64) ** 0.8 if wave.concurrency == 4 else 0.25)
    assert landing.concurrency == 4
    assert landing.texts == 256
    assert landing.by_work


def test_it_is_the_work_that_saturates_where_more_requests_bought_no_more_than_larger_ones() -> None:
    startup = Startup(Ceilings())
    even(startup, 0.1)
    even(startup, 0.11)
    assert even(startup, 0.4) is None
    assert startup.wave.concurrency == 8, "larger requests bought nothing"
    landing = even(startup, 0.22)
    assert landing is not None
    assert landing.by_work


def test_it_is_the_number_of_requests_that_saturates_where_more_of_them_once_bought_more() -> None:
    startup = Startup(Ceilings())
    even(startup, 0.1)
    even(startup, 0.11)
    even(startup, 0.4)
    assert even(startup, 0.11) is None, "more of them did"
    landing = even(startup, 0.42)
    assert landing is not None
    assert not landing.by_work


def test_the_lightest_wave_is_what_a_light_load_takes() -> None:
    startup = Startup(Ceilings())
    answers(startup, [0.095, 0.1, 0.1, 0.105])
    even(startup, 0.11)
    assert (startup.light, startup.fastest) == (0.1, 0.095)
    even(startup, 0.09)
    assert (startup.light, startup.fastest) == (0.09, 0.09)


def test_a_batching_server_whose_steps_are_slow_gets_one_request_at_a_time_and_larger_ones() -> None:
    """Single texts wait for the step before; four of them miss the target, and a hundred in one request do not."""
    startup = Startup(Ceilings(items=100))
    assert answers(startup, TWO_STEPS) is None
    assert startup.wave == Wave(4, 1) and startup.alone
    assert answers(startup, TWO_STEPS) is None
    assert startup.wave == Wave(1, 4)
    assert not startup.alone
    assert even(startup, 0.302) is None
    assert startup.wave == Wave(1, 16)
    assert even(startup, 0.308) is None
    assert startup.wave == Wave(1, 64)
    assert even(startup, 0.33) is None
    assert startup.wave == Wave(1, 100)
    landing = even(startup, 0.35)
    assert landing is not None
    assert (landing.concurrency, landing.texts, landing.by_step) == (1, 100, True)


def test_requests_that_become_too_slow_one_at_a_time_go_back_to_the_size_before() -> None:
    startup = Startup(Ceilings(items=100))
    for _ in range(2):
        answers(startup, TWO_STEPS)
    assert even(startup, 0.34) is None
    assert startup.wave == Wave(1, 16)
    landing = even(startup, 0.47)
    assert landing is not None
    assert (landing.concurrency, landing.texts, landing.by_step) == (1, 4, True)


def by_step(first: float) -> Startup:
    """First waves that came to one request at a time, whose first answer took so long."""
    startup = Startup(Ceilings())
    for _ in range(2):
        answers(startup, [first, *TWO_STEPS[1:]])
    assert (startup.wave, startup.fastest, startup.light) == (Wave(1, 4), first, first)
    return startup


def test_one_request_at_a_time_grows_little_where_the_target_is_near() -> None:
    startup = by_step(0.3)
    assert even(startup, 0.43) is None
    assert startup.wave == Wave(1, 6)


def test_one_request_at_a_time_is_no_larger_where_more_texts_in_it_gain_little() -> None:
    landing = even(by_step(0.15), 0.43)
    assert landing is not None
    assert (landing.concurrency, landing.texts) == (1, 4)
    assert landing.target_seconds == pytest.approx(1.5 * 0.15)


def test_steps_that_can_be_waited_for_and_slots_that_are_taken_in_turn_are_no_reason_for_one_request_at_a_time() -> (
    None
):
    for seconds in ([0.1, 0.2, 0.2, 0.2], [0.3, 0.3, 0.6, 0.6], [0.45, 0.3, 0.6, 0.62]):
        startup = Startup(Ceilings())
        for _ in range(2):
            assert answers(startup, seconds) is None
        assert startup.wave.concurrency == 4


def test_where_a_request_may_hold_few_texts_several_go_together_after_all() -> None:
    startup = Startup(Ceilings(items=128))
    for _ in range(2):
        answers(startup, TWO_STEPS)
    assert even(startup, 0.302) is None
    assert startup.wave == Wave(1, 16)
    startup.bound(Ceilings(items=8))
    assert startup.wave == Wave(1, 8)
    assert even(startup, 0.304) is None
    assert (startup.wave, startup.alone) == (Wave(4, 1), True)
    assert answers(startup, TWO_STEPS) is None
    assert startup.wave == Wave(4, 2), "and not one at a time again"
    startup = by_step(0.3)
    startup.bound(Ceilings(items=1))
    assert even(startup, 0.3) is None
    assert (startup.wave, startup.alone) == (Wave(4, 1), True), "one text is no more than there was"
