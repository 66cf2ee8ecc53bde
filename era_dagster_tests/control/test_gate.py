"""The controller of one endpoint, asked and told by hand: no server, no loop, the clock is a number."""

import math

import pytest

from era_dagster.control.admission import Decision, Ticket, WaitUntil
from era_dagster.control.batch import BatchSize, fitting
from era_dagster.control.ceilings import Ceilings
from era_dagster.control.gate import EndpointController
from era_dagster.control.outcome import Outcome
from era_dagster.control.retry import RetryPolicy
from era_dagster.control.room import REMEMBERED_SECONDS
from era_dagster.control.trace import TraceRecord

TOKEN_HEADERS = [f"x-ratelimit-{part}-tokens" for part in ("limit", "remaining", "reset")]


def controller(*, limit: int = 4, items: int = 8, rate: float | None = None) -> EndpointController:
    return EndpointController(Ceilings(concurrency=limit, items=items), patience_seconds=120.0, items_per_second=rate)


def send(gate: EndpointController, now: float, pending: int = 100) -> Ticket:
    decision = gate.admit(now, pending)
    assert isinstance(decision, Decision), decision
    return gate.started(now, items=decision.batch_items, tokens=decision.batch_items, probe=decision.probe)


def flights(gate: EndpointController, now: float, count: int, seconds: float = 0.05) -> float:
    """Full flights, each answered after `seconds`."""
    for _ in range(count):
        tickets = []
        while isinstance(gate.admit(now, 10_000), Decision):
            tickets.append(send(gate, now, pending=10_000))
        now += seconds
        for ticket in tickets:
            gate.completed(now, ticket, Outcome.SUCCESS)
    return now


def test_the_limit_bounds_the_requests_in_flight() -> None:
    gate = controller(limit=2)
    first = send(gate, 0.0)
    send(gate, 0.0)
    assert gate.admit(0.0, 100) == WaitUntil(math.inf)
    gate.completed(1.0, first, Outcome.SUCCESS)
    assert isinstance(gate.admit(1.0, 100), Decision)


def test_the_first_requests_are_single_texts_and_at_most_four() -> None:
    gate = controller(limit=256, items=128)
    assert [send(gate, 0.0, pending=1000).items for _ in range(4)] == [1, 1, 1, 1]
    assert gate.admit(0.0, 1000) == WaitUntil(math.inf)


def test_the_last_texts_are_shared_out_among_the_requests() -> None:
    gate = controller(limit=4, items=8)
    now = flights(gate, 0.0, 20)
    assert gate.batch_items == 8
    decision = gate.admit(now, 10)
    assert isinstance(decision, Decision)
    assert decision.batch_items == 3


def test_a_pace_spaces_the_texts() -> None:
    gate = controller(items=8, rate=4.0)
    assert send(gate, 0.0).items == 1
    assert gate.admit(0.0, 100) == WaitUntil(0.25)
    assert isinstance(gate.admit(0.25, 100), Decision)
    assert gate.rate == 4.0


def test_nothing_is_sent_before_the_time_the_server_asked_for_and_then_one_at_a_time() -> None:
    gate = controller(limit=3)
    one, two = send(gate, 0.0), send(gate, 0.0)
    gate.completed(1.0, one, Outcome.RATE_LIMITED, retry_after_seconds=7.0)
    gate.completed(1.5, two, Outcome.RATE_LIMITED)
    assert gate.admit(7.9, 100) == WaitUntil(8.0)
    alone = send(gate, 8.0)
    assert alone.alone
    assert gate.admit(8.0, 100) == WaitUntil(math.inf)
    gate.completed(9.0, alone, Outcome.SUCCESS)
    assert not send(gate, 9.0).alone
    assert not send(gate, 9.0).alone


def test_refusals_of_one_flight_lengthen_the_pause_once_and_of_the_next_flight_double_it() -> None:
    gate = controller(limit=3)
    for ticket in [send(gate, 0.0) for _ in range(3)]:
        gate.completed(1.0, ticket, Outcome.RATE_LIMITED)
    assert gate.admit(1.0, 100) == WaitUntil(1.5)
    gate.completed(2.0, send(gate, 1.5), Outcome.RATE_LIMITED)
    assert gate.admit(2.0, 100) == WaitUntil(3.0)


