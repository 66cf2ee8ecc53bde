"""The course by itself: what it makes of one epoch, and of late requests, while a pace of requests holds the work back."""

import math

import pytest

from era_dagster.control.ceilings import Ceilings
from era_dagster.control.course import Course, Move, Situation
from era_dagster.control.drain import Drain
from era_dagster.control.measure import Measurement
from era_dagster.control.moves import Pace
from era_dagster.control.point import Point
from era_dagster.control.startup import Landing, Wave

ITEM_TOKENS = 60.0
CEILINGS = Ceilings()


def epoch(*, latency: float, throughput: float) -> Measurement:
    """Thirty answers in two seconds, all alike."""
    return Measurement(
        samples=30,
        flights=7.5,
        seconds=2.0,
        throughput=throughput,
        latency=latency,
        cv=0.0,
        p95_ratio=1.0,
    )


def at(point: Point, pace: Pace, now: float = 10.0) -> Situation:
    def bounded(asked: Point) -> Point:
        return asked.bounded(CEILINGS, most_requests=CEILINGS.concurrency, item_tokens=ITEM_TOKENS)

    return Situation(now=now, point=point, item_tokens=ITEM_TOKENS, pace=pace, bounded=bounded)


def begun(*, latency: float = 0.02) -> Course:
    """Four requests were found to be right, under a light load of this latency."""
    course = Course(CEILINGS)
    landing = Landing(concurrency=4, target_seconds=CEILINGS.lowest_latency, reason="a landing")
    course.begin(
        0.0, landing, fastest=latency, light=latency, light_wave=Wave(4, 1), wave=Point(4, 240.0), measured=None
    )
    return course


@pytest.mark.parametrize(
    ("point", "pace", "is_light"),
    [
        (Point(4, 240.0), None, True),
        (Point(2, 240.0), None, True),
        (Point(4, 300.0), None, False),
        (Point(5, 240.0), None, False),
        (Point(4, 240.0), "requests", False),
    ],
)
def test_what_a_light_load_takes_is_learnt_where_no_more_is_in_flight_than_in_the_wave_that_showed_it(
    point: Point, pace: Pace, is_light: bool
) -> None:
    course = begun(latency=0.16)
    before = course.target.lowest
    assert course.judge(at(point, pace), epoch(latency=0.2, throughput=point.work / 0.2)) is not None
    assert (course.target.lowest > before) is is_light


def test_while_more_than_the_lowest_latency_is_aimed_at_nothing_is_learnt_of_a_light_load() -> None:
    """Others may be why: to learn it then made the shares of two clients less equal."""
    course = begun(latency=0.16)
    course.target.others_took()
    before = course.target.lowest
    assert course.judge(at(Point(4, 240.0), None), epoch(latency=0.4, throughput=600.0)) is not None
    assert course.target.lowest == before


@pytest.mark.parametrize("work", [240.0, 20_000.0])
def test_where_requests_are_paced_the_point_is_what_is_under_way_at_the_latency_aimed_at(work: float) -> None:
    move = begun().judge(at(Point(4, work), "requests"), epoch(latency=0.1, throughput=9_600.0))
    assert move is not None
    assert move.point.work == pytest.approx(9_600.0 * 0.92 * 0.5 / 1.2, rel=0.15), "whatever it was before"


def test_where_requests_are_paced_nothing_else_is_tried() -> None:
    course, point = begun(), Point(4, 2_400.0)
    for _ in range(20):
        move = course.judge(at(point, "requests"), epoch(latency=0.15, throughput=16_000.0))
        assert move is not None and not course.is_probing
        point = move.point


def drain(seconds: float, *, throughput: float, before: Measurement, now: float = 10.0) -> Drain:
    """So many seconds, in which so much was worked off."""
    return Drain(now, since=now - seconds, tokens=throughput * seconds, before=before)


@pytest.mark.parametrize("pace", ["requests", "items"])
def test_where_a_pace_holds_the_work_back_late_requests_ask_for_no_less_of_it(pace: Pace) -> None:
    assert not begun().may_shrink(at(Point(4, 2_400.0), pace))
    assert begun().may_shrink(at(Point(4, 2_400.0), None))


def test_where_a_single_text_is_under_way_late_requests_cannot_be_had_any_smaller() -> None:
    for as_texts_become_longer_or_shorter in (1.0, 1.1, 0.9):
        assert not begun().may_shrink(at(Point(1, as_texts_become_longer_or_shorter * ITEM_TOKENS), None))
    assert begun().may_shrink(at(Point(2, 2 * ITEM_TOKENS), None))


