"""The file-drop sensor: looks at the drop folder, registers chapters, requests runs. Thin: it decides nothing itself.

What the folder holds is decided in `intake.plan`, what is pending in `storage.drops`, who gets a run in
`pipeline.scheduling`. The register lives in the database, so the cursor only carries the files that were still settling.
"""

import json
import time

import dagster as dg

from era_dagster.defs.jobs import INGEST_JOB, chapters_of, ingest_job, run_config
from era_dagster.defs.partitions import BOOK_CHAPTERS, book_chapters
from era_dagster.defs.resources import KnowledgeBaseResource
from era_dagster.domain.stages import STAGES
from era_dagster.pipeline.drop import look_at_drop
from era_dagster.pipeline.ingest import stamp_rules
from era_dagster.pipeline.scheduling import plan_runs
from era_dagster.storage.database import Database, live_runs
from era_dagster.storage.drops import note_requested, pending_chapters

# One tick must stay far below Dagster's limit of 60 s; what is left is requested by the next.
MOST_RUNS_PER_TICK = 20
# A run that was launched this recently may not have opened its connection yet.
_START_GRACE_SECONDS = 120.0
_QUEUED = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING)
_RUNNING = (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)


@dg.sensor(
    name="chapter_drop_sensor",
    job=ingest_job,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks at the drop folder; new, changed and vanished chapters get a run.",
)
def chapter_drop_sensor(context: dg.SensorEvaluationContext, knowledge_base: KnowledgeBaseResource) -> dg.SensorResult:
    """One tick."""
    settings = knowledge_base.settings()
    settings.drop_dir.mkdir(parents=True, exist_ok=True)
    now = time.time()
    with knowledge_base.database(settings) as database:
        look = look_at_drop(settings, database, settings.drop_dir, settling=json.loads(context.cursor or "{}"))
        pending = pending_chapters(
            database, stages=STAGES, suffixes=stamp_rules(settings, database).suffixes, root=None
        )
        runs = plan_runs(
            pending,
            in_flight=_in_flight(context.instance, database, now),
            now=now,
            chapters_per_run=settings.chapters_per_run,
            most_runs=MOST_RUNS_PER_TICK,
        )
        note_requested(database, [key for run in runs for key in run.keys])
    gone = {chapter.partition_key for chapter in pending if chapter.gone}
    known = set(context.instance.get_dynamic_partitions(BOOK_CHAPTERS))
    new = [key for run in runs for key in run.keys if key not in known and key not in gone]
    for line in look.messages():
        context.log.info(line)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_config=run_config(run.keys),
                tags={"dagster/priority": str(run.priority), "era/chapters": str(len(run.keys))},
            )
            for run in runs
        ],
        skip_reason=None if runs else dg.SkipReason(look.summary()),
        dynamic_partitions_requests=[book_chapters.build_add_request(new)] if new else [],
        cursor=json.dumps(look.settling),
    )


def _in_flight(instance: dg.DagsterInstance, database: Database, now: float) -> frozenset[str]:
    """Chapters whose run is waiting or really running; a killed run holds no connection, so it holds no chapter."""
    alive = live_runs(database)
    keys: set[str] = set()
    for record in instance.get_run_records(
        dg.RunsFilter(job_name=INGEST_JOB, statuses=[*_QUEUED, *_RUNNING]), limit=1000
    ):
        run = record.dagster_run
        young = now - record.create_timestamp.timestamp() < _START_GRACE_SECONDS
        if run.status in _QUEUED or run.run_id in alive or young:
            keys.update(chapters_of(run.run_config))
    return frozenset(keys)