@pytest.mark.parametrize(
    ("outcome", "growth"), [(Outcome.FAILED, 1.3), (Outcome.OVERLOADED, 1.5), (Outcome.TIMED_OUT, 1.5)]
)
def test_five_failures_in_a_row_leave_only_probes_at_growing_intervals(outcome: Outcome, growth: float) -> None:
    gate = controller(limit=5)
    for ticket in [send(gate, 0.0) for _ in range(4)]:
        gate.completed(1.0, ticket, Outcome.FAILED)
    gate.completed(1.0, send(gate, 1.0), Outcome.FAILED)
    assert gate.mode == "down"
    waits, now = [], 1.0
    for _ in range(18):
        decision = gate.admit(now, 100)
        assert isinstance(decision, WaitUntil)
        waits.append(decision.at - now)
        now = decision.at
        probe = send(gate, now)
        assert probe.probe
        assert gate.admit(now, 100) == WaitUntil(math.inf)
        gate.completed(now, probe, outcome)
    assert waits[:4] == pytest.approx([0.25 * growth**number for number in range(4)])
    assert waits[-1] == 15.0


def test_one_failed_probe_of_a_server_that_is_not_down_does_not_make_it_so() -> None:
    gate = controller()
    ticket = gate.started(0.0, items=1, tokens=1, probe=True)
    gate.completed(0.1, ticket, Outcome.FAILED)
    assert gate.mode != "down"


def test_a_time_out_stops_new_requests_at_once() -> None:
    gate = controller()
    gate.completed(60.0, send(gate, 0.0), Outcome.TIMED_OUT)
    assert gate.mode == "down"


def test_texts_that_are_refused_show_that_the_server_lives() -> None:
    gate = controller()
    for _ in range(9):
        gate.completed(1.0, send(gate, 1.0), Outcome.FAILED)
        if gate.mode == "down":
            break
        gate.completed(1.0, send(gate, 1.0), Outcome.TEXTS)
    assert gate.mode == "start"
    assert gate.given_up_at == math.inf


def test_patience_counts_from_the_first_request_that_failed_and_ends_with_a_success() -> None:
    gate = controller()
    early, late = send(gate, 10.0), send(gate, 11.0)
    gate.completed(12.0, early, Outcome.FAILED)
    assert gate.given_up_at == 130.0
    gate.completed(13.0, late, Outcome.SUCCESS)
    assert gate.given_up_at == math.inf


def test_patience_does_not_count_from_before_others_were_answered() -> None:
    gate = controller()
    swallowed, other = send(gate, 0.0), send(gate, 0.0)
    gate.completed(170.0, other, Outcome.SUCCESS)
    gate.completed(180.0, swallowed, Outcome.TIMED_OUT)
    assert gate.given_up_at == 170.0 + 120.0


def test_texts_of_our_own_that_are_answered_do_not_hold_a_server_that_takes_no_other_for_longer_than_twice() -> None:
    gate, now = controller(), 0.0
    while now < gate.given_up_at:
        ticket = send(gate, now)
        gate.completed(now + 0.5, ticket, Outcome.SUCCESS if ticket.probe else Outcome.FAILED)
        decision = gate.admit(now + 0.5, 100)
        now = decision.at if isinstance(decision, WaitUntil) else now + 0.5
    assert 240.0 <= now <= 241.0
    gate.completed(now, send(gate, now), Outcome.SUCCESS)
    gate.completed(now, send(gate, now), Outcome.SUCCESS)
    assert gate.given_up_at == math.inf


@pytest.mark.parametrize(("reset", "given_up"), [("24h0m0s", True), ("15m", False)])
def test_an_announced_limit_that_gives_nothing_for_longer_than_the_patience_gives_the_endpoint_up(
    reset: str, given_up: bool
) -> None:
    gate = controller()
    said = {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": reset,
    }
    gate.completed(1.0, send(gate, 0.0), Outcome.SUCCESS, headers=said)
    assert (gate.given_up_at == -math.inf) == given_up
    gate.woken(8_600.0)
    assert gate.given_up_at == math.inf, "by then it gives again"


def test_a_pause_longer_than_the_patience_gives_the_endpoint_up_at_once() -> None:
    gate = controller()
    gate.completed(1.0, send(gate, 0.0), Outcome.RATE_LIMITED, retry_after_seconds=3600.0)
    assert gate.given_up_at == -math.inf


