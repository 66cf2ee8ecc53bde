"""The account of what is under way."""

from era_dagster.control.flight import Flight
from era_dagster.control.room import Inside


def test_a_request_knows_what_was_under_way_with_it() -> None:
    flight = Flight()
    numbers = [flight.sent(0.0, texts, 10.0 * texts) for texts in (4, 5, 6)]
    flight.ended(numbers[0])
    last = flight.ended(flight.sent(1.0, 7, 70.0))
    assert last is not None
    assert last.inside == Inside(3, 18)


def test_what_was_refused_never_was_inside_with_those_that_were_sent_after_it() -> None:
    flight = Flight()
    first, second, third = [flight.sent(0.0, texts, 10.0 * texts) for texts in (4, 5, 6)]
    assert flight.refused(0.1, second) is not None
    before, after = flight.ended(first), flight.ended(third)
    assert before is not None
    assert after is not None
    assert (before.inside, after.inside) == (Inside(1, 4), Inside(2, 10))
    assert (flight.texts, flight.tokens) == (0, 0.0)


def test_a_request_that_is_not_known_any_more_was_not_refused() -> None:
    flight = Flight()
    flight.sent(0.0, 4, 40.0)
    assert flight.refused(0.1, -1) is None
    assert flight.refused(0.1, 7) is None
    assert flight.texts == 4


def test_what_had_left_the_server_when_a_request_arrived_was_not_inside_with_it() -> None:
    flight = Flight()
    flight.refused(0.1, flight.sent(0.0, 3, 30.0))  # a round trip takes 0.1 s
    first, second, third = flight.sent(1.0, 4, 40.0), flight.sent(1.5, 5, 50.0), flight.sent(1.95, 6, 60.0)
    assert flight.answered(2.0, first) is not None
    before, after = flight.ended(second), flight.ended(third)
    assert before is not None
    assert after is not None
    assert before.inside == Inside(2, 9), "the first was still being worked on"
    assert after.inside == Inside(2, 11), "its answer was on the way already"


def test_what_was_sent_before_a_request_that_overtook_it_never_had_it_beside() -> None:
    flight = Flight()
    flight.refused(0.1, flight.sent(0.0, 3, 30.0))  # a round trip takes 0.1 s
    slow, quick = flight.sent(1.0, 4, 40.0), flight.sent(1.01, 5, 50.0)
    assert flight.answered(1.09, quick) is not None
    overtaken = flight.ended(slow)
    assert overtaken is not None
    assert overtaken.inside == Inside(1, 4)
