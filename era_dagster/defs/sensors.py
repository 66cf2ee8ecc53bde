"""The file-drop sensor: looks at the drop folder, registers chapters, requests runs. Thin: it decides nothing itself.

What the folder holds is decided in `intake.plan`, what is pending in `storage.drops`, who gets a run in
`pipeline.scheduling`. The register lives in the database, so the cursor only carries the files that were still settling.
"""

import json
import time

import dagster as dg

from era_dagster.defs.health import DROP_SENSOR
from era_dagster.defs.jobs import ingest_job, run_config
from era_dagster.defs.partitions import BOOK_CHAPTERS, book_chapters, forget, left_over, with_unmarked
from era_dagster.defs.resources import KnowledgeBaseResource
from era_dagster.defs.runs import settle_runs
from era_dagster.domain.stages import STAGES
from era_dagster.pipeline.drop import look_at_drop
from era_dagster.pipeline.ingest import stamp_rules
from era_dagster.pipeline.scheduling import plan_runs, why_they_wait
from era_dagster.storage.attempts import note_requested
from era_dagster.storage.drops import pending_chapters
from era_dagster.storage.minister_files import render_due, write_combined_index

# One tick must stay far below Dagster's limit of 60 s; what is left is requested by the next.
MOST_RUNS_PER_TICK = 20


def _settling(cursor: str | None) -> dict[str, tuple[str, int]]:
    """What the last tick found settling; nothing where a person wrote the cursor, which costs one more look."""
    try:
        found = json.loads(cursor or "{}")
        return {str(path): (str(seen), int(since)) for path, (seen, since) in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _is_preview(context: dg.SensorEvaluationContext) -> bool:
    """Whether a person previews a tick in the UI, which requests nothing: only there neither time is known."""
    return context.last_tick_completion_time is None and context.last_sensor_start_time is None


@dg.sensor(
    name=DROP_SENSOR,
    job=ingest_job,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks at the drop folder; new, changed and vanished chapters get a run.",
)
def chapter_drop_sensor(context: dg.SensorEvaluationContext, knowledge_base: KnowledgeBaseResource) -> dg.SensorResult:
    """One tick."""
    settings = knowledge_base.settings()
    now = time.time()
    with knowledge_base.database(settings) as database:
        look = look_at_drop(settings, database, settings.drop_dir, settling=_settling(context.cursor))
        in_flight = settle_runs(context.instance, database, now=now)
        suffixes = stamp_rules(settings, database).suffixes
        known = set(context.instance.get_dynamic_partitions(BOOK_CHAPTERS))
        registered = pending_chapters(database, stages=STAGES, suffixes={}, root=None)
        forget(context.instance, left_over(context.instance, known, registered))
        pending = with_unmarked(
            context.instance,
            known,
            registered=registered,
            pending=pending_chapters(database, stages=STAGES, suffixes=suffixes, root=None),
            stages=STAGES,
        )
        runs = plan_runs(
            [] if in_flight.everything else pending,
            in_flight=in_flight.chapters,
            now=now,
            chapters_per_run=settings.chapters_per_run,
            most_runs=MOST_RUNS_PER_TICK,
        )
        if not _is_preview(context):
            note_requested(database, [key for run in runs for key in run.keys])
        if not (pending or in_flight.chapters or in_flight.everything):
            # What a run left that was killed after its last commit: files that do not show it yet. Mostly nothing.
            render_due(database, settings.ministers_dir, None)
            write_combined_index(database, settings.data_dir)
    gone = {chapter.partition_key for chapter in pending if chapter.gone}
    new = [key for run in runs for key in run.keys if key not in known and key not in gone]
    for line in look.messages():
        context.log.info(line)
    waits = why_they_wait(pending, in_flight=in_flight.chapters, everything=in_flight.everything, now=now)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_config=run_config(run.keys),
                tags={
                    "dagster/priority": str(run.priority),
                    "era/chapters": str(len(run.keys)),
                    # What a killed run leaves is requested again by the next tick; a retry would be a second run over it.
                    "dagster/max_retries": "0",
                },
            )
            for run in runs
        ],
        skip_reason=None if runs else dg.SkipReason(f"{look.summary()}. {waits}" if waits else look.summary()),
        dynamic_partitions_requests=[book_chapters.build_add_request(new)] if new else [],
        cursor=json.dumps(look.settling),
    )
