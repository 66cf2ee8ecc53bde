"""Which pending chapters get a run now: not those in flight, not those that failed a moment ago, at most so many a run.

Pure; the sensor and the commands bring the facts.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from era_dagster.pipeline.watch import duration
from era_dagster.storage.drops import KnownChapter

# After the n-th run that did not finish a chapter, wait 1, 5, 25, ... minutes, a day at most: an outage heals, a chapter
# that always fails does not keep the server busy.
FIRST_WAIT_SECONDS = 60.0
WAIT_FACTOR = 5.0
LONGEST_WAIT_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run to request: its chapters in order and its priority (higher starts first)."""

    keys: tuple[str, ...]
    priority: int


def due_at(chapter: KnownChapter, now: float) -> float:
    """When a pending chapter may be requested again, in seconds since 1970; 0 for one never requested.

    Also 0 where the last request lies further ahead than the wait: the clock was wrong then, and was put back.
    """
    if chapter.requested_at is None or chapter.attempts == 0:
        return 0.0
    wait = min(FIRST_WAIT_SECONDS * WAIT_FACTOR ** min(chapter.attempts - 1, 10), LONGEST_WAIT_SECONDS)
    return chapter.requested_at + wait if chapter.requested_at <= now + wait else 0.0


def plan_runs(
    pending: Sequence[KnownChapter],
    *,
    in_flight: Collection[str],
    now: float,
    chapters_per_run: int,
    most_runs: int,
) -> list[PlannedRun]:
    """Group the pending chapters that are due into runs: by priority, then by book, in key order.

    At most `most_runs` runs are planned; what is left waits for the next call.
    """
    ready = [chapter for chapter in pending if chapter.partition_key not in in_flight and due_at(chapter, now) <= now]
    by_priority: dict[int, list[str]] = {}
    for chapter in ready:
        by_priority.setdefault(chapter.priority or 0, []).append(chapter.partition_key)
    runs = [
        PlannedRun(keys=tuple(keys[start : start + chapters_per_run]), priority=priority)
        for priority, unsorted in sorted(by_priority.items(), reverse=True)
        for keys in [sorted(unsorted)]
        for start in range(0, len(keys), chapters_per_run)
    ]
    return runs[:most_runs]


def why_they_wait(pending: Sequence[KnownChapter], *, in_flight: Collection[str], everything: bool, now: float) -> str:
    """One sentence about pending chapters none of which gets a run now; empty when none is pending."""
    if not pending:
        return ""
    if everything:
        return f"{len(pending):,} pending: a run takes them all."
    taken = sum(chapter.partition_key in in_flight for chapter in pending)
    later = [due_at(chapter, now) for chapter in pending if chapter.partition_key not in in_flight]
    parts = [f"{taken:,} in runs that wait or go"] if taken else []
    if later:
        parts.append(
            f"{len(later):,} that a run did not finish, tried again in {duration(max(min(later) - now, 0.0))} or later"
        )
    return f"{len(pending):,} pending: {' and '.join(parts)}."
