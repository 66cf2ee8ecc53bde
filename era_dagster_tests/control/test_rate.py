"""The pace, against buckets that refuse: no loop, no server, the clock is a number."""

import math
from collections.abc import Sequence
from random import Random

import pytest

from era_dagster.control.allowances import Allowance, announced_allowances
from era_dagster.control.evidence import Sent
from era_dagster.control.load import Load
from era_dagster.control.rate import SLOWEST_PER_SECOND, Pacer, Throttle


class Refusing:
    """A bucket of requests, items or tokens that refuses at once; full at the start."""

    def __init__(self, rate: float, size: float, *, counts: str = "items") -> None:
        self.rate, self.size, self.counts = rate, size, counts
        self.level, self.at = size, 0.0

    def takes(self, now: float, items: int, tokens: float) -> bool:
        need = {"requests": 1.0, "items": float(items), "tokens": tokens}[self.counts]
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < need:
            return False
        self.level -= need
        return True


def drive(
    pacer: Pacer,
    server: Refusing,
    *,
    seconds: float,
    batch: float = 8.0,
    growth: float = 1.0,
    start: float = 0.0,
    spread: float = 0.0,
) -> tuple[int, int]:
    """Texts accepted and refusals, for a client that obeys pacer and throttle; requests last no time and may grow.

    A request takes 20 tokens a text, times between 1 - `spread` and 1 + `spread`.
    """
    throttle, random, now, accepted, refusals = Throttle(), Random(1), start, 0, 0
    while now < start + seconds:
        ready = max(pacer.ready_at(now), throttle.closed_until)
        if ready > now:
            now = ready
            continue
        items = int(max(1, min(batch, pacer.most_items, 128)))
        tokens = 20.0 * items * random.uniform(1.0 - spread, 1.0 + spread)
        sent = pacer.sent(now, items=items, tokens=tokens, alone=throttle.half_open)
        if server.takes(now, items, tokens):
            accepted += items
            batch *= growth
            throttle.succeeded(sent_at=now)
        else:
            refusals += 1
            first = throttle.is_first(now)
            throttle.refused(now, sent_at=now, retry_after_seconds=None)
            pacer.refused(now, sent_at=now, sent=sent, items=items, tokens=20.0 * items, first=first)
        now += 1e-3
    return accepted, refusals


def accept(pacer: Pacer, now: float, *, items: int) -> None:
    pacer.sent(now, items=items, tokens=20.0 * items)
    pacer.accepted(now, items=items, tokens=20.0 * items)


def refuse(pacer: Pacer, now: float, *, items: int, tokens: float | None = None, full: bool = False) -> None:
    tokens = 20.0 * items if tokens is None else tokens
    sent = pacer.sent(now, items=items, tokens=tokens)
    pacer.refused(now, sent_at=now, sent=sent, items=items, tokens=tokens, first=True, full=full)


@pytest.mark.parametrize("rate", [5.0, 40.0, 150.0, 900.0])
@pytest.mark.parametrize("burst", [1.0, 5.0])
def test_the_rate_of_a_server_that_keeps_it_secret_is_learnt(rate: float, burst: float) -> None:
    pacer = Pacer(None)
    server = Refusing(rate, max(16.0, burst * rate))
    drive(pacer, server, seconds=20.0)
    accepted, refusals = drive(pacer, server, seconds=60.0, start=20.0)
    assert 0.93 * rate * 60 <= accepted <= 1.02 * rate * 60 + server.size
    assert refusals <= 20


def test_a_bucket_of_a_single_request_costs_no_more_than_three_tenths() -> None:
    pacer, server = Pacer(None), Refusing(5.0, 8.0)
    drive(pacer, server, seconds=20.0)
    accepted, refusals = drive(pacer, server, seconds=60.0, start=20.0)
    assert accepted >= 0.7 * 5.0 * 60
    assert refusals <= 20


@pytest.mark.parametrize("rate", [10.0, 20.0, 50.0])
def test_the_rate_of_a_server_that_allows_no_burst_is_learnt(rate: float) -> None:
    pacer, server = Pacer(None), Refusing(rate, 1.0, counts="requests")
    drive(pacer, server, seconds=40.0)
    accepted, refusals = drive(pacer, server, seconds=60.0, start=40.0)
    assert accepted >= 0.75 * 8 * rate * 60
    assert refusals <= 25


