"""The pace, against buckets that refuse: no loop, no server, the clock is a number."""

import math

import pytest

from era_dagster.control.rate import Allowance, Pacer, Throttle, announced_allowances


class Refusing:
    """A bucket of texts (or of requests) that refuses at once; full at the start."""

    def __init__(self, rate: float, size: float, *, counts: str = "texts") -> None:
        self.rate, self.size, self.counts = rate, size, counts
        self.level, self.at = size, 0.0

    def takes(self, now: float, items: int) -> bool:
        need = items if self.counts == "texts" else 1
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < need:
            return False
        self.level -= need
        return True


def drive(
    pacer: Pacer, server: Refusing, *, seconds: float, batch: float = 8.0, growth: float = 1.0, start: float = 0.0
) -> tuple[int, int]:
    """Texts accepted and refusals, for a client that obeys pacer and throttle; requests last no time and may grow."""
    throttle, now, accepted, refusals = Throttle(), start, 0, 0
    while now < start + seconds:
        ready = max(pacer.ready_at(now), throttle.closed_until)
        if ready > now:
            now = ready
            continue
        items = int(max(1, min(batch, pacer.most_items, 128)))
        sent = pacer.sent(now, items=items, tokens=20.0 * items)
        if server.takes(now, items):
            accepted += items
            batch *= growth
            throttle.succeeded(sent_at=now)
        else:
            refusals += 1
            first = throttle.refused(now, sent_at=now, retry_after_seconds=None)
            pacer.refused(now, sent_at=now, sent=sent, items=items, first=first)
        now += 1e-3
    return accepted, refusals


@pytest.mark.parametrize("rate", [5.0, 40.0, 150.0, 900.0])
@pytest.mark.parametrize("burst", [1.0, 5.0])
def test_the_rate_of_a_server_that_keeps_it_secret_is_learnt(rate: float, burst: float) -> None:
    pacer = Pacer(None)
    server = Refusing(rate, max(8.0, burst * rate))
    drive(pacer, server, seconds=20.0)
    accepted, refusals = drive(pacer, server, seconds=60.0, start=20.0)
    assert 0.85 * rate * 60 <= accepted <= 1.02 * rate * 60 + server.size
    assert refusals <= 20


def test_a_server_that_counts_requests_does_not_hold_back_larger_ones() -> None:
    pacer = Pacer(None)
    server = Refusing(5.0, 5.0, counts="requests")
    drive(pacer, server, seconds=90.0, growth=1.02)
    assert pacer.most_items == math.inf
    accepted, refusals = drive(pacer, server, seconds=60.0, batch=128.0, start=90.0)
    assert accepted >= 0.85 * 5.0 * 128 * 60
    assert refusals <= 20


def test_a_limit_that_is_raised_fourfold_is_followed() -> None:
    pacer = Pacer(None)
    drive(pacer, Refusing(50.0, 50.0), seconds=30.0)
    accepted, _ = drive(pacer, Refusing(200.0, 200.0), seconds=60.0, start=30.0)
    assert accepted >= 0.5 * 200 * 60


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
        assert server.takes(now, 8)
        accepted += 1
        reset = (server.size - server.level) / server.rate
        said = Allowance(limit=40.0, remaining=math.floor(server.level), reset_seconds=reset)
        pacer.announced(now, sent, {"requests": said})
        now += 1e-3
    assert accepted >= 0.9 * 20.0 * 30


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


@pytest.mark.parametrize("reset", ["", "soon", "1x", "-3", "nan", "inf", "s"])
def test_headers_that_make_no_sense_are_no_allowance(reset: str) -> None:
    headers = {
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "59",
        "x-ratelimit-reset-tokens": reset,
    }
    assert announced_allowances(headers) == {}
