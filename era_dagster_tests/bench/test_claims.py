"""What is claimed of the controller, as tests, on the first and last scenario of every kind; the table holds all of them.

Baselines are compared by `worth`, the ratio to the oracle less in proportion to how far the P95 is over its target: the
oracle itself counts only within that target, and whoever lets ten seconds of requests wait reaches any throughput.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from statistics import mean

import pytest

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.gate import EndpointController
from era_dagster.simulation.spec import Course, course_from
from era_dagster_tests.bench.baselines import BASELINES
from era_dagster_tests.bench.engine import Result, Texts, run
from era_dagster_tests.bench.oracle import known, remembered
from era_dagster_tests.bench.scenarios import FOLDER, Scenario, all_scenarios
from era_dagster_tests.bench.score import OURS, PATIENCE_SECONDS, Score, controllers_for, measured
from era_dagster_tests.bench.table import (
    CONTROLLERS,
    held_out,
    mean_ratios,
    of,
    rendered,
    shortfalls,
    summary,
    timely,
    worth,
)

BEST = remembered()
SCENARIOS = all_scenarios()
SEED = 1
SHORT = {scenario.name for scenario in SCENARIOS if "ratio" in scenario.short}
"""Where the files say that the throughput expected is not reached yet."""


def first_and_last_of_each_kind() -> list[Scenario]:
    files = [json.loads(path.read_text()) for path in FOLDER.glob("*.json")]
    names = {each["name"] for file in files for each in (file[0], file[-1])}
    return [scenario for scenario in SCENARIOS if scenario.name in names]


def scored(scenario: Scenario, name: str, *, goodput: float | None = None) -> Score:
    """One run; `goodput` of the oracle where the scenario is not one of the files."""
    if goodput is None and name == OURS and scenario in SCENARIOS:
        return seeded(scenario.name, SEED)
    goodput = known(scenario, BEST).goodput if goodput is None else goodput
    return measured(scenario, controllers_for(scenario, name), name=name, seed=SEED, oracle_goodput=goodput)


def alone(course: Course, *, mean_tokens: float = 100.0, seconds: float = 60.0, warm_up: float, seed: int) -> Result:
    """Our client with a server to itself, and never short of texts."""
    controller = EndpointController(Ceilings(), patience_seconds=PATIENCE_SECONDS)
    return run([controller], course, Texts(mean_tokens=mean_tokens), seconds=seconds, warm_up=warm_up, seed=seed)[0]


def all_scores(scenarios: Sequence[Scenario]) -> list[Score]:
    return [scored(scenario, name) for scenario in scenarios for name in CONTROLLERS]


@pytest.fixture(scope="module")
def scores() -> list[Score]:
    return all_scores(first_and_last_of_each_kind())


def mean_worth(scores: Sequence[Score], name: str) -> float:
    return mean(worth(score, BEST[score.scenario]) for score in of(scores, name))


def behind(scores: Sequence[Score]) -> list[tuple[str, float, str]]:
    """Where a baseline that is in time gives more than .03 more."""
    return [each for each in shortfalls(scores, BEST, only_timely=True) if each[1] < -0.03]


def test_it_reaches_the_oracle_within_seven_percent_on_the_mean(scores: list[Score]) -> None:
    assert mean(mean_ratios(scores, OURS).values()) >= 0.93


def test_it_is_below_four_fifths_of_the_oracle_only_where_the_scenario_says_so(scores: list[Score]) -> None:
    assert {name for name, ratio in mean_ratios(scores, OURS).items() if ratio < 0.8} <= SHORT


@pytest.mark.parametrize("baseline", BASELINES)
def test_it_is_better_than_a_law_of_the_field(scores: list[Score], baseline: str) -> None:
    assert mean_worth(scores, OURS) >= mean_worth(scores, baseline) + 0.10


def test_nowhere_is_a_law_that_keeps_the_latency_much_better(scores: list[Score]) -> None:
    assert {name for name, _, _ in behind(scores)} <= SHORT


def test_it_keeps_the_latency_target_more_often_than_any_law(scores: list[Score]) -> None:
    in_time = {name: mean(timely(score, BEST[score.scenario]) for score in of(scores, name)) for name in CONTROLLERS}
    assert in_time[OURS] == max(in_time.values())


def test_the_table_shows_every_scenario_and_the_summary_every_controller(scores: list[Score]) -> None:
    table, told = rendered(first_and_last_of_each_kind(), scores, BEST), summary(scores, BEST)
    assert all(scenario.name in table for scenario in first_and_last_of_each_kind())
    assert all(name in table and name in told for name in CONTROLLERS)


@pytest.mark.parametrize("name", ["four_slots_by_text", "sixteen_slots_by_text", "sixteen_slots_by_request"])
def test_five_percent_of_random_500s_do_not_lower_what_is_in_flight(name: str) -> None:
    scenario = next(each for each in SCENARIOS if each.name == name)
    course = replace(scenario.course, spec=replace(scenario.course.spec, share_500=0.05))
    healthy = scored(scenario, OURS)
    faulty = scored(replace(scenario, course=course), OURS, goodput=known(scenario, BEST).goodput)
    assert faulty.work_end >= 0.75 * healthy.work_end
    assert faulty.ratio >= 0.95 * healthy.ratio


@pytest.mark.parametrize("per_second", [5.0, 40.0, 150.0])
def test_a_slow_sender_does_not_raise_the_limit(per_second: float) -> None:
    scenario = next(each for each in SCENARIOS if each.name == "slow_sender")
    slow = replace(scenario, texts=replace(scenario.texts, per_second=per_second))
    score = scored(slow, OURS, goodput=per_second)
    assert score.ratio >= 0.98
    assert score.concurrency_end <= 8


@pytest.mark.parametrize("rate", [None, 20.0])
def test_a_server_that_comes_to_work_on_one_slow_request_at_a_time_is_not_left_with_a_long_queue(
    rate: float | None,
) -> None:
    server = {
        "discipline": "requests",
        "slots": 8,
        "seconds_per_request": 0.02,
        "seconds_per_text": 0.002,
        "jitter": 0.2,
    }
    slower = {"slots": 1, "seconds_per_request": 0.1, "seconds_per_text": 0.001, "requests_per_second": None}
    course = course_from({**server, "requests_per_second": rate, "changes": [[40, slower]]})
    for seed in (1, 2, 3):
        result = alone(course, seconds=140.0, warm_up=90.0, seed=seed)
        assert result.percentile(0.95) <= 0.75
        assert result.goodput >= 300.0, "a thousand texts a second less a tenth of a second for each request"


def test_a_serial_server_whose_requests_cost_more_than_their_texts_gets_larger_ones() -> None:
    server = {"discipline": "requests", "slots": 1, "seconds_per_request": 0.1, "seconds_per_text": 0.001}
    result = alone(course_from(server), warm_up=30.0, seed=1)
    assert result.goodput >= 200.0, "single texts would be ten a second"


@pytest.mark.parametrize(("jitter", "least"), [(0.02, 0.97), (0.1, 0.97), (0.3, 0.88)])
def test_a_server_that_slows_down_with_what_is_inside_it_is_used_well_on_the_mean_of_many_runs(
    jitter: float, least: float
) -> None:
    server = {
        "slots": 8,
        "seconds_per_text": 0.0125,
        "knee": 48,
        "inflation": 1.0,
        "rtt_seconds": 0.01,
        "jitter": jitter,
    }
    course = course_from(server)
    runs = [alone(course, mean_tokens=50.0, seconds=9.0, warm_up=3.0, seed=seed) for seed in range(24)]
    assert mean(result.goodput for result in runs) >= least * 640.0, (
        "where times vary a harmful step hides in the noise"
    )


def test_a_server_whose_speed_swings_is_used_well_whenever_the_swing_begins() -> None:
    def slowed(at: float) -> dict[str, float]:
        share = 1.0 + 0.8 * math.sin(2.0 * math.pi * at / 40.0)
        return {"seconds_per_text": 0.01 * share, "seconds_per_token": 0.0001 * share}

    for begins in range(0, 40, 5):
        changes = [[at, slowed(begins + at)] for at in range(2, 120, 2)]
        server = {"slots": 4, "seconds_per_request": 0.002, "rtt_seconds": 0.002, "jitter": 0.05, "changes": changes}
        course = course_from({**server, **slowed(begins)})
        result = alone(course, mean_tokens=100.0, seconds=120.0, warm_up=0.0, seed=begins)
        assert result.goodput >= 0.93 * course.texts_limit(0.0, 120.0, 100.0) / 120.0, (
            f"{begins} seconds into a swing: while it becomes faster, whatever is tried seems to pay"
        )


@cache
def seeded(name: str, seed: int) -> Score:
    scenario = next(each for each in SCENARIOS if each.name == name)
    best = known(scenario, BEST).goodput
    return measured(scenario, controllers_for(scenario, OURS), name=OURS, seed=seed, oracle_goodput=best)


def seeds(name: str, count: int) -> list[Score]:
    return [seeded(name, seed) for seed in range(1, count + 1)]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("two_clients", 0.75),
        ("two_clients_later", 0.6),
        ("two_clients_serial_uneven", 0.33),
        ("two_clients_gpu", 0.45),
        ("three_clients", 0.33),
    ],
)
def test_clients_that_know_nothing_of_each_other_come_to_share_a_server_on_the_mean_of_many_runs(
    name: str, least: float
) -> None:
    shares = [score.fairness for score in seeds(name, 24)]
    assert mean(share for share in shares if share is not None) >= least


@pytest.mark.parametrize(
    ("name", "least", "every_run"),
    [
        ("two_clients_told", 0.87, 0.8),
        ("two_clients_later_told", 0.87, 0.7),
        ("two_clients_serial_uneven_told", 0.87, 0.75),
        ("two_clients_gpu_told", 0.85, 0.65),
        ("three_clients_told", 0.87, 0.7),
    ],
)
def test_clients_that_know_of_each_other_share_a_server_evenly_in_every_run(
    name: str, least: float, every_run: float
) -> None:
    shares = [score.fairness or 0.0 for score in seeds(name, 8)]
    assert mean(shares) >= least
    assert min(shares) >= every_run


@pytest.mark.parametrize(
    ("name", "count", "least"),
    [("medium_jitter_link", 5, 0.85), ("medium_jitter_link", 10, 0.75), ("mixed_sizes_gpu", 5, 0.85)],
)
def test_a_server_of_ones_own_that_takes_more_in_more_requests_is_not_taken_for_a_shared_one(
    name: str, count: int, least: float
) -> None:
    assert min(score.ratio for score in seeds(name, count)) >= least


def test_where_a_text_takes_as_long_as_is_aimed_at_the_work_does_not_dwindle_in_vain() -> None:
    server = {"discipline": "requests", "slots": 4, "seconds_per_text": 0.16, "jitter": 0.2}
    for seed in range(1, 9):
        result = alone(course_from(server), mean_tokens=20.0, warm_up=5.0, seed=seed)
        assert result.goodput >= 0.85 * 4 / 0.16, f"seed {seed}"


@pytest.mark.parametrize(("slots", "jitter", "least"), [(4, 0.4, 0.8), (8, 0.6, 0.8), (32, 0.4, 0.8)])
def test_slow_texts_that_vary_do_not_keep_a_wide_server_idle_on_the_mean_of_many_runs(
    slots: int, jitter: float, least: float
) -> None:
    server = {"discipline": "requests", "slots": slots, "seconds_per_text": 0.25, "jitter": jitter}
    shares = []
    for seed in range(1, 9):
        result = alone(course_from(server), mean_tokens=20.0, warm_up=5.0, seed=seed)
        shares.append(result.goodput / (slots / 0.25))
    assert mean(shares) >= least


@pytest.mark.parametrize(
    ("seconds_per_text", "slower", "slots", "jitter"), [(0.02, 30, 8, 0.4), (0.1, 8, 8, 0.05), (0.1, 8, 8, 0.4)]
)
def test_a_server_that_was_far_too_slow_for_a_while_is_full_again_soon_after_without_a_long_queue(
    seconds_per_text: float, slower: int, slots: int, jitter: float
) -> None:
    server = {"discipline": "requests", "slots": slots, "seconds_per_text": seconds_per_text, "jitter": jitter}
    changes = [[20.0, {"seconds_per_text": slower * seconds_per_text}], [40.0, {"seconds_per_text": seconds_per_text}]]
    course = course_from({**server, "changes": changes})
    results = [alone(course, mean_tokens=20.0, seconds=70.0, warm_up=45.0, seed=seed) for seed in range(1, 7)]
    shares = [result.goodput * seconds_per_text / slots for result in results]
    assert mean(shares) >= 0.85
    assert min(shares) >= 0.5
    assert max(result.percentile(0.95) for result in results) <= 0.8


@pytest.mark.parametrize("discipline", ["texts", "requests"])
def test_after_a_wide_server_became_a_narrow_one_nothing_waits_for_more_than_what_was_under_way_then(
    discipline: str,
) -> None:
    server = {
        "discipline": discipline,
        "slots": 32,
        "seconds_per_text": 0.02,
        "seconds_per_request": 0.02,
        "jitter": 0.05,
    }
    course = course_from({**server, "changes": [[20.0, {"slots": 1}]]})
    for seed in (1, 2, 3):
        result = alone(course, mean_tokens=20.0, seconds=60.0, warm_up=36.0, seed=seed)
        assert result.percentile(0.95) <= 0.75, (
            "some five hundred texts, at forty a second, were there in the twentieth second"
        )
        assert result.goodput >= 0.85 * 1 / 0.02 * (0.5 if discipline == "requests" else 1.0)


def test_a_slow_server_that_gets_more_slots_is_not_left_with_one_text_at_a_time() -> None:
    server = {
        "discipline": "requests",
        "slots": 1,
        "seconds_per_text": 0.2,
        "jitter": 0.05,
        "changes": [[20.0, {"slots": 8}]],
    }
    for seed in (1, 3, 4):
        result = alone(course_from(server), mean_tokens=20.0, seconds=240.0, warm_up=180.0, seed=seed)
        assert result.goodput >= 0.9 * 8 / 0.2, f"seed {seed}"


def test_clients_that_know_of_each_other_do_not_take_the_wait_for_the_others_for_the_service() -> None:
    server = {
        "discipline": "texts",
        "slots": 8,
        "seconds_per_text": 0.1,
        "jitter": 0.05,
        "changes": [[15.0, {"slots": 1}]],
    }
    controllers = [EndpointController(Ceilings(), patience_seconds=PATIENCE_SECONDS) for _ in range(6)]
    for controller in controllers:
        controller.told_of_others(present=True)
    texts = Texts(mean_tokens=20.0)
    results = run(controllers, course_from(server), texts, seconds=120.0, warm_up=80.0, seed=1)
    assert max(result.percentile(0.95) for result in results) <= 0.75, (
        "six texts of a tenth of a second, one after the other"
    )


@pytest.mark.parametrize("discipline", ["texts", "requests"])
def test_after_a_step_to_a_quarter_of_the_speed_the_95th_percentile_of_six_seconds_is_in_time_in_most_runs(
    discipline: str,
) -> None:
    server = {"discipline": discipline, "slots": 8, "seconds_per_text": 0.0125, "seconds_per_token": 0, "jitter": 0.05}
    in_time = 0
    for seed in range(12):
        step = 5.0 + 0.0217 * seed
        course = course_from({**server, "changes": [[step, {"slots": 2}], [step + 2.0, {"slots": 8}]]})
        result = alone(course, mean_tokens=50.0, seconds=9.0, warm_up=3.0, seed=seed)
        in_time += result.percentile(0.95) <= 0.5
    assert in_time >= 11


@pytest.mark.parametrize("requests_per_second", [4.0, 8.0, 16.0])
def test_a_rate_of_requests_that_nearly_fills_the_server_does_not_leave_it_idle(requests_per_second: float) -> None:
    server = {"slots": 16, "seconds_per_text": 0.1, "seconds_per_request": 0.003, "rtt_seconds": 0.005, "jitter": 0.05}
    course = course_from({**server, "requests_per_second": requests_per_second})
    for seed in range(1, 9):
        result = alone(course, mean_tokens=60.0, warm_up=10.0, seed=seed)
        assert result.goodput >= 0.85 * 16 / 0.1, f"seed {seed}"
        assert result.percentile(0.95) <= 0.75, "late, but by no long queue"


BY_THE_WINDOW = {"slots": 4, "seconds_per_text": 0.02, "rtt_seconds": 0.02, "jitter": 0.1}


@pytest.mark.parametrize("told", [{}, {"retry_after": "seconds"}, {"announce": True}])
@pytest.mark.parametrize(("requests", "seconds", "least"), [(50, 10.0, 120.0), (40, 60.0, 40.0)])
def test_a_number_of_requests_by_the_window_is_used_for_large_ones(
    requests: int, seconds: float, least: float, told: dict[str, object]
) -> None:
    """Before, they were used up by small ones, which became single texts while the window was empty."""
    rate = {"requests_per_second": requests / seconds, "window_seconds": seconds}
    for seed in (1, 2, 3):
        course = course_from({**BY_THE_WINDOW, **rate, **told})
        result = alone(course, mean_tokens=20.0, seconds=300.0, warm_up=150.0, seed=seed)
        assert result.goodput >= least


@pytest.mark.parametrize(("drawn", "least"), [(298, 280.0), (293, 33.0), (171, 20.0)])
def test_a_window_is_used_up_at_its_first_refusal_and_not_when_the_pause_after_it_was_in_vain(
    drawn: int, least: float
) -> None:
    """Before, its allowance was thought to have come in without that pause: a pace that is refused in every window, and
    smaller requests each time, down to an eighteenth of what the first of these gives."""
    server = held_out(drawn, "windows")
    for seed in (1, 2, 3):
        score = measured(server, controllers_for(server, OURS), name=OURS, seed=seed, oracle_goodput=1.0)
        assert score.goodput >= least, f"{server.intent}, seed {seed}"


def test_a_few_requests_and_their_tokens_by_the_minute_are_used_up_where_the_server_tells_of_them() -> None:
    """Before, a request of more tokens than the minute has was sent again and again until the patience was over."""
    rates = {"requests_per_second": 0.05, "tokens_per_second": 10_000 / 60, "window_seconds": 60, "announce": True}
    for seed in (1, 2, 3):
        course = course_from({"slots": 32, "seconds_per_token": 0.0001, "rtt_seconds": 0.02, **rates})
        result = alone(course, mean_tokens=200.0, seconds=900.0, warm_up=300.0, seed=seed)
        assert result.goodput >= 0.85 * 10_000 / 60 / 200
        assert result.refusals <= 5


def test_a_pace_that_is_far_below_what_a_server_can_do_opens_no_limit_for_the_day_on_which_it_is_gone() -> None:
    """A window shows no pace while it has something left: what was let through then was 21 seconds of work at once."""
    course = course_from({**BY_THE_WINDOW, "requests_per_second": 10.0, "window_seconds": 60.0})
    for seed in (1, 2, 3):
        result = alone(course, mean_tokens=20.0, seconds=400.0, warm_up=130.0, seed=seed)
        assert result.percentile(0.95) <= 1.0


@pytest.mark.parametrize(
    ("also", "least"), [({"texts_per_second": 60.0}, 45.0), ({"most_inside": 24, "full_status": 429}, 100.0)]
)
def test_what_is_refused_though_the_server_tells_of_something_left_is_learnt(
    also: dict[str, object], least: float
) -> None:
    """Before, a server that tells of its requests and refuses for its texts got the same large request for ever."""
    server = {"slots": 4, "seconds_per_text": 0.02, "rtt_seconds": 0.02, "requests_per_second": 20.0, "announce": True}
    for seed in (1, 2, 3):
        result = alone(course_from({**server, **also}), mean_tokens=20.0, warm_up=20.0, seed=seed)
        assert result.goodput >= least


@pytest.mark.parametrize(("slots", "inside"), [(4, 48), (2, 16)])
def test_nothing_else_waits_for_a_429_of_a_server_that_is_known_to_be_full(slots: int, inside: int) -> None:
    """Before, everything paused for half a second each time that more was tried: .91 and .92 of what it can do."""
    server = {"discipline": "requests", "slots": slots, "seconds_per_text": 0.005, "rtt_seconds": 0.002, "jitter": 0.05}
    course = course_from({**server, "most_inside": inside, "full_status": 429})
    for seed in (1, 2, 3):
        result = alone(course, mean_tokens=60.0, seconds=9.0, warm_up=3.0, seed=seed)
        assert result.goodput >= 0.97 * slots / 0.005


@pytest.mark.parametrize(("step", "least", "late"), [(0.2, 400.0, 0.5), (0.3, 300.0, 0.75), (0.4, 180.0, 0.9)])
def test_a_batching_server_with_slow_steps_gets_large_requests_one_at_a_time(
    step: float, least: float, late: float
) -> None:
    """Before, few texts waited for each other's steps: a fifth to two thirds of that, and later."""
    server = {"discipline": "batching", "step_seconds": step, "seconds_per_text": 0.0005, "jitter": 0.2}
    for seed in (1, 2, 3):
        result = alone(course_from({**server, "rtt_seconds": 0.002}), mean_tokens=50.0, warm_up=20.0, seed=seed)
        assert result.goodput >= least
        assert result.percentile(0.95) <= late