def test_a_single_text_that_takes_too_long_is_no_reason_to_move_and_more_is_tried() -> None:
    course, seen, reasons = begun(), epoch(latency=0.7, throughput=86.0), list[str]()
    for second in range(10, 20):
        move = judged(course, at(Point(1, 1.05 * ITEM_TOKENS), None, now=float(second)), seen)
        reasons.append(move.reason)
        if course.is_probing:
            break
    assert reasons[-1] == "probe up"
    assert "towards the latency target" not in reasons


@pytest.mark.parametrize("slower", [2.0, 30.0])
def test_after_late_requests_as_much_goes_on_as_the_server_takes_now_however_much_slower_it_is(slower: float) -> None:
    course, seen = begun(), epoch(latency=0.15, throughput=16_000.0)
    cut = course.drained_to(at(Point(4, 2_400.0), None), drain(2.0, throughput=16_000.0 / slower, before=seen))
    assert cut.reason == "requests were late"
    assert cut.point.work == pytest.approx(CEILINGS.lowest_latency * 16_000.0 / slower, rel=0.01)


def test_late_requests_never_ask_for_more_work() -> None:
    course, seen = begun(), epoch(latency=0.15, throughput=16_000.0)
    back = course.drained_to(at(Point(4, 2_400.0), None), drain(0.1, throughput=24_000.0, before=seen))
    assert back.point == Point(4, 2_400.0)


def test_late_requests_end_at_once_the_probe_of_fewer_that_may_be_what_made_them_late() -> None:
    course, held = begun(), Point(4, 2_400.0)
    assert course.give_up_narrower(at(held, None)) is None, "nothing is being tried"
    fewer = tried(course, held, "narrower")
    back = course.give_up_narrower(at(fewer, None))
    assert back is not None and back.point == held
    assert not course.is_probing


@pytest.mark.parametrize("probe", ["up", "wider", "down"])
@pytest.mark.parametrize(("throughput", "work"), [(4_000.0, 4_000.0 * CEILINGS.lowest_latency), (100_000.0, 2_400.0)])
def test_where_late_requests_end_any_other_probe_as_much_goes_on_as_the_server_takes_and_no_more_than_before(
    throughput: float, work: float, probe: str
) -> None:
    course, held = begun(), Point(4, 2_400.0)
    more = tried(course, held, probe)
    assert course.give_up_narrower(at(more, None)) is None
    seen = epoch(latency=0.165, throughput=14_500.0)
    back = course.drained_to(at(more, None), drain(2.0, throughput=throughput, before=seen))
    assert back.reason == f"probe {probe} given up: requests were late"
    assert back.point == Point(4, pytest.approx(work))
    assert not course.is_probing


def test_a_cut_for_late_requests_is_held_against_their_latency_and_not_against_that_of_before() -> None:
    course, before = begun(), epoch(latency=0.15, throughput=16_000.0)
    cut = course.drained_to(at(Point(4, 2_400.0), None), drain(0.6, throughput=4_000.0, before=before))
    slower = course.judge(at(cut.point, None), epoch(latency=0.3, throughput=4_000.0))
    assert slower is not None
    assert slower.point.work < cut.point.work, "half as long as the late ones, so that the cut was not in vain"


def judged(course: Course, situation: Situation, measured: Measurement) -> Move:
    """What an epoch that is long enough says."""
    move = course.judge(situation, measured)
    assert move is not None
    return move


def test_after_a_cut_to_a_single_text_more_work_goes_into_as_many_requests_again_as_there_were() -> None:
    course = begun()
    seen = epoch(latency=0.15, throughput=1_600.0)
    cut = course.drained_to(at(Point(4, 240.0), None), drain(2.0, throughput=120.0, before=seen))
    assert cut.point == Point(1, 60.0)
    more = judged(course, at(cut.point, None), epoch(latency=0.05, throughput=1_200.0))
    assert more.point == Point(2, 120.0)
    more = judged(course, at(more.point, None), epoch(latency=0.05, throughput=2_400.0))
    assert more.point == Point(4, 240.0)
    more = judged(course, at(more.point, None), epoch(latency=0.05, throughput=4_800.0))
    assert more.point == Point(4, 480.0), "and no more than that"


def test_requests_that_were_refused_as_too_many_are_not_gone_back_to() -> None:
    course = begun()
    course.moved(most_requests=2)
    more = judged(course, at(Point(1, 60.0), None), epoch(latency=0.04, throughput=1_500.0))
    assert more.point == Point(2, 120.0)
    more = judged(course, at(more.point, None), epoch(latency=0.04, throughput=3_000.0))
    assert more.point == Point(2, 240.0)


