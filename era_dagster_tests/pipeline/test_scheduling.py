"""Which pending chapters get a run now."""

import pytest

from era_dagster.pipeline.scheduling import LONGEST_WAIT_SECONDS, due_at, plan_runs, why_they_wait
from era_dagster.storage.drops import KnownChapter


def known(key: str, *, attempts: int = 0, requested_at: float | None = None, priority: int | None = None):
    return KnownChapter(
        partition_key=key,
        chapter=1,
        source_path="a",
        content_hash=b"",
        gone=False,
        attempts=attempts,
        requested_at=requested_at,
        priority=priority,
    )


def plan(*pending: KnownChapter, in_flight: tuple[str, ...] = (), now: float = 1e9, size: int = 10, runs: int = 10):
    planned = plan_runs(pending, in_flight=in_flight, now=now, chapters_per_run=size, most_runs=runs)
    return [(run.priority, run.keys) for run in planned]


def test_chapters_are_cut_into_runs_in_key_order() -> None:
    assert plan(known("b/0001"), known("a/0002"), known("a/0001"), size=2) == [
        (0, ("a/0001", "a/0002")),
        (0, ("b/0001",)),
    ]


def test_a_higher_priority_gets_its_own_run_and_goes_first() -> None:
    assert plan(known("a/0001"), known("z/0001", priority=5), known("m/0001", priority=-1)) == [
        (5, ("z/0001",)),
        (0, ("a/0001",)),
        (-1, ("m/0001",)),
    ]


def test_a_chapter_in_flight_is_not_requested_again() -> None:
    assert plan(known("a/0001"), known("a/0002"), in_flight=("a/0001",)) == [(0, ("a/0002",))]


def test_no_more_runs_are_planned_than_allowed() -> None:
    assert plan(*(known(f"a/{index:04}") for index in range(9)), size=2, runs=2) == [
        (0, ("a/0000", "a/0001")),
        (0, ("a/0002", "a/0003")),
    ]


@pytest.mark.parametrize(("attempts", "minutes"), [(1, 1), (2, 5), (3, 25), (4, 125)])
def test_a_chapter_that_failed_waits_longer_each_time(attempts: int, minutes: int) -> None:
    chapter = known("a/0001", attempts=attempts, requested_at=1000.0)
    assert plan(chapter, now=1000.0 + 60 * minutes - 1) == []
    assert plan(chapter, now=1000.0 + 60 * minutes) == [(0, ("a/0001",))]


def test_no_chapter_waits_longer_than_a_day() -> None:
    assert due_at(known("a/0001", attempts=10_000, requested_at=5.0), 5.0) == 5.0 + LONGEST_WAIT_SECONDS


def test_a_request_from_a_time_that_the_clock_was_put_back_from_is_not_waited_for() -> None:
    """After a day in 2040 a chapter that had failed there would have got no run until then."""
    ahead = known("a/0001", attempts=1, requested_at=1e9 + 86_400.0)
    assert plan(ahead) == [(0, ("a/0001",))]
    assert plan(known("a/0001", attempts=1, requested_at=1e9 + 30.0)) == []


def test_changed_content_waits_for_nothing() -> None:
    assert due_at(known("a/0001", attempts=0, requested_at=1e9), 1e9) == 0.0


def test_nothing_pending_needs_no_run() -> None:
    assert plan() == []


def test_why_pending_chapters_get_no_run_is_said_in_one_sentence() -> None:
    """After a restart a tick said "0 new, 0 changed, 0 gone" for minutes while hundreds of chapters waited to be tried again."""
    pending = [known("a/0001"), *(known(f"a/000{n}", attempts=1, requested_at=1000.0) for n in (2, 3))]

    def words(*chapters: KnownChapter, everything: bool = False) -> str:
        return why_they_wait(chapters, in_flight={"a/0001"}, everything=everything, now=1015.0)

    assert words() == ""
    assert words(pending[0]) == "1 pending: 1 in runs that wait or go."
    assert words(*pending) == (
        "3 pending: 1 in runs that wait or go and 2 that a run did not finish, tried again in 45 s or later."
    )
    assert words(*pending, everything=True) == "3 pending: a run takes them all."