@pytest.mark.parametrize(("slots", "least"), [(4, 0.6), (32, 0.3)])
def test_slow_texts_whose_first_answers_were_quick_by_chance_are_told_from_quick_ones_later(
    slots: int, least: float
) -> None:
    """Before, less than a text takes was aimed at for a minute: .41 of four slots, .09 of 32."""
    server = {
        "slots": slots,
        "seconds_per_text": 0.25,
        "seconds_per_request": 0.003,
        "jitter": 0.6,
        "rtt_seconds": 0.001,
    }
    for seed in range(24):
        result = alone(course_from(server), mean_tokens=60.0, warm_up=0.0, seconds=60.0, seed=seed)
        assert result.goodput >= least * slots / 0.253


@pytest.mark.parametrize("seconds_per_request", [0.4, 0.6])
@pytest.mark.parametrize("announce", [True, False])
def test_a_hosted_service_that_takes_long_whatever_is_in_a_request_gets_large_ones(
    seconds_per_request: float, announce: bool
) -> None:
    spec = {"discipline": "requests", "slots": 64, "seconds_per_text": 2e-4, "jitter": 0.1, "burst_seconds": 5.0}
    limits = {"requests_per_second": 5.0, "seconds_per_request": seconds_per_request, "announce": announce}
    result = alone(course_from({**spec, **limits}), seconds=120.0, warm_up=60.0, seed=SEED)
    assert result.goodput >= 0.5 * 5.0 * 128, "it was five texts a second where requests of 128 take as long as of one"