def test_a_server_that_counts_requests_does_not_hold_back_larger_ones() -> None:
    pacer = Pacer(None)
    server = Refusing(5.0, 5.0, counts="requests")
    drive(pacer, server, seconds=90.0, growth=1.02)
    assert pacer.most_items == math.inf
    accepted, refusals = drive(pacer, server, seconds=60.0, batch=128.0, start=90.0)
    assert accepted >= 0.93 * 5.0 * 128 * 60
    assert refusals <= 20


def test_a_server_that_counts_tokens_is_paced_by_its_texts() -> None:
    pacer = Pacer(None)
    server = Refusing(800.0, 1600.0, counts="tokens")
    drive(pacer, server, seconds=30.0, spread=0.9)
    accepted, refusals = drive(pacer, server, seconds=60.0, start=30.0, spread=0.9)
    assert accepted >= 0.93 * 40.0 * 60
    assert refusals <= 20


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
def test_a_limit_that_changes_is_followed(factor: float) -> None:
    pacer = Pacer(None)
    drive(pacer, Refusing(50.0, 50.0), seconds=30.0)
    rate = factor * 50.0
    accepted, refusals = drive(pacer, Refusing(rate, rate), seconds=60.0, start=30.0)
    assert accepted >= 0.85 * rate * 60
    assert refusals <= 25


def test_requests_that_were_made_smaller_while_nothing_was_accepted_double_with_what_is() -> None:
    pacer = Pacer(None)
    for number in range(4):
        refuse(pacer, 10.0 * number, items=16)
    assert pacer.most_items == 8
    accept(pacer, 50.0, items=8)
    assert pacer.most_items == 16
    accept(pacer, 51.0, items=16)
    accept(pacer, 52.0, items=1)
    assert pacer.most_items == 32


def test_a_size_that_was_seen_not_to_fit_is_not_tried_again_at_once() -> None:
    pacer = Pacer(None)
    accept(pacer, 0.0, items=20)
    for number in range(3):
        refuse(pacer, 1.0 + number, items=40)
    accept(pacer, 4.0, items=20)
    assert pacer.most_items == 20
    refuse(pacer, 4.1, items=20)
    assert pacer.rate is not None
    assert pacer.most_items == 20, "nor because a pace is learnt"
    accept(pacer, 20.0, items=20)
    assert pacer.most_items == 40


def test_of_sizes_that_did_not_fit_one_after_another_the_largest_is_not_tried_again_and_an_older_one_may_be() -> None:
    pacer = Pacer(None)
    for now, items in enumerate((40, 40, 40, 20)):
        refuse(pacer, float(now), items=items)
    accept(pacer, 4.0, items=10)
    assert pacer.most_items == 20
    accept(pacer, 5.0, items=20)
    assert pacer.most_items == 20
    for now, items in enumerate((20, 24, 24)):
        refuse(pacer, 6.0 + now, items=items)
    accept(pacer, 9.0, items=11)
    assert pacer.most_items == 22
    accept(pacer, 10.0, items=12)
    assert pacer.most_items == 22


@pytest.mark.parametrize(
    ("items", "tokens", "seconds", "most"),
    [(16, 320.0, 0.0, math.inf), (17, 320.0, 0.0, 8), (16, 330.0, 0.0, 8), (16, 320.0, 60.0, 8)],
)
def test_requests_of_a_size_that_was_accepted_a_moment_ago_do_not_become_smaller_where_a_window_is_used_up(
    items: int, tokens: float, seconds: float, most: float
) -> None:
    pacer = Pacer(None)
    for accepted in (16, 1):
        accept(pacer, 0.0, items=accepted)
    for number in range(3):
        refuse(pacer, 1.0 + number + seconds, items=items, tokens=tokens)
    assert pacer.most_items == most


