"""The first waves, told by hand how a server's answers come."""

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


def test_a_serial_server_is_recognised_by_its_first_wave() -> None:
    landing = answers(Startup(Ceilings()), [0.02, 0.04, 0.06, 0.08])
    assert landing is not None
    assert landing.concurrency == 2
    assert landing.target_seconds == Ceilings().lowest_latency


def test_a_serial_server_is_recognised_although_the_first_answer_paid_for_the_connection() -> None:
    landing = answers(Startup(Ceilings()), [0.014, 0.020, 0.027, 0.033])
    assert landing is not None
    assert landing.concurrency == 2


def test_a_slow_serial_server_gets_one_request_at_a_time() -> None:
    landing = answers(Startup(Ceilings()), [0.3, 0.6, 0.9, 1.2])
    assert landing is not None
    assert (landing.concurrency, landing.texts) == (1, 1)


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
        landing = even(startup, 0.02 * wave.items * max(1.0, wave.concurrency / 16))
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
    assert startup.light == 0.1


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