def test_as_many_requests_again_as_before_that_gain_nothing_become_larger_requests() -> None:
    course = begun()
    more = judged(course, at(Point(1, 60.0), None), epoch(latency=0.08, throughput=750.0))
    assert more.point == Point(2, 120.0)
    larger = judged(course, at(more.point, None), epoch(latency=0.16, throughput=750.0))
    assert larger.point == Point(1, 120.0)
    more = judged(course, at(larger.point, None), epoch(latency=0.08, throughput=1_500.0))
    assert more.point == Point(1, 240.0), "the requests of before are forgotten"


def test_where_as_many_requests_as_before_did_harm_the_work_is_undone_too_if_larger_ones_do() -> None:
    course = begun()
    more = judged(course, at(Point(1, 60.0), None), epoch(latency=0.08, throughput=750.0))
    assert more.point == Point(2, 120.0)
    larger = judged(course, at(more.point, None), epoch(latency=0.16, throughput=250.0))
    assert larger.point == Point(1, 120.0)
    undone = judged(course, at(larger.point, None), epoch(latency=0.16, throughput=250.0))
    assert undone.point == Point(1, 60.0)


def test_where_a_second_text_would_be_late_as_many_requests_as_before_that_gain_nothing_are_given_up() -> None:
    course = begun(latency=0.29)
    course.target.others_took()
    more = judged(course, at(Point(2, 120.0), None), epoch(latency=0.27, throughput=450.0))
    assert more.point.concurrency == 3
    back = judged(course, at(more.point, None), epoch(latency=0.4, throughput=450.0))
    assert back.point == Point(2, 120.0)


def test_a_pace_says_nothing_about_as_many_requests_as_before() -> None:
    course = begun()
    more = judged(course, at(Point(2, 120.0), None), epoch(latency=0.08, throughput=1_500.0))
    assert more.point == Point(4, 240.0)
    held = judged(course, at(more.point, "items"), epoch(latency=0.08, throughput=1_500.0))
    assert held.point.concurrency == 4


def test_more_requests_that_did_no_harm_are_as_many_as_there_were() -> None:
    course = begun()
    course.judge(at(Point(6, 360.0), None), epoch(latency=CEILINGS.lowest_latency, throughput=2_200.0))
    more = judged(course, at(Point(4, 240.0), None), epoch(latency=0.08, throughput=3_000.0))
    assert more.point.concurrency == 6


def test_more_requests_than_ever_that_gain_nothing_are_no_return_to_what_was() -> None:
    course = begun(latency=0.29)
    course.target.others_took()
    more = judged(course, at(Point(4, 240.0), None), epoch(latency=0.27, throughput=900.0))
    assert more.point.concurrency == 6
    less = judged(course, at(more.point, None), epoch(latency=0.4, throughput=900.0))
    assert less.reason != "as many requests as before bought nothing"


def test_a_small_step_into_as_many_requests_as_before_that_did_harm_becomes_larger_requests() -> None:
    course = begun()
    more = judged(course, at(Point(2, 150.0), None), epoch(latency=0.13, throughput=1_150.0))
    assert more.point.concurrency == 3
    larger = judged(course, at(more.point, None), epoch(latency=0.2, throughput=800.0))
    assert larger.point == Point(2, more.point.work)


def test_a_pace_is_what_holds_the_work_back_and_not_the_number_of_requests() -> None:
    more = begun().judge(at(Point(1, 60.0), "items"), epoch(latency=0.05, throughput=1_200.0))
    assert more is not None and more.point.concurrency == 1 and more.point.work > 120.0


def test_on_target_single_texts_come_back_to_as_many_requests_as_there_were() -> None:
    course = begun()
    course.target.others_took()
    held = judged(course, at(Point(3, 250.0), None), epoch(latency=course.target.highest, throughput=650.0))
    assert held.then is not None and held.then.concurrency == 4


def tried(course: Course, point: Point, probe: str, now: float = 10.0) -> Point:
    """Held on target until this probe runs, what ran before it having cost a fifth of the throughput; what it tries."""
    throughput = point.work / CEILINGS.lowest_latency
    for _ in range(20):
        cost = 0.8 if course.is_probing else 1.0
        seen = epoch(latency=CEILINGS.lowest_latency, throughput=cost * throughput)
        move = judged(course, at(point, None, now), seen)
        point = move.point
        if move.reason == f"probe {probe}":
            return point
    raise AssertionError(f"no probe {probe} in twenty epochs")