def test_what_a_window_gave_is_taken_over_all_of_the_time_and_not_since_it_was_last_found_used_up() -> None:
    """A hundred requests a minute, at once; asked again and again meanwhile it refuses."""
    pacer = Pacer(None)
    for at in (3.0, 3.5, 4.5, 6.5, 10.5, 18.5, 34.5, 50.5):
        refuse(pacer, at, items=8)
    for _ in range(100):
        accept(pacer, 66.5, items=8)
    refuse(pacer, 69.5, items=8)
    assert pacer.rate is not None and pacer.rate / 8 == pytest.approx(100 / 66, rel=0.1)


def test_that_a_refusal_was_no_matter_of_room_may_be_told_by_the_next_one() -> None:
    pacer = Pacer(None)
    refuse(pacer, 1.0, items=4)
    for _ in range(9):
        accept(pacer, 2.0, items=4)
    refuse(pacer, 2.0, items=4, full=True)
    assert pacer.rate is None
    refuse(pacer, 2.5, items=4)
    assert pacer.rate is not None and pacer.rate / 4 == pytest.approx(
        9, rel=0.1
    )  # the pause that was in vain is no part


@pytest.mark.parametrize(("accepted", "seconds"), [(20, 4.0), (12, 4.0), (2, 3.5), (1, 3.5)])
def test_a_pause_in_vain_is_part_of_the_time_in_which_an_allowance_came_in_unless_another_one_had_come_in_by_then(
    accepted: int, seconds: float
) -> None:
    """A window is used up at its first refusal; of a slow bucket half a second in vain is to be expected."""
    pacer = Pacer(None)
    for start in (0.0, 4.0, 8.0):
        for number in range(accepted):
            accept(pacer, start + 2.0 * number / accepted, items=1)
        refuse(pacer, start + 2.0, items=1)
        refuse(pacer, start + 2.5, items=1)
        refuse(pacer, start + 3.5, items=1)
    assert pacer.rate == pytest.approx(max(accepted / seconds, SLOWEST_PER_SECOND), rel=0.04)


def test_what_may_have_been_refused_for_another_reason_teaches_no_rate_but_is_remembered_where_it_was_none() -> None:
    pacer = Pacer(None)
    for at, full in ((0.0, True), (1.0, True), (2.0, False)):
        for _ in range(9):
            pacer.sent(at, items=4, tokens=80.0)
        last = pacer.sent(at, items=4, tokens=80.0)
        pacer.refused(at, sent_at=at, sent=last, items=4, tokens=80.0, first=True, full=full)
        assert (pacer.rate is None) == full
    assert pacer.rate == pytest.approx(9 * 4, rel=0.15)
    pacer.forget()
    assert pacer.rate is None


@pytest.mark.parametrize(("barren", "tells"), [(0, True), (1, True), (2, False), (5, False)])
def test_a_pace_that_was_learnt_over_a_while_in_which_nothing_was_taken_does_not_tell_of_the_server(
    barren: int, tells: bool
) -> None:
    pacer, now = Pacer(None), 0.0

    def refused(*, accepted: int) -> bool:
        nonlocal now
        now += 1.0
        for _ in range(accepted):
            pacer.sent(now, items=4, tokens=80.0)
        last = pacer.sent(now, items=4, tokens=80.0)
        return pacer.refused(now, sent_at=now, sent=last, items=4, tokens=80.0, first=True)

    assert not refused(accepted=9), "what the first refusal was preceded by is no stretch"
    assert refused(accepted=9)
    assert not any(refused(accepted=0) for _ in range(barren))
    assert refused(accepted=9) is tells
    assert refused(accepted=9), "and the next one does"


def test_a_sender_with_little_to_send_does_not_raise_the_pace() -> None:
    pacer = Pacer(None)
    drive(pacer, Refusing(50.0, 50.0), seconds=30.0)
    now = 31.0
    before = pacer.rate
    for _ in range(600):
        now += 2.0
        assert pacer.ready_at(now) <= now
        pacer.sent(now, items=8, tokens=160.0)
    assert pacer.rate == pytest.approx(before, rel=0.01)


