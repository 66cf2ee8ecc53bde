"""Each field of a simulated server does what `ServerSpec` says: the ground that every scenario stands on."""

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from era_dagster.domain.errors import ConfigurationError
from era_dagster.simulation.physics import Finished, ServerPhysics
from era_dagster.simulation.spec import Course, ServerSpec, course_from

Sending = tuple[float, Sequence[int]]


def ask(server: dict[str, Any], sendings: Sequence[Sending], *, seed: int = 0) -> list[tuple[float, Finished]]:
    """(time, end) of each request, in the order of sending; a request is (sent at, tokens of its texts)."""
    physics = ServerPhysics(course_from(server), random=Random(seed))
    ends: dict[int, tuple[float, Finished]] = {}
    waiting = sorted(enumerate(sendings), key=lambda each: each[1][0])
    while waiting or physics.next_event_at < 1e9:
        if waiting and waiting[0][1][0] <= physics.next_event_at:
            number, (at, tokens) = waiting.pop(0)
            physics.arrive(at, number, tokens)
            continue
        now = physics.next_event_at
        for finished in physics.advance(now):
            ends[finished.request] = (now, finished)
    return [ends[number] for number in range(len(sendings))]


def times(server: dict[str, Any], sendings: Sequence[Sending], *, seed: int = 0) -> list[float]:
    return [pytest.approx(at) for at, _ in ask(server, sendings, seed=seed)]


def statuses(server: dict[str, Any], sendings: Sequence[Sending], *, seed: int = 0) -> list[int]:
    return [finished.status for _, finished in ask(server, sendings, seed=seed)]


def at_once(count: int, tokens: Sequence[int] = (10,)) -> list[Sending]:
    return [(0.0, tokens)] * count


# --- work ---


def test_texts_take_the_slots_one_by_one_and_in_the_order_of_arrival() -> None:
    assert times({"slots": 2, "seconds_per_text": 1.0}, [(0.0, [1, 1, 1]), (0.0, [1])]) == [2.0, 2.0]
    assert times({"slots": 1, "seconds_per_text": 1.0}, [(0.0, [1, 1]), (0.0, [1])]) == [2.0, 3.0]


def test_a_whole_request_takes_one_slot() -> None:
    server = {"discipline": "requests", "slots": 2, "seconds_per_text": 1.0}
    assert times(server, [(0.0, [1, 1, 1]), (0.0, [1]), (0.0, [1])]) == [3.0, 1.0, 2.0]


def test_a_batching_engine_takes_everything_waiting_in_one_step() -> None:
    server = {"discipline": "batching", "step_seconds": 1.0, "seconds_per_text": 0.1}
    assert times(server, [(0.0, [1]), (0.5, [1]), (0.5, [1, 1])]) == [1.1, 2.4, 2.4]


def test_a_step_holds_only_its_tokens_and_a_larger_request_takes_several() -> None:
    server = {"discipline": "batching", "step_seconds": 1.0, "step_tokens": 100, "seconds_per_text": 0.0}
    assert times(server, [(0.0, [100]), (0.1, [60]), (0.1, [60])]) == [1.0, 2.0, 3.0]
    assert times(server, [(0.0, [250])]) == [3.0]


def test_texts_tokens_and_requests_cost_their_seconds() -> None:
    work = {"seconds_per_text": 0.1, "seconds_per_token": 0.01, "seconds_per_request": 1.0}
    for discipline in ("texts", "requests", "batching"):
        assert times({"discipline": discipline, "slots": 1, **work}, [(0.0, [10, 20])]) == [1.5]


def test_jitter_is_the_coefficient_of_variation_and_keeps_the_mean() -> None:
    sendings = [(10.0 * number, [1]) for number in range(4000)]
    took = [
        at - 10.0 * number for number, (at, _) in enumerate(ask({"seconds_per_text": 1.0, "jitter": 0.3}, sendings))
    ]
    mean = sum(took) / len(took)
    deviation = (sum((each - mean) ** 2 for each in took) / len(took)) ** 0.5
    assert mean == pytest.approx(1.0, rel=0.03)
    assert deviation / mean == pytest.approx(0.3, rel=0.1)


def test_a_share_of_the_requests_takes_so_many_times_as_long() -> None:
    sendings = [(100.0 * number, [1]) for number in range(2000)]
    server = {"seconds_per_text": 1.0, "tail_share": 0.1, "tail_factor": 7.0}
    took = [round(at - 100.0 * number, 6) for number, (at, _) in enumerate(ask(server, sendings))]
    assert set(took) == {1.0, 7.0}
    assert took.count(7.0) / len(took) == pytest.approx(0.1, abs=0.03)


