"""What Dagster's runs hold: which chapters a waiting or living run takes, and the end of runs whose process is gone.

A run that was killed writes no last event; Dagster would show it as started for ever and count it against the queue's
limit. It holds no connection to the knowledge base and gives no sign of life there either, and that is how it is told
apart; a living run has lost its connections for a while when PostgreSQL was started again, and could tell nothing while it
was away. No decision about new runs is made here: that is `pipeline.scheduling`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from era_dagster.defs.dagster_storage import storage_errors
from era_dagster.defs.partitions import BOOK_CHAPTERS
from era_dagster.domain.errors import DatabaseUnavailable
from era_dagster.storage.database import Database, live_runs, server_started_at
from era_dagster.storage.telemetry import settle_killed, telling_runs

OP_NAME = "ingest_chapters"
INGEST_JOB = "ingest"
TAKES_TAG = "era/takes"
# The run's own id while its op holds a connection, so that "no connection" means "gone" and not "not yet"; the id because a
# run that is executed again inherits the tags of the first. Afterwards also since when it holds none any more: the op is
# over, and the run ends soon.
_TAKEN_BY_TAG = "era/taken_by"
_UNTIL = " until "
EVERYTHING_PENDING = "everything pending"
# A run that was started this recently may not have reached its op yet; one whose op ended this recently may not have ended;
# to a server that was started this recently, the runs of before may not be connected again.
# Nor is a sign of life older than that one any longer, however rarely a run is told to give them.
_GRACE_SECONDS = 120.0
_QUEUED = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING)
_RUNNING = (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
_MOST_RUNS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """What waiting and living runs take: the chapters they name, and whether one of them takes everything pending."""

    chapters: frozenset[str]
    everything: bool


@contextmanager
def taking(instance: dg.DagsterInstance, run_id: str, chapters: Sequence[str], *, everything: bool) -> Iterator[None]:
    """Tag a run whose connection is open with what it takes, and with that it is over before the connection is closed."""
    taken = EVERYTHING_PENDING if everything else f"{len(chapters)} chapters"
    instance.add_run_tags(run_id, {TAKES_TAG: taken, _TAKEN_BY_TAG: run_id})
    try:
        yield
    finally:
        # Where Dagster's database is away, the run's own trouble is what counts.
        with suppress(DatabaseUnavailable), storage_errors():
            instance.add_run_tags(run_id, {_TAKEN_BY_TAG: f"{run_id}{_UNTIL}{time.time():.0f}"})


def settle_runs(instance: dg.DagsterInstance, database: Database, *, now: float) -> InFlight:
    """Mark the runs whose process is gone as failed, and as killed in the figures; return what the others take.

    `now` in seconds since 1970.
    """
    settle_killed(database)
    # Runs are listed first: one that starts between the two looks is not listed. One that ends between them is looked at again.
    records = instance.get_run_records(dg.RunsFilter(statuses=[*_QUEUED, *_RUNNING]), limit=_MOST_RUNS)
    server_at = server_started_at(database)
    alive = live_runs(database) | telling_runs(database, within_seconds=_GRACE_SECONDS)
    known = cache(
        lambda: list(instance.get_dynamic_partitions(BOOK_CHAPTERS))
    )  # once: a backfill may be hundreds of runs
    # Each look is a connection, 7 ms; another project may have hundreds of runs of one job.
    has_our_op = cache(lambda snapshot_id: instance.get_job_snapshot(snapshot_id).has_node_name(OP_NAME))
    chapters: set[str] = set()
    everything = False
    for record in records:
        run = record.dagster_run
        if run.run_id not in alive and _is_gone(record, now, server_at) and _is_ours(run, has_our_op):
            again = instance.get_run_record_by_id(run.run_id)
            if again is not None and _is_gone(again, now, server_at):
                instance.report_run_failed(
                    again.dagster_run,
                    "The process of this run is gone; what it finished is stored, the rest is pending.",
                )
            continue
        chapters.update(chapters_of(run.run_config), _chapters_of_partitions(run, known))
        holds, _ = _held(run)
        everything = everything or (holds and run.tags[TAKES_TAG] == EVERYTHING_PENDING)
    return InFlight(chapters=frozenset(chapters), everything=everything)


def _is_gone(record: dg.RunRecord, now: float, server_at: float) -> bool:
    """Whether a run that is not connected, and gives no sign of life, should be."""
    run = record.dagster_run
    if run.status not in _RUNNING:
        return False
    holds, until = _held(run)
    began = record.start_time or record.create_timestamp.timestamp()
    if began < server_at and now - server_at <= _GRACE_SECONDS:
        return False
    return holds or now - (until or began) > _GRACE_SECONDS


def _is_ours(run: dg.DagsterRun, has_our_op: Callable[[str], bool]) -> bool:
    """Whether the run takes chapters. Another project of the same Dagster may call a job `ingest` too."""
    if TAKES_TAG in run.tags:
        return True
    return run.job_snapshot_id is not None and has_our_op(run.job_snapshot_id)


def _held(run: dg.DagsterRun) -> tuple[bool, float | None]:
    """Whether the run's op goes and so holds a connection, and since when it does no longer."""
    holder, _, until = run.tags.get(_TAKEN_BY_TAG, "").partition(_UNTIL)
    return (False, None) if holder != run.run_id else (not until, float(until) if until else None)


def chapters_of(config: Any) -> list[str]:
    """The chapters named in a run's config; none for a run that is not ours."""
    try:
        return list(config["ops"][OP_NAME]["config"]["chapters"])
    except (KeyError, TypeError):
        return []


def _chapters_of_partitions(run: dg.DagsterRun, known: Callable[[], Sequence[str]]) -> Sequence[str]:
    """The chapters that a person's run or backfill names by its partitions; other projects have partitions that are none."""
    if run.status is dg.DagsterRunStatus.NOT_STARTED:
        # So Dagster leaves a run for ever whose launch it refused, as of a range whose partitions have gone.
        return []
    one = run.tags.get(PARTITION_NAME_TAG)
    ends = [run.tags.get(tag, one) for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)]
    if ends == [None, None]:
        return []
    places = [known().index(end) for end in ends if end in known()]
    return known()[places[0] : places[1] + 1] if len(places) == len(ends) else []