@pytest.mark.parametrize("rate", [5.0, 10.0, 20.0, 30.0])
def test_texts_that_were_taken_for_what_is_counted_are_given_up_again_where_requests_are(rate: float) -> None:
    pacer, server = Pacer(None), Refusing(50.0, 50.0)
    for number, batch in enumerate((4.0, 16.0, 4.0)):
        drive(pacer, server, seconds=10.0, start=10.0 * number, batch=batch)
    assert pacer.most_items < 8
    server = Refusing(rate, rate, counts="requests")
    drive(pacer, server, seconds=60.0, start=30.0, batch=64.0)
    accepted, _ = drive(pacer, server, seconds=30.0, start=90.0, batch=64.0)
    assert accepted >= 0.9 * rate * 64 * 30


def test_a_refusal_that_comes_late_was_not_accepted_before() -> None:
    rates: list[float | None] = []
    for late in (False, True):
        pacer = Pacer(None)
        sent = [pacer.sent(0.1 * number, items=4, tokens=80.0) for number in range(21)]

        def refuse(number: int, *, first: bool, of: Pacer = pacer, all_sent: Sequence[Sent] = sent) -> None:
            at = 0.1 * number
            of.refused(at + 0.05, sent_at=at, sent=all_sent[number], items=4, tokens=80.0, first=first)

        refuse(0, first=True)
        if late:
            refuse(10, first=True)
            refuse(9, first=False)
        else:
            refuse(9, first=True)
            refuse(10, first=False)
        refuse(20, first=True)
        rates.append(pacer.rate)
    assert rates[0] == pytest.approx(rates[1], rel=0.06)


def test_a_load_keeps_the_95th_percentile_at_the_target() -> None:
    load, random, late, count = Load(), Random(1), 0, 4000
    assert load.tokens is None
    load.answered(tokens=10.0, under_way=10.0, seconds=0.012, target_seconds=0.5)
    for number in range(count):
        tokens = load.tokens
        assert tokens is not None
        seconds = (0.01 + 1e-3 * tokens) * random.lognormvariate(0.0, 0.1)
        late += number >= 50 and seconds > 0.5
        load.answered(tokens=tokens, under_way=tokens, seconds=seconds, target_seconds=0.5)
    assert 0.01 * count <= late <= 0.06 * count


def test_a_load_follows_a_server_that_became_four_times_slower() -> None:
    load = Load()
    for cost in (1e-3, 4e-3):
        for _ in range(80):
            tokens = load.tokens or 10.0
            load.answered(tokens=tokens, under_way=tokens, seconds=cost * tokens, target_seconds=0.5)
        assert load.tokens == pytest.approx(0.5 / cost, rel=0.1)


@pytest.mark.parametrize("spread", [0.1, 0.3])
@pytest.mark.parametrize("fixed", [0.2, 0.4, 0.6])
def test_where_a_request_takes_long_whatever_is_in_it_it_carries_much(fixed: float, spread: float) -> None:
    load, random = Load(), Random(1)
    for _ in range(400):
        tokens = max(100.0, min(12_800.0, load.tokens or 100.0))
        seconds = (fixed + 2e-6 * tokens) * random.lognormvariate(0.0, spread)
        load.answered(tokens=tokens, under_way=tokens, seconds=seconds, target_seconds=0.5)
    assert load.tokens is not None and load.tokens > 3_000.0


def test_where_a_single_text_takes_the_target_no_more_is_carried_than_hardly_shows() -> None:
    load = Load()
    for _ in range(410):
        tokens = max(100.0, load.tokens or 100.0)
        load.answered(tokens=tokens, under_way=tokens, seconds=0.4 + 1e-3 * tokens, target_seconds=0.5)
        assert tokens < 500.0
    assert load.tokens is not None and 100.0 < load.tokens < 250.0


def test_a_single_stall_costs_a_load_hardly_anything_a_few_answers_later() -> None:
    load = Load()
    for seconds in [0.5] * 40 + [25.0] + [0.5] * 12:
        load.answered(tokens=1_000.0, under_way=1_000.0, seconds=seconds, target_seconds=0.5)
    assert load.tokens is not None and load.tokens >= 900.0


def test_a_load_never_carries_less_than_a_third_of_what_a_server_that_became_far_slower_works_off() -> None:
    load = Load()
    for cost in [1e-3] * 40 + [2e-2] * 40:
        tokens = load.tokens or 500.0
        assert tokens >= 0.5 / 2e-2 / 3.0
        load.answered(tokens=tokens, under_way=tokens, seconds=cost * tokens, target_seconds=0.5)


