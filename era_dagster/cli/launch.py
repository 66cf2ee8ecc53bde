"""Runs the project's jobs in this process, for the commands of `era`: the same graph, the same events, no daemon."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from era_dagster.cli.output import STOPPED
from era_dagster.definitions import build_defs
from era_dagster.defs.assets import Progress
from era_dagster.defs.jobs import INGEST_JOB, run_config
from era_dagster.defs.partitions import add_missing
from era_dagster.defs.redrive import REDRIVE_JOB, REDRIVE_OP
from era_dagster.defs.resources import KnowledgeBaseResource
from era_dagster.storage.drops import KnownChapter


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchResult:
    """How a run in this process ended; `failure` is its one sentence, None when all went well."""

    run_id: str
    failure: str | None


def run_ingest(
    instance: dg.DagsterInstance,
    chapters: Sequence[KnownChapter],
    *,
    knowledge_base: KnowledgeBaseResource,
    on_progress: Progress | None,
) -> LaunchResult:
    """Register the chapters as partitions and run the job over them."""
    add_missing(instance, [chapter.partition_key for chapter in chapters if not chapter.gone])
    defs = build_defs(resource_overrides={"knowledge_base": knowledge_base}, on_progress=on_progress)
    return _execute(instance, defs, INGEST_JOB, run_config([chapter.partition_key for chapter in chapters]))


def run_redrive(
    instance: dg.DagsterInstance, letters: Sequence[str], *, knowledge_base: KnowledgeBaseResource
) -> LaunchResult:
    """Run the job that tries dead letters again over these names; none: all open ones."""
    defs = build_defs(resource_overrides={"knowledge_base": knowledge_base})
    return _execute(instance, defs, REDRIVE_JOB, {"ops": {REDRIVE_OP: {"config": {"letters": list(letters)}}}})


def _execute(instance: dg.DagsterInstance, defs: dg.Definitions, job: str, config: dict[str, Any]) -> LaunchResult:
    result = defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        # Run by a person, who sees how it ended: never started again by the daemon.
        tags={"dagster/max_retries": "0"},
        run_config={**config, "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    if result.success:
        return LaunchResult(run_id=result.run_id, failure=None)
    # A run may be interrupted before its first step too.
    if any(
        event.is_job_failure
        and event.job_failure_data.error is not None
        and event.job_failure_data.error.cls_name == dg.DagsterExecutionInterruptedError.__name__
        for event in result.all_events
    ):
        return LaunchResult(run_id=result.run_id, failure=STOPPED)
    for event in result.get_step_failure_events():
        data = event.step_failure_data
        if data.user_failure_data is not None and data.user_failure_data.description:
            return LaunchResult(run_id=result.run_id, failure=data.user_failure_data.description)
        if data.error is not None:
            return LaunchResult(run_id=result.run_id, failure=data.error.message.strip())
    return LaunchResult(run_id=result.run_id, failure="The run failed before its first step.")