def test_what_a_probe_counts_does_not_change_what_is_thought_of_other_texts() -> None:
    rates: list[float | None] = []
    for counted in (None, 11):
        gate, headers = controller(), dict(zip(TOKEN_HEADERS, ("1000", "900", "10s"), strict=True))
        gate.completed(0.1, gate.started(0.0, items=1, tokens=1, probe=True), Outcome.SUCCESS, tokens=counted)
        gate.completed(0.2, send(gate, 0.1), Outcome.SUCCESS, headers=headers)
        send(gate, 0.2)
        rates.append(gate.rate)
    assert rates[0] is not None
    assert rates[0] == rates[1]


def test_time_nobody_tried_is_not_held_against_the_endpoint() -> None:
    gate = controller()
    gate.completed(1.0, send(gate, 0.0), Outcome.FAILED)
    gate.woken(900.0)
    assert gate.given_up_at == 1020.0


def test_a_cancelled_request_frees_its_place() -> None:
    gate = controller(limit=1)
    gate.abandoned(send(gate, 0.0))
    assert isinstance(gate.admit(0.0, 1), Decision)


def test_giving_a_place_back_after_the_end_of_its_request_frees_no_second_one() -> None:
    gate = controller(limit=2)
    ended, other = send(gate, 0.0), send(gate, 0.0)
    gate.completed(0.1, ended, Outcome.SUCCESS)
    gate.abandoned(ended)
    gate.abandoned(other)
    assert gate.in_flight == 0


def test_a_request_that_two_flights_have_overtaken_is_late_once_and_frees_its_place() -> None:
    gate = controller(limit=4)
    now = flights(gate, 0.0, 6)
    stuck = send(gate, now)
    later = flights(gate, now, 3)
    assert gate.late(later)[0] == [], "young yet"
    later = flights(gate, later, 20)
    assert gate.late(later)[0] == [stuck]
    assert gate.late(later)[0] == []
    others = [send(gate, later) for _ in range(gate.concurrency)]
    assert len(others) == gate.concurrency, "it no longer counts as in flight"
    gate.completed(later + 8.0, stuck, Outcome.TIMED_OUT)
    assert gate.mode != "down", "one stuck request does not make a server a dead one"


def test_a_server_that_answers_in_order_has_no_late_requests_however_slow_it_gets() -> None:
    gate = controller(limit=4)
    now = flights(gate, 0.0, 6)
    tickets = [send(gate, now) for _ in range(gate.concurrency)]
    for ticket in tickets:
        now += 20.0
        assert gate.late(now)[0] == []
        gate.completed(now, ticket, Outcome.SUCCESS)


def test_five_percent_of_failures_do_not_lower_the_limit() -> None:
    steady, failing = controller(limit=64, items=32), controller(limit=64, items=32)
    flights(steady, 0.0, 300)
    now, number = 0.0, 0
    for _ in range(300):
        tickets = []
        while isinstance(failing.admit(now, 10_000), Decision):
            tickets.append(send(failing, now, pending=10_000))
        now += 0.05
        for ticket in tickets:
            number += 1
            failing.completed(now, ticket, Outcome.FAILED if number % 20 == 0 else Outcome.SUCCESS)
    work = [gate.concurrency * gate.batch_items for gate in (steady, failing)]
    assert work[1] >= 0.8 * work[0]


def test_a_quarter_of_503_cuts_the_requests_once_a_flight_and_makes_them_larger() -> None:
    gate = controller(limit=64, items=32)
    now = flights(gate, 0.0, 40)
    before, items = gate.concurrency, gate.batch_items
    tickets = [send(gate, now, pending=10_000) for _ in range(before)]
    for ticket in tickets:
        gate.completed(now + 0.001, ticket, Outcome.OVERLOADED)
    assert 0.5 * before <= gate.concurrency <= 0.75 * before
    assert gate.batch_items >= items