def test_what_may_be_under_way_is_what_a_server_works_off_in_the_target_however_much_waits_by_now() -> None:
    load = Load()
    assert load.most_under_way == math.inf
    for per_second in (4_000.0, 9_000.0):
        for under_way in (300.0, 2_000.0, 9_000.0, 600.0) * 10:
            load.answered(tokens=100.0, under_way=under_way, seconds=under_way / per_second, target_seconds=0.5)
        assert load.most_under_way == pytest.approx(0.5 * per_second, rel=0.01)


def test_a_decided_pace_is_never_exceeded() -> None:
    accepted, refusals = drive(Pacer(30.0), Refusing(1e9, 1e9), seconds=20.0)
    assert 30 * 20 - 30 <= accepted <= 30 * 20 + 30
    assert refusals == 0


def test_without_refusals_there_is_no_pace() -> None:
    pacer = Pacer(None)
    drive(pacer, Refusing(1e9, 1e9), seconds=1.0)
    assert pacer.rate is None
    assert pacer.most_items == math.inf


def test_the_server_s_own_account_is_followed_without_a_single_refusal() -> None:
    pacer, server, now, accepted = Pacer(None), Refusing(20.0, 40.0, counts="requests"), 0.0, 0
    while now < 30.0:
        ready = pacer.ready_at(now)
        if ready > now:
            now = ready
            continue
        sent = pacer.sent(now, items=8, tokens=160.0)
        assert server.takes(now, 8, 160.0)
        accepted += 1
        reset = (server.size - server.level) / server.rate
        said = Allowance(limit=40.0, remaining=math.floor(server.level), reset_seconds=reset)
        pacer.announced(now, sent, {"requests": said})
        now += 1e-3
    assert accepted >= 0.9 * 20.0 * 30


@pytest.mark.parametrize(("limit", "length"), [(5.0, 1.0), (60.0, 60.0)])
def test_a_window_that_is_announced_is_used_up_and_waited_for_without_a_single_refusal(
    limit: float, length: float
) -> None:
    pacer, now, ends_at, left, accepted = Pacer(None), 0.3 * length, length, limit, list[float]()
    while now < 10.0 * length:
        ready = pacer.ready_at(now)
        if ready > now:
            now = ready
            continue
        if now >= ends_at:
            ends_at, left = (now // length + 1.0) * length, limit
        assert left > 0
        left -= 1
        accepted.append(now)
        sent = pacer.sent(now, items=8, tokens=160.0)
        pacer.announced(now, sent, {"requests": Allowance(limit=limit, remaining=left, reset_seconds=ends_at - now)})
        now += 1e-3
    assert len(accepted) == 10 * limit
    assert 0.4 * limit <= sum(length <= at < 1.5 * length for at in accepted) <= 0.8 * limit, "and evenly"
    assert pacer.rate == pytest.approx(8.0 * limit / length, rel=0.02)


@pytest.mark.parametrize(("kind", "gap"), [("requests", 5.0), ("tokens", 0.0)])
def test_a_window_gives_as_much_again_after_its_end_though_no_answer_tells_so(kind: str, gap: float) -> None:
    """Its tokens may go at once; its requests are spread, because then each of them comes to carry more."""
    pacer = Pacer(None)
    for number, reset in enumerate((10.0, 9.0)):
        sent = pacer.sent(float(number), items=1, tokens=1.0)
        said = Allowance(limit=2.0, remaining=1.0 - number, reset_seconds=reset)
        pacer.announced(float(number), sent, {kind: said})
    for start in (10.0, 20.0):
        assert pacer.ready_at(start - 1.0) == start
        for at in (start, start + gap):
            assert pacer.ready_at(start) == pytest.approx(at)
            pacer.sent(at, items=1, tokens=1.0)


@pytest.mark.parametrize(
    ("resets", "requests", "most"),
    [((60.0, 59.0), None, 1000.0), ((60.0, 59.0), 3.0, 8000.0 / 3.0), ((0.1, 0.2), 3.0, 8000.0)],
    ids=["a window", "a window of few requests", "a bucket"],
)
def test_a_request_holds_no_more_tokens_than_are_announced_to_be_given_at_once(
    resets: tuple[float, float], requests: float | None, most: float
) -> None:
    pacer = Pacer(None)
    for number, reset in enumerate(resets):
        sent = pacer.sent(float(number), items=1, tokens=100.0)
        said = {"tokens": Allowance(limit=8000.0, remaining=7900.0 - 100.0 * number, reset_seconds=reset)}
        if requests is not None:
            said["requests"] = Allowance(limit=requests, remaining=requests - 1.0, reset_seconds=reset)
        pacer.announced(float(number), sent, said)
    assert pacer.most_tokens == pytest.approx(most)
    for _ in range(200):
        pacer.counted(estimated=100.0, counted=200.0)
    assert pacer.most_tokens == pytest.approx(most / 2.0), "the server counts twice as many"


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("12", 12.0), ("0.5", 0.5), ("1.5s", 1.5), ("20ms", 0.02), ("6m0s", 360.0), ("1h2m3s", 3723.0)],
)
def test_resets_are_read_in_every_form(reset: str, seconds: float) -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": reset,
    }
    assert announced_allowances(headers)["requests"].reset_seconds == pytest.approx(seconds)