def test_more_texts_inside_than_the_knee_make_all_work_slower() -> None:
    server = {"discipline": "requests", "slots": 8, "seconds_per_text": 1.0, "knee": 2, "inflation": 0.5}
    assert times(server, at_once(4)) == [1.0, 1.0, 1.25, 1.5]


def test_half_of_the_way_lies_before_the_work_and_half_after_it() -> None:
    assert times({"seconds_per_text": 1.0, "rtt_seconds": 0.5}, [(0.0, [1]), (0.0, [1])]) == [1.5, 2.5]


# --- refusals ---


@pytest.mark.parametrize("discipline", ["texts", "requests", "batching"])
def test_more_waiting_requests_than_the_queue_holds_are_refused_with_503(discipline: str) -> None:
    server = {"discipline": discipline, "slots": 1, "seconds_per_text": 1.0, "queue_limit": 2}
    assert statuses(server, at_once(5)) == [200, 200, 200, 503, 503]


@pytest.mark.parametrize("discipline", ["texts", "requests", "batching"])
@pytest.mark.parametrize("status", [503, 429])
def test_more_texts_inside_than_there_is_room_for_are_refused_with_the_status_of_a_full_server(
    discipline: str, status: int
) -> None:
    server = {"discipline": discipline, "slots": 1, "seconds_per_text": 1.0, "most_inside": 5, "full_status": status}
    found = statuses(server, [(0.0, [1, 1]), (0.0, [1, 1]), (0.0, [1, 1]), (0.0, [1]), (10.0, [1, 1, 1, 1, 1, 1])])
    assert found == [200, 200, status, 200, status]


def test_a_rate_may_be_refused_with_503_as_well() -> None:
    server = {"slots": 100, "requests_per_second": 5, "rate_status": 503}
    assert statuses(server, at_once(8)).count(503) == 3


@pytest.mark.parametrize(
    ("limit", "tokens", "accepted"),
    [("requests_per_second", [10, 10], 5), ("texts_per_second", [10, 10], 2), ("tokens_per_second", [1, 1], 2)],
)
def test_a_bucket_of_a_second_refuses_what_exceeds_it(limit: str, tokens: list[int], accepted: int) -> None:
    server = {"slots": 100, limit: 5}
    assert statuses(server, at_once(8, tokens)).count(200) == accepted
    later = [*at_once(8, tokens), *[(2.0, tokens)] * 8]
    assert statuses(server, later).count(200) == 2 * accepted


def test_a_bucket_holds_its_burst() -> None:
    assert statuses({"slots": 100, "requests_per_second": 5, "burst_seconds": 3}, at_once(20)).count(429) == 5


def test_a_window_gives_at_its_begin_what_its_rate_brings_in_it_and_nothing_before_the_next_one() -> None:
    server = {"slots": 100, "requests_per_second": 0.5, "window_seconds": 10}
    asked = [(at, [1]) for at in (1.0, 2.0, *[8.0] * 4, 9.9, *[10.0] * 6, 19.9)]
    assert statuses(server, asked) == [200, 200, 200, 200, 200, 429, 429, 200, 200, 200, 200, 200, 429, 429]


def test_a_window_tells_when_it_ends() -> None:
    server = {
        "slots": 9,
        "requests_per_second": 0.2,
        "window_seconds": 10,
        "retry_after": "milliseconds",
        "announce": True,
    }
    taken, still, refused, again = (
        each.headers for _, each in ask(server, [(at, [1]) for at in (1.0, 4.0, 7.0, 10.0)])
    )
    names = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
    assert [[headers[name] for name in names] for headers in (taken, still, refused, again)] == [
        ["2", "1", "8.980s"],
        ["2", "0", "5.980s"],
        ["2", "0", "3.000s"],
        ["2", "1", "9.980s"],
    ]
    assert refused["retry-after-ms"] == "3000"


def test_retry_after_comes_in_the_given_form() -> None:
    forms: dict[str, dict[str, str]] = {}
    for form in ("none", "seconds", "date", "milliseconds"):
        server = {"slots": 9, "requests_per_second": 0.4, "burst_seconds": 2.5, "retry_after": form}
        forms[form] = ask(server, at_once(2))[1][1].headers
    assert forms == {
        "none": {},
        "seconds": {"Retry-After": "3"},
        "date": {"Retry-After": "date:3"},
        "milliseconds": {"retry-after-ms": "2500"},
    }


