"""Which requests are stuck, and how many may be."""

from dataclasses import dataclass

from era_dagster.control.stuck import Stuck


@dataclass
class Sent:
    """A request under way."""

    sent_at: float


def found_of(slow_in: int, count: int) -> int:
    """How many of `count` requests, four at a time, are found to be stuck where one of `slow_in` never comes back."""
    stuck, under_way, found = Stuck(), dict[int, Sent](), 0
    for number in range(1, count + 1):
        now = 0.1 * number
        under_way[number] = Sent(now)
        if number % slow_in:
            del under_way[number]
            stuck.ended(number)
            stuck.answered(number, under_way)
        numbers, _ = stuck.find(now, under_way, concurrency=4, latency=0.1)
        found += len(numbers)
        for each in numbers:
            under_way.pop(each)
            stuck.ended(each)
    return found


def test_rare_requests_that_all_others_overtake_are_stuck() -> None:
    assert 8 <= found_of(100, 1000) <= 10


def test_what_happens_to_more_than_one_in_twenty_is_no_accident_of_its_own() -> None:
    assert found_of(5, 1000) <= 4 + 0.05 * 1000