def test_a_limit_of_no_kind_counts_requests_unless_there_is_one_that_says_so() -> None:
    plain = {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "59", "x-ratelimit-reset": "12"}
    assert announced_allowances(plain) == {"requests": Allowance(limit=60.0, remaining=59.0, reset_seconds=12.0)}
    kinds = {
        "x-ratelimit-limit-requests": "9",
        "x-ratelimit-remaining-requests": "8",
        "x-ratelimit-reset-requests": "1s",
    }
    assert announced_allowances(plain | kinds)["requests"].limit == 9.0


@pytest.mark.parametrize("name", ["ratelimit-{}", "x-ratelimit-{}"])
def test_of_several_limits_that_count_requests_that_counts_of_which_least_is_left(name: str) -> None:
    """A gateway allows ten thousand a day, the server behind it fifty a minute; or the other way round."""
    day = {"limit": "10000", "remaining": "9000", "reset": "86000"}
    minute = {"limit": "50", "remaining": "8", "reset": "12"}
    for one, other in ((day, minute), (minute, day)):
        headers = {f"x-ratelimit-{part}-requests": value for part, value in one.items()}
        headers |= {name.format(part): value for part, value in other.items()}
        assert announced_allowances(headers)["requests"].limit == 50.0


def test_a_date_that_no_calendar_holds_is_no_clock() -> None:
    headers = {"ratelimit-limit": "60", "ratelimit-remaining": "59", "ratelimit-reset": "1795953612"}
    headers["date"] = "Sun, 29 Nov 99999999999999999999 12:00:00 GMT"
    assert announced_allowances(headers) == {}


@pytest.mark.parametrize("reset", ["", "soon", "1x", "-3", "nan", "inf", "s", "1767225600", "2026-01-01T00:00:00Z"])
def test_headers_that_make_no_sense_are_no_allowance(reset: str) -> None:
    headers = {
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "59",
        "x-ratelimit-reset-tokens": reset,
    }
    assert announced_allowances(headers) == {}


DATE = {"date": "Sun, 29 Nov 2026 12:00:00 GMT"}
NOON = 1795953600