@pytest.mark.parametrize(
    ("rate", "burst", "least"),
    [
        (0.5, 2, 0.5),
        (1.0, 1, 0.3),
        (1.0, 2, 0.8),
        (1.5, 1, 0.5),
        (10.0, 1, 0.55),
        (20.0, 1, 0.4),
        (20.0, 5, 0.7),
        (50.0, 5, 0.6),
    ],
)
def test_a_rate_that_a_proxy_calls_503_and_hardly_any_burst_of_it_comes_through(
    rate: float, burst: int, least: float
) -> None:
    """Before, nothing came through below two a second, since the probes of a server that seems to be down used it up; of the
    others .40, .23, .65 and .10: what a pause brings is lost there, and a pace so small was taken for chance."""
    server = {
        "discipline": "requests",
        "slots": 8,
        "seconds_per_text": 0.004,
        "seconds_per_request": 0.003,
        "jitter": 0.1,
    }
    limit = {"rtt_seconds": 0.005, "requests_per_second": rate, "burst_seconds": burst / rate, "rate_status": 503}
    for seed in (1, 2, 3):
        result = alone(course_from({**server, **limit}), mean_tokens=60.0, seconds=90.0, warm_up=0.0, seed=seed)
        assert result.goodput >= least * min(85.0 * rate, 1900.0)
