"""What Dagster's runs hold: which chapters a waiting or living run takes, and the end of runs whose process is gone.

A run that was killed writes no last event; Dagster would show it as started for ever and count it against the queue's
limit. It holds no connection to the knowledge base either, and that is how it is told apart. No decision about new runs
is made here: that is `pipeline.scheduling`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from era_dagster.storage.database import Database, live_runs

OP_NAME = "ingest_chapters"
INGEST_JOB = "ingest"
# Set by the op once the run holds its connection, so that "no connection" means "gone" and not "not yet".
TAKES_TAG = "era/takes"
# Whose the tag before is: a run that is executed again inherits the tags of the first, long before it has a connection.
_TAKEN_BY_TAG = "era/taken_by"
EVERYTHING_PENDING = "everything pending"
# A run that was started this recently may not have reached its op yet.
_START_GRACE_SECONDS = 120.0
_QUEUED = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING)
_RUNNING = (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
_MOST_RUNS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """What waiting and living runs take: the chapters they name, and whether one of them takes everything pending."""

    chapters: frozenset[str]
    everything: bool


def note_taken(instance: dg.DagsterInstance, run_id: str, chapters: Sequence[str], *, everything: bool) -> None:
    """Tag a run whose connection is open with what it takes."""
    taken = EVERYTHING_PENDING if everything else f"{len(chapters)} chapters"
    instance.add_run_tags(run_id, {TAKES_TAG: taken, _TAKEN_BY_TAG: run_id})


def settle_runs(instance: dg.DagsterInstance, database: Database, *, now: float) -> InFlight:
    """Mark the runs whose process is gone as failed; return what the others take. `now` in seconds since 1970."""
    # Runs are listed first: one that starts between the two looks is not listed, one that ends is settled by itself.
    records = instance.get_run_records(dg.RunsFilter(statuses=[*_QUEUED, *_RUNNING]), limit=_MOST_RUNS)
    alive = live_runs(database)
    chapters: set[str] = set()
    everything = False
    for record in records:
        run = record.dagster_run
        since = record.start_time or record.create_timestamp.timestamp()
        ours = run.job_name == INGEST_JOB or TAKES_TAG in run.tags
        noted = run.tags.get(_TAKEN_BY_TAG) == run.run_id
        started = noted or now - since > _START_GRACE_SECONDS
        if run.status in _RUNNING and ours and started and run.run_id not in alive:
            _end(instance, run.run_id)
            continue
        chapters.update(chapters_of(run.run_config))
        everything = everything or (noted and run.tags[TAKES_TAG] == EVERYTHING_PENDING)
    return InFlight(chapters=frozenset(chapters), everything=everything)


def chapters_of(config: Any) -> list[str]:
    """The chapters named in a run's config; none for a run that is not ours."""
    try:
        return list(config["ops"][OP_NAME]["config"]["chapters"])
    except (KeyError, TypeError):
        return []


def _end(instance: dg.DagsterInstance, run_id: str) -> None:
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status in _RUNNING:
        instance.report_run_failed(
            run, "The process of this run is gone; what it finished is stored, the rest is pending."
        )