def test_announced_limits_come_with_every_answer() -> None:
    server = {"requests_per_second": 2, "tokens_per_second": 100, "burst_seconds": 5, "announce": True}
    headers = ask(server, [(0.0, [30])])[0][1].headers
    assert headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "0.500s",
        "x-ratelimit-limit-tokens": "500",
        "x-ratelimit-remaining-tokens": "470",
        "x-ratelimit-reset-tokens": "0.300s",
    }


def test_too_many_texts_are_413_and_a_text_that_is_too_long_is_400() -> None:
    server = {"most_texts": 2, "context_tokens": 100}
    assert statuses(server, [(0.0, [1, 1, 1]), (0.0, [1, 101]), (0.0, [100, 100])]) == [413, 400, 200]


# --- faults ---


@pytest.mark.parametrize(("field", "status"), [("share_500", 500), ("share_503", 503), ("share_reset", 0)])
def test_a_share_of_the_requests_fails(field: str, status: int) -> None:
    found = statuses({"slots": 9, field: 0.1}, [(float(number), [1]) for number in range(2000)], seed=5)
    assert set(found) == {200, status}
    assert found.count(status) / 2000 == pytest.approx(0.1, abs=0.02)


def test_a_stalled_request_hangs_and_holds_nobody_else_up() -> None:
    server = {"slots": 1, "seconds_per_text": 0.01, "share_stall": 0.1, "stall_seconds": 8.0}
    ends = ask(server, [(float(number), [1]) for number in range(500)])
    took = [round(at - number, 6) for number, (at, _) in enumerate(ends)]
    assert set(took) == {0.01, 8.0}
    assert took.count(8.0) / 500 == pytest.approx(0.1, abs=0.04)


def test_the_first_request_waits_for_the_model_and_the_others_wait_with_it() -> None:
    server = {"slots": 2, "seconds_per_text": 1.0, "cold_start_seconds": 15.0}
    assert times(server, [(0.0, [1]), (5.0, [1]), (20.0, [1])]) == [16.0, 16.0, 21.0]


def test_while_it_is_down_connections_are_refused() -> None:
    server = {"slots": 4, "changes": [[1, {"down": True}], [2, {"down": False}]]}
    assert statuses(server, [(0.5, [1]), (1.5, [1]), (2.5, [1])]) == [200, 0, 200]


@pytest.mark.parametrize("discipline", ["texts", "requests", "batching"])
def test_going_down_breaks_off_what_is_inside_and_leaves_it_idle(discipline: str) -> None:
    server = {"discipline": discipline, "slots": 1, "seconds_per_text": 3.0, "step_seconds": 0.0}
    server["changes"] = [[1, {"down": True}], [2, {"down": False}]]
    ends = ask(server, [(0.0, [1]), (0.5, [1]), (2.5, [1])])
    assert [(at, finished.status) for at, finished in ends] == [(1.0, 0), (1.0, 0), (5.5, 200)]


def test_a_change_while_it_works_gives_a_batching_engine_no_second_one() -> None:
    server = {
        "discipline": "batching",
        "step_seconds": 1.0,
        "seconds_per_text": 0.0,
        "changes": [[0.5, {"jitter": 0.0}]],
    }
    assert times(server, [(0.0, [1]), (0.2, [1]), (0.7, [1])]) == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("discipline", ["texts", "requests", "batching"])
def test_while_it_is_frozen_nothing_new_is_worked_on(discipline: str) -> None:
    server = {"discipline": discipline, "slots": 1, "seconds_per_text": 0.1}
    server["changes"] = [[1, {"frozen": True}], [5, {"frozen": False}]]
    assert times(server, [(0.5, [1]), (1.5, [1])]) == [0.6, 5.1]


@pytest.mark.parametrize("discipline", ["texts", "requests", "batching"])
def test_what_is_worked_on_when_it_freezes_ends_and_what_waits_does_so_until_the_thaw(discipline: str) -> None:
    server = {"discipline": discipline, "slots": 1, "seconds_per_text": 1.0, "step_tokens": 1}
    server["changes"] = [[1.5, {"frozen": True}], [2.2, {"jitter": 0.0}], [10, {"frozen": False}]]
    assert times(server, [*at_once(4, [1]), (3.0, [1])]) == [1.0, 2.0, 11.0, 12.0, 13.0]


