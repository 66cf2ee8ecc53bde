"""When a probe comes again: what it cost decides."""

import math

import pytest

from era_dagster.control.probes import LONGEST_REST_SECONDS, Probe, ProbeSchedule, gain_wanted


def due_after(schedule: ProbeSchedule, probe: Probe, now: float, *, few: bool = False) -> float:
    """How long until `probe` is the next one, asked every tenth of a second; others that come first are kept away."""
    at = now
    while at < now + 100.0:
        found = schedule.next(at, held=2, few=few)
        if found == probe:
            return at - now
        if found is not None:
            schedule.undone(at, found)
        at += 0.1
    raise AssertionError(f"{probe} never came again")


def undone(
    schedule: ProbeSchedule,
    probe: Probe,
    *,
    gain: float,
    seconds: float = 1.0,
    late: bool = False,
    few: bool = False,
) -> float:
    schedule.started(10.0, probe)
    schedule.undone(10.0 + seconds, probe, gain=gain, late=late)
    return due_after(schedule, probe, 10.0 + seconds, few=few)


def test_a_probe_that_cost_nothing_comes_again_soon_and_a_dear_one_late() -> None:
    cheap = undone(ProbeSchedule(), "wider", gain=0.0)
    dear = undone(ProbeSchedule(), "wider", gain=-0.2)
    assert cheap < 3.0
    assert 38.0 < dear < 42.0, "two seconds lost a fifth: that is one percent of forty"
    assert undone(ProbeSchedule(), "up", gain=0.0, late=True) > 40.0
    assert undone(ProbeSchedule(), "narrower", gain=-5.0) == pytest.approx(LONGEST_REST_SECONDS, abs=0.2)


@pytest.mark.parametrize("probe", ["up", "wider"])
def test_where_few_texts_are_under_way_more_of_them_are_tried_again_soon_however_dear_it_seemed(probe: Probe) -> None:
    assert undone(ProbeSchedule(), probe, gain=-0.2, late=True) > 50.0
    assert undone(ProbeSchedule(), probe, gain=-0.2, late=True, few=True) == pytest.approx(5.0, abs=0.2)
    assert undone(ProbeSchedule(), "narrower", gain=-0.2, late=True, few=True) > 50.0, "that is no more"


def test_a_probe_that_was_kept_is_tried_again_at_once() -> None:
    schedule = ProbeSchedule()
    schedule.started(10.0, "down")
    schedule.kept(11.0, "down", gain=0.0, step=-0.26)
    assert schedule.next(11.0, held=1) == "down"
    assert schedule.kept_in_a_row == 1
    schedule.started(11.0, "down")
    schedule.undone(12.0, "down")
    assert schedule.kept_in_a_row == 0
    assert schedule.next(12.0, held=1) is None, "two epochs on target are asked for"


def test_a_serial_verdict_is_checked_before_anything_else() -> None:
    schedule = ProbeSchedule()
    schedule.begin(5.0, check_width=True)
    assert schedule.urgent
    assert schedule.next(5.0, held=1) == "wider"


@pytest.mark.parametrize(("latency", "wanted"), [(0.1, -0.05 * 0.26), (0.3, 0.15 * 0.26), (0.6, 0.75 * 0.26)])
def test_latency_has_its_price(latency: float, wanted: float) -> None:
    found = gain_wanted("up", step=0.26, latency=latency, before=0.1, lowest=0.165, highest=0.44, concurrency=4)
    assert found == pytest.approx(wanted)


def test_where_a_way_up_did_not_pay_the_other_one_takes_its_turn() -> None:
    schedule = ProbeSchedule()
    assert not schedule.other_way
    for other_way in (True, False, True):
        schedule.undone(10.0, "up")
        assert schedule.other_way == other_way
    schedule.kept(11.0, "down", gain=0.0, step=-0.26)
    assert schedule.other_way
    schedule.kept(12.0, "up", gain=0.2, step=0.26)
    assert not schedule.other_way


def test_more_that_only_cost_nothing_is_followed_by_no_larger_step() -> None:
    schedule = ProbeSchedule()
    for gain, in_a_row in ((0.2, 1), (0.05, 2), (0.03, 0), (0.05, 1)):
        schedule.kept(10.0, "up", gain=gain, step=0.26)
        assert schedule.kept_in_a_row == in_a_row


@pytest.mark.parametrize(("probe", "gain", "in_a_row"), [("wider", 0.2, 0), ("wider", 0.25, 1), ("narrower", 0.0, 1)])
def test_more_requests_that_gained_little_are_not_doubled_again_at_once_where_the_server_changes(
    probe: Probe, gain: float, in_a_row: int
) -> None:
    schedule = ProbeSchedule()
    schedule.kept(10.0, probe, gain=gain, step=math.log(2.0) if probe == "wider" else 0.0)
    assert schedule.kept_in_a_row == 1
    schedule.strayed()
    assert schedule.kept_in_a_row == in_a_row
