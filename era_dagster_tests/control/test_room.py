"""How much a server holds, by what it took and what it refused."""

import math

import pytest

from era_dagster.control.room import REMEMBERED_SECONDS, TRIED_SECONDS, WATCHED_SECONDS, Inside, Largest, Room


def taken(room: Room, inside: Inside, *, at: float = 0.0) -> Room:
    room.took(at, inside, items=inside.texts // inside.requests)
    return room


def test_nothing_is_bounded_before_anything_was_refused() -> None:
    room = taken(Room(), Inside(8, 80))
    assert room.most("requests", 1.0) == room.most("texts", 1.0) == math.inf


def test_what_is_refused_beside_more_texts_but_fewer_requests_than_were_taken_is_too_many_texts() -> None:
    room = taken(Room(), Inside(16, 64))
    assert room.refused(1.0, Inside(8, 96), Inside(1, 12), limited=True) == {"texts"}
    assert room.most("requests", 1.0) == math.inf
    assert room.most("texts", 1.0) == int(0.7 * 64)
    assert room.most("texts", 1.0 + TRIED_SECONDS) == (64 + 96) // 2, "nothing else may be full: it is kept"


def test_what_is_refused_beside_more_requests_but_fewer_texts_than_were_taken_is_too_many_requests() -> None:
    room = taken(Room(), Inside(4, 256))
    assert room.refused(1.0, Inside(8, 64), Inside(1, 8), limited=True) == {"requests"}
    assert room.most("texts", 1.0) == math.inf
    assert room.most("requests", 1.0) == int(0.7 * 4)


def test_where_it_may_be_either_a_429_bounds_both_and_the_texts_only_until_it_is_seen() -> None:
    room = taken(Room(), Inside(8, 80))
    assert room.refused(1.0, Inside(9, 90), Inside(1, 10), limited=True) == {"requests", "texts"}
    after = 1.0 + TRIED_SECONDS
    assert room.most("texts", after - 0.1) == int(0.7 * 80)
    assert room.most("texts", after) == math.inf
    assert room.most("requests", after) == round(0.9 * 8)


def test_where_it_may_be_either_a_503_bounds_the_requests_first() -> None:
    room = taken(Room(), Inside(8, 80))
    assert room.refused(1.0, Inside(9, 90), Inside(1, 10), limited=False) == {"requests"}
    assert room.refused(2.0, Inside(6, 90), Inside(1, 15), limited=False) == {"texts"}, "fewer requests did not help"
    assert room.most("requests", 2.0) == math.inf


def test_once_it_is_known_which_it_is_the_other_is_not_bounded_again() -> None:
    room = taken(Room(), Inside(16, 64))
    room.refused(1.0, Inside(8, 96), Inside(1, 12), limited=True)
    taken(room, Inside(8, 60), at=30.0)
    assert room.refused(31.0, Inside(16, 66), Inside(1, 4), limited=True) == {"texts"}


def test_what_is_refused_with_429_beside_less_than_was_taken_is_not_for_room() -> None:
    room = taken(Room(), Inside(8, 80))
    room.refused(1.0, Inside(9, 90), Inside(1, 10), limited=True)
    assert room.refused(2.0, Inside(5, 50), Inside(1, 10), limited=True) == set()
    assert room.most("requests", 2.0) == room.most("texts", 2.0) == math.inf


def test_503_beside_less_than_was_taken_is_less_room_at_first_and_a_second_later_something_else() -> None:
    room = taken(Room(), Inside(16, 160))
    assert room.refused(1.0, Inside(5, 50), Inside(1, 10), limited=False) == {"requests", "texts"}
    assert room.most("requests", 1.0) == round(0.9 * int(0.6 * 16))
    for at in (1.2, 1.4, 1.6):
        room.took(at, Inside(4, 40), items=10)
    assert room.refused(1.0 + 0.9 * WATCHED_SECONDS, Inside(5, 50), Inside(1, 10), limited=False) is None
    assert room.refused(1.0 + 1.5 * WATCHED_SECONDS, Inside(5, 50), Inside(1, 10), limited=False) == set()
    assert room.items_per_second == pytest.approx(30 / 1.5)
    assert room.most("requests", 2.5) == math.inf


def test_a_server_that_was_seen_to_be_full_may_have_less_room_and_says_429_twice_before_it_is_a_rate() -> None:
    room = taken(Room(), Inside(16, 64))
    room.refused(1.0, Inside(8, 96), Inside(1, 12), limited=True)
    taken(room, Inside(16, 44), at=2.0 + TRIED_SECONDS)
    assert room.refused(20.0, Inside(11, 41), Inside(1, 4), limited=True) == {"texts"}
    assert room.most("texts", 20.0) == round(0.9 * 40), "a little less than was refused"
    assert room.refused(21.0, Inside(8, 30), Inside(1, 4), limited=True) == set()
    assert room.refused(22.0, Inside(8, 30), Inside(1, 4), limited=True) == set(), "what it seemed to be is forgotten"


def test_a_brief_burst_of_503_is_no_more_than_less_room_for_a_minute() -> None:
    room = taken(Room(), Inside(16, 160))
    room.refused(1.0, Inside(1, 10), Inside(1, 10), limited=False)
    assert room.most("requests", 1.0) == round(0.9 * int(0.6 * 16)), "all were refused, and it is not held to one"
    assert room.most("requests", 1.0 + REMEMBERED_SECONDS) == math.inf


def test_between_what_was_taken_and_what_was_refused_the_middle_is_tried_until_they_are_close() -> None:
    room = taken(Room(), Inside(8, 16))
    room.refused(1.0, Inside(4, 64), Inside(1, 16), limited=False)
    assert room.most("texts", 1.0) == 40
    taken(room, Inside(4, 40), at=2.0)
    assert room.most("texts", 2.0) == 52
    taken(room, Inside(4, 60), at=3.0)
    assert room.most("texts", 3.0) == 54, "nine tenths of what it holds"
    taken(room, Inside(4, 80), at=4.0)
    assert room.most("texts", 4.0) == round(0.9 * 63), "which is less than what it refused, whatever came later"


def test_a_request_that_is_refused_although_it_is_alone_is_halved() -> None:
    assert Room().refused(1.0, Inside(1, 64), Inside(1, 64), limited=False) == {"texts"}
    room = Room()
    room.refused(1.0, Inside(1, 64), Inside(1, 64), limited=False)
    assert 32 <= room.most("texts", 1.0) <= 48


def test_a_server_that_took_nothing_yet_gets_less_than_half_of_what_it_refused_with_429() -> None:
    room = Room()
    assert room.refused(1.0, Inside(1, 64), Inside(1, 64), limited=True) == {"texts"}
    assert room.most("texts", 1.0) == int(0.7 * 32)


def test_what_is_refused_beside_nearly_as_much_as_was_taken_may_be_for_room() -> None:
    room = taken(Room(), Inside(10, 100))
    assert room.refused(1.0, Inside(8, 80), Inside(1, 10), limited=True) == {"requests", "texts"}
    assert room.most("texts", 1.0) == int(0.7 * 79), "it holds less than what was refused"


@pytest.mark.parametrize("seconds", [0.0, 0.5 * WATCHED_SECONDS])
def test_429_of_a_server_that_was_seen_to_be_full_is_news_at_once_also_the_second_time(seconds: float) -> None:
    room = taken(Room(), Inside(16, 64))
    room.refused(1.0, Inside(8, 96), Inside(1, 12), limited=True)
    taken(room, Inside(16, 44), at=2.0 + TRIED_SECONDS)
    assert room.refused(20.0, Inside(11, 41), Inside(1, 4), limited=True) == {"texts"}
    assert room.refused(20.0 + seconds, Inside(8, 30), Inside(1, 4), limited=True) == set()


@pytest.mark.parametrize("again", [2.0 + REMEMBERED_SECONDS, 3.5])
def test_503_beside_less_than_was_taken_is_less_room_at_first_also_after_a_minute_and_after_it_was_something_else(
    again: float,
) -> None:
    room = taken(Room(), Inside(16, 160))
    room.refused(1.0, Inside(5, 50), Inside(1, 10), limited=False)
    if again < REMEMBERED_SECONDS:
        assert room.refused(2.5, Inside(5, 50), Inside(1, 10), limited=False) == set()
    assert room.refused(again, Inside(5, 50), Inside(1, 10), limited=False) == {"requests", "texts"}


@pytest.mark.parametrize("limited", [True, False])
def test_one_request_may_always_be_under_way_although_none_was_taken_yet(limited: bool) -> None:
    room = Room()
    assert "requests" in (room.refused(1.0, Inside(2, 2), Inside(1, 1), limited=limited) or set())
    assert room.most("requests", 1.0) == room.most("requests", 1.0 + TRIED_SECONDS) == 1


def test_a_single_text_is_never_too_much() -> None:
    assert Room().refused(1.0, Inside(1, 1), Inside(1, 1), limited=True) == set()


def test_that_it_is_full_is_tried_out_once_and_not_again_where_it_was_seen() -> None:
    room = taken(Room(), Inside(16, 64))
    room.refused(1.0, Inside(8, 96), Inside(1, 12), limited=True)
    taken(room, Inside(16, 44), at=2.0 + TRIED_SECONDS)
    room.refused(9.0, Inside(8, 70), Inside(1, 12), limited=True)
    assert room.most("texts", 9.0) > 0.7 * 64


@pytest.mark.parametrize(("later", "bounds"), [(20.0, set()), (3 * REMEMBERED_SECONDS, {"requests", "texts"})])
def test_what_was_taken_is_forgotten_after_a_while(later: float, bounds: set[str]) -> None:
    room = taken(Room(), Inside(16, 160))
    for step in range(7):
        taken(room, Inside(4, 40), at=later / 7 * (step + 1))
    assert room.refused(later, Inside(5, 50), Inside(1, 10), limited=True) == bounds


def test_between_a_size_that_was_taken_and_one_that_was_refused_the_middle_is_tried_until_they_meet() -> None:
    largest = Largest()
    assert largest.most(0.0) == math.inf
    largest.took(8)
    largest.refused(1.0, 16, certain=False)
    assert largest.most(1.0) == 12
    largest.refused(1.1, 12, certain=False)
    assert largest.most(1.1) == 10
    largest.took(10)
    assert largest.most(1.1) == 11
    largest.refused(1.2, 11, certain=False)
    assert largest.most(1.2) == 10


def test_a_size_that_was_refused_is_tried_again_after_twice_as_long_each_time() -> None:
    largest = Largest()
    largest.took(10)
    largest.refused(1.0, 11, certain=False)
    assert largest.most(1.0 + TRIED_SECONDS - 0.1) == 10
    again = 1.0 + TRIED_SECONDS
    assert largest.most(again) == 11
    largest.refused(again, 11, certain=False)
    assert largest.most(again + 2.0 * TRIED_SECONDS - 0.1) == 10
    assert largest.most(again + 2.0 * TRIED_SECONDS) == 11
    largest.took(11)
    assert largest.most(again + 2.0 * TRIED_SECONDS) == math.inf, "it was chance"


def test_a_size_that_was_taken_is_too_large_only_where_the_server_says_so() -> None:
    largest = Largest()
    largest.took(40)
    largest.refused(1.0, 30, certain=False)
    assert largest.most(1.0) == math.inf
    largest.refused(1.0, 30, certain=True)
    assert largest.most(1.0) == 22, "the texts are longer than they were"


@pytest.mark.parametrize(("later", "bounds"), [(0.75, set()), (2.0, {"requests", "texts"})])
def test_what_was_taken_before_a_long_rest_is_forgotten_when_something_is_taken_again(
    later: float, bounds: set[str]
) -> None:
    room, now = taken(Room(), Inside(16, 160)), later * REMEMBERED_SECONDS
    taken(room, Inside(4, 40), at=now)
    assert room.refused(now, Inside(5, 50), Inside(1, 10), limited=True) == bounds