def test_the_texts_of_a_request_that_have_not_begun_when_it_freezes_wait() -> None:
    server = {"slots": 2, "seconds_per_text": 1.0}
    server["changes"] = [[1.5, {"frozen": True}], [1.6, {"jitter": 0.0}], [1.8, {"frozen": False}]]
    assert times(server, [(0.0, [1, 1, 1, 1, 1]), (0.0, [1])]) == [3.0, 3.0]
    server["changes"] = [[1.5, {"frozen": True}], [10, {"frozen": False}]]
    assert times(server, [(0.0, [1, 1, 1, 1, 1]), (0.0, [1]), (9.0, [])]) == [11.0, 11.0, 10.0]


def test_a_frozen_server_fills_up() -> None:
    server = {"slots": 1, "seconds_per_text": 1.0, "queue_limit": 2, "changes": [[0.5, {"frozen": True}]]}
    server["changes"] += [[5, {"frozen": False}]]
    ends = ask(server, [*at_once(2), (1.0, [1]), (2.0, [1]), (6.5, [1])])
    assert [(at, finished.status) for at, finished in ends] == [
        (1.0, 200),
        (6.0, 200),
        (7.0, 200),
        (2.0, 503),
        (8.0, 200),
    ]


@pytest.mark.parametrize("discipline", ["texts", "requests"])
def test_going_down_while_frozen_breaks_off_what_waits(discipline: str) -> None:
    server = {"discipline": discipline, "seconds_per_text": 1.0}
    server["changes"] = [[0.5, {"frozen": True}], [2, {"down": True}], [3, {"down": False, "frozen": False}]]
    ends = ask(server, [*at_once(2), (1.0, [1]), (3.0, [1])])
    assert [(at, finished.status) for at, finished in ends] == [(1.0, 200), (2.0, 0), (2.0, 0), (4.0, 200)]


@pytest.mark.parametrize("discipline", ["texts", "requests"])
def test_a_change_of_slots_or_speed_is_for_what_arrives_after_it(discipline: str) -> None:
    for change in ({"slots": 4}, {"seconds_per_text": 0.5}):
        server = {"discipline": discipline, "seconds_per_text": 1.0, "changes": [[0.5, change]]}
        assert times(server, at_once(3)) == [1.0, 2.0, 3.0]


def test_slots_come_and_go() -> None:
    server = {"slots": 4, "seconds_per_text": 1.0, "changes": [[10, {"slots": 1}], [20, {"slots": 4}]]}
    assert times(server, [*at_once(2), (10.0, [1]), (10.0, [1]), (30.0, [1]), (30.0, [1])]) == [1, 1, 11, 12, 31, 31]


# --- the record itself ---


def test_the_limit_it_knows_of_itself_is_the_tightest_of_its_limits() -> None:
    spec = ServerSpec(slots=4, seconds_per_text=0.01, seconds_per_token=0.0001, seconds_per_request=0.0)
    assert spec.texts_per_second_limit(100) == pytest.approx(200)
    assert dataclasses.replace(spec, texts_per_second=150).texts_per_second_limit(100) == 150
    assert dataclasses.replace(spec, tokens_per_second=9000).texts_per_second_limit(100) == 90
    assert dataclasses.replace(spec, requests_per_second=2).texts_per_second_limit(100, batch=8) == 16
    assert dataclasses.replace(spec, down=True).texts_per_second_limit(100) == 0


def test_what_may_be_inside_bounds_what_is_worked_on_at_once() -> None:
    """Against the physics: a request with as many texts as may be inside, the next as soon as it is answered."""
    for spec in (
        ServerSpec(slots=16, seconds_per_text=0.5, most_inside=4),
        ServerSpec(discipline="batching", step_seconds=0.5, step_tokens=1000, seconds_per_text=0.0, most_inside=4),
    ):
        physics = ServerPhysics(Course(spec=spec), random=Random(0))
        physics.arrive(0.0, 0, [10] * 4)
        answered = 0
        while (now := physics.next_event_at) <= 100.0:
            for finished in physics.advance(now):
                assert finished.status == 200
                answered += 1
                physics.arrive(now, answered, [10] * 4)
        assert spec.texts_per_second_limit(10) == pytest.approx(4 * answered / 100.0, rel=0.02)


def test_a_course_adds_up_its_phases() -> None:
    course = Course(spec=ServerSpec(slots=2, seconds_per_text=1.0), changes=((10.0, {"slots": 4}),))
    assert course.texts_limit(5.0, 15.0, 1.0) == pytest.approx(5 * 2 + 5 * 4)


def test_a_field_that_no_server_has_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="slotz"):
        course_from({"slotz": 1})
    with pytest.raises(ConfigurationError, match="speed"):
        course_from({"changes": [[1, {"speed": 2}]]})
    with pytest.raises(ConfigurationError, match="slot"):
        ServerSpec(slots=0)
