"""The job that tries dead letters again, from the UI or from `era dead-letters redrive`.

A plain job, without partitions, so that it starts from a click; what it finishes is recorded for the chapters all the same.
"""

import time

import dagster as dg
from pydantic import Field, model_validator

from era_dagster.defs.assets import run_chapters
from era_dagster.defs.failures import as_dagster_failures
from era_dagster.defs.resources import KnowledgeBaseResource, without_cleared
from era_dagster.defs.runs import settle_runs, taking
from era_dagster.domain.stages import STAGES
from era_dagster.storage.dead_letters import ask_again, find_letters
from era_dagster.storage.drops import find_chapters

REDRIVE_JOB = "redrive_dead_letters"
REDRIVE_OP = "redrive"


class RedriveConfig(dg.Config):
    """Which dead letters to try again: empty means all open ones."""

    letters: list[str] = Field(
        default=[], description="Fingerprints, partition keys or ids of letters; empty: every open one."
    )
    _cleared = model_validator(mode="before")(without_cleared)


@dg.op(name=REDRIVE_OP, out=dg.Out(dg.Nothing))
def redrive(context: dg.OpExecutionContext, config: RedriveConfig, knowledge_base: KnowledgeBaseResource) -> None:
    """Embed the texts of dead letters again and store what succeeds; what fails stays open. Idempotent."""
    with as_dagster_failures():
        settings = knowledge_base.settings()
        with knowledge_base.database(settings, run_id=context.run.run_id) as database:
            settle_runs(context.instance, database, now=time.time())
            letters = find_letters(
                database,
                config.letters,
                states=("open", "dropped") if config.letters else ("open",),
                # `era dead-letters redrive` hands on the ids it found; another run may have stored some of the texts since.
                without_settled=True,
            )
            context.log.info(f"{len(letters):,} letters are tried again.")
            # As a run that takes everything pending, for the sensor: it must not start the same chapters meanwhile.
            with taking(context.instance, context.run.run_id, [], everything=True):
                chapters = find_chapters(database, ask_again(database, letters))
                run_chapters(context, settings, database, chapters=chapters, selected=STAGES)


@dg.job(
    name=REDRIVE_JOB,
    description="Tries dead letters again: all open ones, or those named in the config. What succeeds is stored.",
    executor_def=dg.in_process_executor,
)
def redrive_job() -> None:
    """One op."""
    redrive()