def test_the_place_of_a_request_that_got_503_at_once_is_not_free_before_an_answer_would_have_come() -> None:
    gate = controller(limit=8)
    now = flights(gate, 0.0, 40)
    tickets = [send(gate, now, pending=10_000) for _ in range(8)]
    gate.completed(now + 0.001, tickets[0], Outcome.OVERLOADED)
    again = gate.admit(now + 0.001, 10_000)
    assert isinstance(again, WaitUntil)
    assert again.at == pytest.approx(now + 0.051, rel=0.01), "else it would be asked a thousand times a second"
    assert isinstance(gate.admit(again.at, 10_000), Decision)


def test_one_request_may_go_although_every_place_was_refused_a_moment_ago() -> None:
    gate = controller(limit=8)
    now = flights(gate, 0.0, 40)
    for ticket in [send(gate, now, pending=10_000) for _ in range(8)]:
        gate.completed(now + 0.001, ticket, Outcome.OVERLOADED)
    send(gate, now + 0.002)
    assert isinstance(gate.admit(now + 0.002, 100), WaitUntil)


def test_where_there_is_less_room_than_the_next_request_would_take_one_of_so_much_goes_alone() -> None:
    gate = controller(limit=4, items=128)
    now = flights(gate, 0.0, 1)
    ticket = send(gate, now)
    assert ticket.items == 4
    gate.completed(now, ticket, Outcome.RATE_LIMITED)
    assert send(gate, now + 0.5).items == int(0.7 * 3)


def test_the_first_wave_comes_again_when_nothing_else_is_under_way() -> None:
    gate = controller(limit=256, items=128)
    first, *others = [send(gate, 0.0) for _ in range(4)]
    assert gate.admit(0.0, 100) == WaitUntil(math.inf), "four are as many as may be"
    gate.completed(0.1, first, Outcome.SUCCESS)
    late = send(gate, 0.1)
    assert isinstance(gate.admit(0.1, 100), WaitUntil)
    for ticket in others:
        gate.completed(0.3, ticket, Outcome.SUCCESS)
    assert gate.admit(0.3, 100) == WaitUntil(math.inf)
    gate.completed(0.4, late, Outcome.SUCCESS)
    assert isinstance(gate.admit(0.4, 100), Decision)


def test_no_more_texts_are_under_way_than_the_server_was_seen_to_take_while_requests_become_more() -> None:
    gate = controller(limit=64, items=32)
    now = flights(gate, 0.0, 40)
    under_way = [send(gate, now, pending=10_000) for _ in range(gate.concurrency)]
    gate.completed(now, under_way.pop(), Outcome.RATE_LIMITED)
    for ticket in under_way:
        gate.completed(now + 0.05, ticket, Outcome.SUCCESS)
    taken, sent, now = sum(ticket.items for ticket in under_way), [], now + 1.0
    gate.completed(now + 0.05, send(gate, now, pending=10_000), Outcome.SUCCESS)
    while isinstance(decision := gate.admit(now + 0.1, 10_000), Decision):
        sent.append(decision.batch_items)
        gate.started(now + 0.1, items=decision.batch_items, tokens=decision.batch_items)
    assert 0.5 * taken <= sum(sent) <= 0.7 * taken


def test_every_decision_is_a_record_with_its_reason() -> None:
    records: list[TraceRecord] = []
    gate = EndpointController(Ceilings(), patience_seconds=120.0, trace=records.append)
    now = flights(gate, 0.0, 30)
    gate.completed(now + 1.0, send(gate, now), Outcome.RATE_LIMITED, retry_after_seconds=3.0)
    assert [record.at for record in records] == sorted(record.at for record in records)
    assert all(record.reason for record in records)
    assert {"start", "hold"} <= {record.mode for record in records}
    assert records[-1].mode == "throttled"
    assert "3.00 s" in records[-1].reason
    gate.completed(now + 5.0, send(gate, now + 4.5), Outcome.SUCCESS)
    assert records[-1].reason == "it takes requests again"
    gate.completed(now + 6.0, send(gate, now + 5.5), Outcome.TIMED_OUT)
    assert records[-1].mode == "down"
    gate.completed(now + 8.0, send(gate, now + 7.0), Outcome.FAILED)
    assert records[-1].reason == "still nothing answers"


def test_a_request_is_filled_up_to_its_tokens_but_never_left_empty() -> None:
    assert fitting([900, 50], BatchSize(items=8, tokens=100)) == 1
    assert fitting([40, 40, 40], BatchSize(items=8, tokens=100)) == 2
    assert fitting([1, 1, 1], BatchSize(items=2, tokens=100)) == 2
    assert fitting([], BatchSize(items=2, tokens=100)) == 0