def ended(
    course: Course, point: Point, *, gain: float, reference: Point, latency: float = CEILINGS.lowest_latency
) -> Move:
    """The probe at `point` has shown this gain in ln(throughput) over the `reference`."""
    throughput = reference.work / CEILINGS.lowest_latency * math.exp(gain)
    return judged(course, at(point, None), epoch(latency=latency, throughput=throughput))


def test_a_probe_of_more_goes_into_as_many_requests_as_there_were() -> None:
    course, left = begun(), Point(1, 120.0)
    more = tried(course, left, "up")
    assert more == Point(3, 180.0)
    assert ended(course, more, gain=0.0, reference=left).point == left


def test_beside_a_single_text_a_second_request_and_a_second_text_still_take_turns() -> None:
    course, wide, left = begun(), Point(4, 960.0), Point(1, 60.0)
    ended(course, tried(course, wide, "up"), gain=0.0, reference=wide)
    larger = tried(course, left, "up", now=70.0)
    assert larger == Point(1, 120.0), "the last way up did not pay"
    ended(course, larger, gain=0.0, reference=left)
    assert tried(course, left, "up", now=140.0) == Point(2, 120.0)


def test_fewer_requests_that_were_kept_are_as_many_as_there_were() -> None:
    course, wide = begun(), Point(8, 1_600.0)
    fewer = tried(course, wide, "narrower")
    assert fewer == Point(4, 1_600.0)
    assert ended(course, fewer, gain=0.1, reference=wide).reason == "probe narrower kept"
    point = Point(1, 60.0)
    for requests in (2, 4, 4):
        quick = epoch(latency=0.05, throughput=point.work / 0.05)
        point = judged(course, at(point, None), quick).point
        assert point.concurrency == requests


@pytest.mark.parametrize(("gain", "grows"), [(0.3, True), (0.1, False)])
def test_work_that_did_harm_may_do_none_in_fewer_requests_that_gained_much(gain: float, grows: bool) -> None:
    course, wide = begun(), Point(8, 1_600.0)
    less = tried(course, wide, "down")
    assert ended(course, less, gain=0.1, reference=wide).reason == "probe down kept"
    fewer = tried(course, less, "narrower")
    assert ended(course, fewer, gain=gain, reference=less).reason == "probe narrower kept"
    quick = judged(course, at(fewer, None), epoch(latency=0.05, throughput=fewer.work / 0.05))
    assert (quick.point.work > fewer.work) is grows


@pytest.mark.parametrize(("growth", "late"), [(1.0, 2.01), (1.3, 2.61)])
def test_in_a_probe_a_request_is_late_when_it_takes_longer_than_the_work_it_has_more_explains(
    growth: float, late: float
) -> None:
    course, held = begun(), Point(8, 1_600.0)
    point = tried(course, held, "wider" if growth == 1.0 else "up")
    assert point.work == pytest.approx(growth * held.work)
    assert course.is_late(late * CEILINGS.lowest_latency, point.work)
    assert not course.is_late((late - 0.02) * CEILINGS.lowest_latency, point.work)


def test_a_third_request_that_gained_more_than_half_of_what_it_may_waits_for_nothing() -> None:
    course, held = begun(), Point(2, 150.0)
    wider = tried(course, held, "wider")
    assert wider == Point(3, 180.0)
    assert ended(course, wider, gain=0.3, reference=held, latency=0.25).reason == "probe wider kept"
    assert course.target.lowest == pytest.approx(1.1 * 0.25)


def test_where_the_same_work_takes_longer_less_is_tried_at_once_until_it_was_seen_to_lose_something() -> None:
    course, point = begun(latency=0.1), Point(4, 2_400.0)
    judged(course, at(point, None), epoch(latency=0.2, throughput=12_000.0))
    less = judged(course, at(point, None), epoch(latency=0.27, throughput=8_900.0))
    assert less.reason == "probe down" and less.point.work < point.work, "perhaps no others came, and it is too much"
    undone = judged(course, at(less.point, None), epoch(latency=0.25, throughput=7_400.0))
    assert undone.point == point
    more = judged(course, at(point, None), epoch(latency=0.27, throughput=8_900.0))
    assert more.point.work > point.work, "less lost something: others came, and the highest latency is aimed at"


def test_where_less_was_seen_to_lose_something_it_is_not_tried_because_the_same_work_takes_longer() -> None:
    course, point = begun(latency=0.1), Point(4, 2_400.0)
    probe = tried(course, point, "down")
    ended(course, probe, gain=-0.2, reference=point)
    judged(course, at(point, None), epoch(latency=0.2, throughput=12_000.0))
    more = judged(course, at(point, None), epoch(latency=0.27, throughput=8_900.0))
    assert more.point.work > point.work and not course.is_probing