@pytest.mark.parametrize(
    "headers",
    [
        {"ratelimit-limit": "100", "ratelimit-remaining": "40", "ratelimit-reset": "12"},
        {"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "40", "ratelimit-reset": "12"},
        {
            "x-ratelimit-limit": '100, 100;w=60;name="ip", 5000;w=3600',
            "x-ratelimit-remaining": "40",
            "x-ratelimit-reset": "12",
        },
        {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "40", "x-ratelimit-reset": str(NOON + 12), **DATE},
        {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "40", "x-ratelimit-reset": f"{NOON + 12}000", **DATE},
        {"ratelimit": "limit=100, remaining=40, reset=12", "ratelimit-policy": "100;w=60"},
        {"ratelimit": '"default";r=40;t=12', "ratelimit-policy": '"default";q=100;w=60'},
        {
            "ratelimit": '"day"; r=900; t=3600, "minute"; r=40; t=12',
            "ratelimit-policy": '"minute"; q=100; w=60, "day"; q=1000; w=86400',
        },
    ],
    ids=[
        "IETF draft 6",
        "with its window",
        "Envoy",
        "express and flask",
        "Upstash",
        "draft 7",
        "draft 8",
        "two policies",
    ],
)
def test_limits_are_read_as_gateways_and_frameworks_tell_them(headers: dict[str, str]) -> None:
    said = {"requests": Allowance(limit=100.0, remaining=40.0, reset_seconds=12.0)}
    assert announced_allowances(headers) == said


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-limit": "9", "x-ratelimit-remaining": "4", "x-ratelimit-reset": str(NOON - 1), **DATE},
        {"x-ratelimit-limit": "9", "x-ratelimit-remaining": "4", "x-ratelimit-reset": str(NOON), "date": "yesterday"},
        {"ratelimit": '"default";r=40;t=12'},
        {"ratelimit": '"default";r=40;t=12', "ratelimit-policy": '"other";q=100;w=60'},
        {"ratelimit": "limit=100, remaining=40"},
        {"ratelimit": ',;=,;;"', "ratelimit-policy": ";;,,"},
    ],
)
def test_limits_of_which_a_part_is_missing_are_none(headers: dict[str, str]) -> None:
    assert announced_allowances(headers) == {}


def test_refusals_of_one_burst_may_come_back_in_any_order() -> None:
    for order in ((8, 5, 6, 7), (5, 6, 7, 8), (7, 8, 5, 6)):
        pacer = Pacer(None)
        sent = {number: pacer.sent(0.0, items=4, tokens=80.0) for number in range(1, 9)}
        for number in order:
            pacer.refused(0.01, sent_at=0.0, sent=sent[number], items=4, tokens=80.0, first=number == order[0])
        later = {number: pacer.sent(1.0, items=4, tokens=80.0) for number in range(9, 14)}
        pacer.refused(1.01, sent_at=1.0, sent=later[13], items=4, tokens=80.0, first=True)
        rate = pacer.rate
        assert rate is not None and 0.9 * 16 <= rate <= 1.25 * 16, (
            "four of four texts each were accepted in that second"
        )


def test_a_reset_that_is_rounded_down_to_nothing_does_not_wear_the_announced_rate_down() -> None:
    pacer = Pacer(None)
    rates: list[float | None] = []
    for second in range(300):
        sent = pacer.sent(float(second), items=1, tokens=20.0)
        pacer.announced(float(second), sent, {"requests": Allowance(limit=10.0, remaining=9.0, reset_seconds=0.0)})
        rates.append(pacer.rate)
    assert rates[-1] is not None and rates[-1] == pytest.approx(rates[0])


def test_a_server_that_refuses_again_after_the_pause_it_asked_for_is_left_alone_for_longer() -> None:
    throttle, now, pauses = Throttle(), 0.0, []
    for _ in range(8):
        throttle.refused(now, sent_at=now, retry_after_seconds=0.0)
        pauses.append(throttle.closed_until - now)
        now = throttle.closed_until
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0]
    assert throttle.succeeded(sent_at=now)
    throttle.refused(now, sent_at=now, retry_after_seconds=3.0)
    assert throttle.closed_until == now + 3.0


@pytest.mark.parametrize(("remaining", "until"), [(0.0, 8641.0), (1.0, -math.inf), (9.0, -math.inf)])
def test_until_when_an_announced_limit_gives_nothing_is_the_servers_word_alone(remaining: float, until: float) -> None:
    pacer = Pacer(None)
    first, *_ = [pacer.sent(0.0, items=1, tokens=20.0) for _ in range(8)]
    said = Allowance(limit=10.0, remaining=remaining, reset_seconds=8640.0 * (10.0 - remaining))
    pacer.announced(1.0, first, {"requests": said})
    assert pacer.announced_empty_until == pytest.approx(until)
    pacer.announced(2.0, first, {})
    assert pacer.announced_empty_until == pytest.approx(until), "an answer without headers says nothing"
    pacer.announced(3.0, first, {"requests": Allowance(limit=10.0, remaining=5.0, reset_seconds=43_200.0)})
    assert pacer.announced_empty_until == -math.inf
