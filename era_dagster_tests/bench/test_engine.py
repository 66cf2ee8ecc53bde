"""The engine itself is honest: it neither loses nor doubles texts, its clock does not go back, and it fills a server."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from era_dagster.control.admission import Decision, WaitUntil
from era_dagster.control.ceilings import Ceilings
from era_dagster.control.gate import EndpointController
from era_dagster.control.outcome import Outcome
from era_dagster.simulation.spec import Course, course_from
from era_dagster_tests.bench.baselines import Baseline, Fixed
from era_dagster_tests.bench.engine import Controller, Texts, run

ENDLESS = Texts()
TROUBLE = course_from(
    {
        "slots": 4,
        "share_500": 0.05,
        "share_503": 0.05,
        "share_reset": 0.05,
        "share_stall": 0.01,
        "most_texts": 16,
        "texts_per_second": 150,
        "retry_after": "seconds",
        "queue_limit": 4,
        "changes": [[5, {"down": True}], [7, {"down": False}]],
    }
)


def ours() -> EndpointController:
    return EndpointController(Ceilings(), patience_seconds=600.0)


def fixed(concurrency: int, batch: int, **details: Any) -> Baseline:
    return Baseline(Fixed(concurrency), batch=batch, **details)


class Recorder(Baseline):
    """Notes when it is called."""

    def __init__(self) -> None:
        super().__init__(Fixed(4))
        self.times: list[float] = []

    def admit(self, now: float, pending: int) -> Decision | WaitUntil:
        self.times.append(now)
        return super().admit(now, pending)

    def completed(self, now: float, ticket: Any, outcome: Outcome, **details: Any) -> None:
        self.times.append(now)
        super().completed(now, ticket, outcome, **details)


@pytest.mark.parametrize("controller", [fixed(8, 32), ours()], ids=["fixed", "ours"])
def test_every_text_is_delivered_lost_or_still_on_its_way_and_only_once(controller: Controller) -> None:
    result = run([controller], TROUBLE, ENDLESS, seconds=30.0, seed=3)[0]
    assert result.taken == result.texts + result.lost + result.unsettled
    assert result.lost == 0 and result.texts > 1000
    assert sum(result.by_second) == result.texts


@pytest.mark.parametrize("controller", [fixed(8, 32), ours()], ids=["fixed", "ours"])
def test_a_job_ends_with_its_last_text_whatever_goes_wrong(controller: Controller) -> None:
    result = run([controller], TROUBLE, Texts(count=1234), seconds=600.0, seed=4)[0]
    assert (result.texts, result.lost, result.unsettled) == (1234, 0, 0)
    assert result.seconds == result.ended_at < 600.0


def test_a_text_that_no_server_takes_is_lost_alone() -> None:
    course = course_from({"slots": 4, "context_tokens": 200})
    texts = Texts(mean_tokens=100, cv=0.6, count=500)
    result = run([fixed(4, 16)], course, texts, seconds=600.0, seed=1)[0]
    assert 0 < result.lost < 60
    assert result.texts == 500 - result.lost


def test_a_stuck_request_is_sent_again_and_counted_once() -> None:
    course = course_from({"slots": 4, "share_stall": 0.02, "jitter": 0.05})
    result = run([ours()], course, Texts(count=3000), seconds=600.0, seed=1)[0]
    assert result.sent_again > 0
    assert (result.texts, result.lost) == (3000, 0)


def test_the_clock_never_goes_back() -> None:
    recorder = Recorder()
    run([recorder], TROUBLE, ENDLESS, seconds=20.0, seed=2)
    assert recorder.times == sorted(recorder.times)
    assert recorder.times[-1] < 20.0


def test_the_same_seed_gives_the_same_run_and_another_one_a_different() -> None:
    runs = [run([ours()], TROUBLE, ENDLESS, seconds=10.0, seed=seed)[0] for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("slots", [1, 4, 16])
@pytest.mark.parametrize("discipline", ["texts", "requests"])
def test_a_fixed_client_with_enough_in_flight_reaches_the_limit_of_the_server(slots: int, discipline: str) -> None:
    course = course_from({"slots": slots, "discipline": discipline, "seconds_per_text": 0.02})
    result = run([fixed(2 * slots, 8)], course, ENDLESS, seconds=60.0, warm_up=5.0)[0]
    limit = course.texts_limit(5.0, 60.0, 100.0) / 55.0
    assert result.goodput == pytest.approx(limit, rel=0.02)


def test_one_request_at_a_time_gives_one_batch_per_round_trip() -> None:
    course = course_from(
        {"slots": 16, "discipline": "requests", "seconds_per_request": 0.1, "seconds_per_text": 0.0, "rtt_seconds": 0.1}
    )
    result = run([fixed(1, 5)], course, ENDLESS, seconds=60.0)[0]
    assert result.goodput == pytest.approx(5 / 0.2, rel=0.02)
    assert result.percentile(0.95) == pytest.approx(0.2)


def test_a_slow_sender_is_never_faster_than_its_texts_come() -> None:
    result = run([fixed(8, 8)], course_from({"slots": 16}), Texts(per_second=30.0), seconds=60.0)[0]
    assert result.goodput == pytest.approx(30.0, rel=0.01)


def test_a_client_that_starts_later_is_measured_from_its_start() -> None:
    course = course_from({"slots": 4, "seconds_per_text": 0.01})
    first, second = run([fixed(4, 4), fixed(4, 4)], course, ENDLESS, seconds=40.0, starts=[0.0, 20.0])
    assert second.seconds == 20.0
    assert not any(second.by_second[:20])
    assert second.goodput == pytest.approx(200.0, rel=0.03)
    assert first.goodput == pytest.approx(300.0, rel=0.03)


def test_a_pause_asked_for_is_kept() -> None:
    course = course_from({"slots": 16, "requests_per_second": 1.0, "retry_after": "seconds"})
    result = run([fixed(4, 4)], course, ENDLESS, seconds=30.0)[0]
    assert result.refusals <= 4 * 31
    assert result.goodput == pytest.approx(4.0, rel=0.1)


def test_a_pace_is_kept() -> None:
    result = run([fixed(8, 8, pace=("texts", 50.0))], course_from({"slots": 16}), ENDLESS, seconds=30.0)[0]
    assert result.goodput == pytest.approx(50.0, rel=0.02)


def test_a_dead_server_ends_the_run_in_time_with_nothing_lost() -> None:
    result = run([ours()], course_from({"down": True}), Texts(count=100), seconds=120.0)[0]
    assert (result.texts, result.lost, result.unsettled) == (0, 0, result.taken)
    assert result.percentile(0.95) == math.inf


def test_a_controller_that_waits_for_the_past_is_found_out() -> None:
    class Stuck(Baseline):
        def admit(self, now: float, pending: int) -> Decision | WaitUntil:
            return WaitUntil(now)

    with pytest.raises(AssertionError, match="past"):
        run([Stuck(Fixed(1))], Course(spec=TROUBLE.spec), ENDLESS, seconds=1.0)


def test_watching_happens_four_times_a_second() -> None:
    times: list[float] = []

    def watch(now: float, controllers: Sequence[Controller]) -> None:
        times.append(now)

    run([fixed(4, 4)], course_from({"slots": 4}), ENDLESS, seconds=10.0, watch=watch)
    assert 30 <= len(times) <= 41