def test_delays_grow_to_their_ceiling_and_attempts_or_time_end_the_retries() -> None:
    policy = RetryPolicy(attempts=3, budget_seconds=100.0)
    assert [policy.delay_seconds(k, 1.0) for k in (1, 2, 3, 8, 1000)] == [0.25, 0.5, 1.0, 20.0, 20.0]
    assert policy.delay_seconds(5, 0.0) == 0.0
    assert not policy.is_exhausted(failures=2, seconds=99.0)
    assert policy.is_exhausted(failures=3, seconds=0.0)
    assert policy.is_exhausted(failures=0, seconds=100.0)
    assert [policy.is_exhausted(failures=n, seconds=s, busy=True) for n, s in ((3, 99.0), (2, 100.0), (3, 100.0))] == [
        False,
        False,
        True,
    ]


def test_a_server_that_stood_still_once_gets_no_less_and_one_that_stays_slow_does() -> None:
    gate = controller(limit=4, items=8)
    now = flights(gate, 0.0, 60)
    before = (gate.concurrency, gate.batch_items)
    now = flights(gate, now, 1, seconds=4.0)
    now = flights(gate, now, 20)
    assert (gate.concurrency, gate.batch_items) == before
    now = flights(gate, now, 4, seconds=4.0)
    assert gate.concurrency * gate.batch_items < before[0] * before[1]


@pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.FAILED])
def test_where_requests_are_late_nothing_is_sent_until_little_is_under_way_whatever_becomes_of_it(
    outcome: Outcome,
) -> None:
    gate = controller(limit=4, items=8)
    now = flights(gate, 0.0, 60)
    first, *others = [send(gate, now, pending=10_000) for _ in range(4)]
    gate.completed(now + 0.35, first, Outcome.SUCCESS)
    assert isinstance(gate.admit(now + 0.35, 10_000), WaitUntil), "three are under way, and four may be"
    for ticket in others:
        gate.completed(now + 0.8, ticket, outcome)
    assert isinstance(gate.admit(now + 0.8, 10_000), Decision)


def test_while_late_requests_come_back_silence_is_as_long_as_they_take_and_not_as_requests_took_before() -> None:
    gate = controller(limit=4, items=8)
    now = flights(gate, 0.0, 60)
    first, *_ = [send(gate, now, pending=10_000) for _ in range(4)]
    gate.completed(now + 0.35, first, Outcome.SUCCESS)
    assert gate.admit(now + 1.0, 10_000) == WaitUntil(pytest.approx(now + 0.35 + 8 * 0.35))
    assert isinstance(gate.admit(now + 0.36 + 8 * 0.35, 10_000), Decision), "all of them may be stuck"


@pytest.mark.parametrize("probe", ["probe down", "probe up"])
def test_a_server_that_slowed_down_during_a_probe_gets_less_than_before(probe: str) -> None:
    records: list[TraceRecord] = []
    gate = EndpointController(Ceilings(), patience_seconds=120.0, trace=records.append)
    now, seconds = 0.0, 0.1
    for _ in range(500):
        now = flights(gate, now, 1, seconds=seconds)
        seconds = 0.002 * gate.concurrency * gate.batch_items
        if records and records[-1].reason == probe:
            break
    assert records[-1].reason == probe
    before = records[-2].concurrency * records[-2].batch_items
    flights(gate, now, 3, seconds=2.0)
    assert f"{probe} given up: requests were late" in [each.reason for each in records]
    assert gate.concurrency * gate.batch_items < 0.5 * before, "what was sent since is late as well"


