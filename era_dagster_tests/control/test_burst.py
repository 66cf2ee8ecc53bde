"""How much a bucket holds, as refusals soon after a pause tell; units are requests, the clock is a number."""

import math

from era_dagster.control.burst import Burst
from era_dagster.control.evidence import NOTHING, Sent

ONE = Sent(requests=1, items=8, tokens=160.0)


class Refusals:
    """A bucket that was known to bring `rate` requests a second and is empty at 0."""

    def __init__(self, rate: float = 10.0) -> None:
        self.burst, self.rate = Burst(), rate
        self.sent, self.emptied_at = NOTHING, 0.0

    def after(self, pause: float, *, accepted: int, every: float) -> float | None:
        """Requests go after a pause, one `every` so many seconds; one more than are accepted is refused."""
        now = self.emptied_at + pause
        for number in range(accepted + 1):
            self.burst.sent(now + number * every, self.sent, alone=number == 0)
            self.sent += ONE
        last = now + accepted * every
        before, emptied_at, self.emptied_at = self.sent - ONE, self.emptied_at, last
        return self.burst.refused(
            last, before, emptied_at=emptied_at, accepted=accepted, units=1.0, rate=self.rate, counted="requests"
        )


def test_a_bucket_that_gives_less_after_a_pause_than_came_in_holds_little_and_its_rate_is_as_before() -> None:
    refusals = Refusals()
    assert refusals.after(0.5, accepted=2, every=0.001) == 10.0
    assert 1.9 < refusals.burst.holds <= 2.0


def test_a_bucket_that_gives_after_a_pause_what_came_in_may_hold_much() -> None:
    refusals = Refusals()
    assert refusals.after(0.5, accepted=5, every=0.001) is None
    assert refusals.burst.holds == math.inf


def test_of_a_bucket_that_holds_little_the_pace_that_was_refused_is_the_rate() -> None:
    refusals = Refusals()
    refusals.after(0.5, accepted=1, every=0.001)
    rate = refusals.after(0.5, accepted=40, every=0.05)
    assert rate is not None
    assert 19.0 < rate <= 20.0


def test_one_that_refuses_soon_again_though_no_more_was_sent_has_another_rate() -> None:
    refusals = Refusals()
    refusals.after(0.5, accepted=1, every=0.001)
    assert refusals.after(0.5, accepted=2, every=0.1) is None
    assert refusals.burst.holds == math.inf


def test_requests_that_were_sent_before_the_pause_tell_nothing_of_it() -> None:
    refusals = Refusals()
    refusals.burst.sent(0.5, NOTHING, alone=True)
    assert (
        refusals.burst.refused(0.2, NOTHING, emptied_at=0.0, accepted=0.0, units=1.0, rate=10.0, counted="requests")
        is None
    )
    assert refusals.burst.holds == math.inf


def test_a_request_that_was_refused_right_after_the_pause_begins_another_pause() -> None:
    refusals = Refusals()
    refusals.burst.sent(0.5, NOTHING, alone=True)
    assert refusals.after(1.5, accepted=2, every=0.001) == 10.0
    assert 1.9 < refusals.burst.holds <= 2.0