def send_full(gate: EndpointController, now: float, decision: Decision) -> Ticket:
    """As many texts of ten tokens as the decision allows."""
    items = min(decision.batch_items, max(1, decision.batch_tokens // 10))
    return gate.started(now, items=items, tokens=10 * items)


def counting_requests(rate: float) -> tuple[EndpointController, float]:
    """A controller after forty seconds with a server that takes `rate` requests a second, and a hundredth for each text."""
    gate = EndpointController(Ceilings(), patience_seconds=120.0)
    now, level, at = 0.0, rate, 0.0
    under_way: list[tuple[float, int, Ticket, Outcome]] = []
    while now < 40.0:
        decision = gate.admit(now, 10_000)
        if isinstance(decision, Decision):
            ticket = send_full(gate, now, decision)
            level, at = min(rate, level + rate * (now - at)), now
            outcome = Outcome.SUCCESS if level >= 1.0 else Outcome.RATE_LIMITED
            level -= outcome is Outcome.SUCCESS
            seconds = 0.01 * ticket.items if outcome is Outcome.SUCCESS else 0.001
            under_way = sorted([*under_way, (now + seconds, ticket.number, ticket, outcome)], key=lambda each: each[:2])
            continue
        ends = under_way[0][0] if under_way else math.inf
        now = min(ends, decision.at)
        if now == ends:
            _, _, ticket, outcome = under_way.pop(0)
            gate.completed(now, ticket, outcome)
    for _, _, ticket, _ in under_way:
        gate.abandoned(ticket)
    return gate, now


def test_where_requests_are_counted_each_carries_what_the_latency_target_allows_also_the_last() -> None:
    gate, now = counting_requests(2.0)
    assert gate.mode == "paced"
    assert 45 <= gate.batch_items <= 50
    while not isinstance(decision := gate.admit(now, 50), Decision):
        now = decision.at
    assert send_full(gate, now, decision).items == gate.batch_items


def test_a_pace_of_requests_gets_the_places_it_needs_unless_the_server_turned_requests_away_a_moment_ago() -> None:
    gate, now = counting_requests(16.0)
    before = gate.concurrency
    assert before >= 16
    for _ in range(20):
        decision = gate.admit(now, 10_000)
        if isinstance(decision, Decision):
            gate.completed(now + 0.01, send_full(gate, now, decision), Outcome.OVERLOADED)
            now += 0.02
        else:
            now = decision.at
    assert gate.concurrency < before / 2
    gate.admit(now + REMEMBERED_SECONDS, 10_000)
    assert gate.concurrency >= before


def filled() -> tuple[EndpointController, float, list[Ticket], float]:
    """A gate at a pace of requests from which as many went as may; when they went, and when it has to be asked again."""
    gate, now = counting_requests(8.0)
    sent: list[Ticket] = []
    while isinstance(decision := gate.admit(now, 10_000), Decision) or decision.at < now + 1.0:
        if isinstance(decision, Decision):
            sent.append(send_full(gate, now, decision))
        else:
            now = decision.at
    return gate, now, sent, decision.at


def test_at_a_pace_of_requests_no_more_is_sent_than_the_server_works_off_in_the_latency_target() -> None:
    gate, now, sent, _ = filled()
    assert 4 <= len(sent) < gate.concurrency, "it is not their number that holds them back"
    under_way = 0.01 * sum(ticket.items for ticket in sent[:-1]) / 4.0
    assert under_way <= 0.5, "four at a time keep up with eight a second of half a second each"
    gate.completed(now + 0.4, sent[0], Outcome.SUCCESS)
    assert isinstance(gate.admit(now + 0.6, 10_000), Decision)


def test_where_all_that_a_pace_of_requests_let_through_is_stuck_one_request_more_may_go() -> None:
    gate, _, _, asked_again_at = filled()
    assert math.isfinite(asked_again_at)
    decision = gate.admit(asked_again_at, 10_000)
    assert isinstance(decision, Decision)


@pytest.mark.parametrize(
    ("outcome", "is_rate"), [(Outcome.OVERLOADED, True), (Outcome.FAILED, False)], ids=["503", "another failure"]
)
def test_after_probes_that_were_answered_and_texts_that_were_not_a_503_asks_for_a_pause(
    outcome: Outcome, is_rate: bool
) -> None:
    """Nothing came through of one request in two seconds: the probes used it up."""
    gate, now = controller(), 0.0
    for _ in range(4):
        for _ in range(5):
            gate.completed(now, send(gate, now), outcome)
        now += 0.25
        probe = send(gate, now)
        assert probe.probe
        gate.completed(now, probe, Outcome.SUCCESS)
    gate.completed(now, send(gate, now), Outcome.OVERLOADED)
    assert (gate.admit(now, 100) == WaitUntil(now + 0.5)) == is_rate
