"""The asset graph: one streaming op behind five per-chapter assets, and the totals behind all of them.

What an asset means is in the specs below; the work is in `pipeline`. The op takes many chapters, records one
materialization for each stage of each chapter that is really done, and fails at the end naming those that are not.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import dagster as dg
from pydantic import Field, model_validator

from era_dagster.defs.checks import record_checks
from era_dagster.defs.events import MaterializationLog
from era_dagster.defs.failures import as_dagster_failures
from era_dagster.defs.metadata import chapter_metadata, run_metadata
from era_dagster.defs.partitions import BOOK_CHAPTERS, add_missing, book_chapters, forget, left_out, with_unmarked
from era_dagster.defs.pictures import domains_picture, knowledge_pictures
from era_dagster.defs.resources import KnowledgeBaseResource, without_cleared
from era_dagster.defs.runs import OP_NAME, settle_runs, taking
from era_dagster.domain.errors import ConfigurationError, EraError
from era_dagster.domain.identity import parse_partition_key, partition_key
from era_dagster.domain.stages import STAGES, UPSTREAM, with_upstream
from era_dagster.embedding.report import EmbedStats
from era_dagster.pipeline.drop import DropLook, look_at_drop
from era_dagster.pipeline.ingest import refresh_combined_index, run_stages, stamp_rules
from era_dagster.pipeline.receipt import Receipt
from era_dagster.pipeline.runner import StageDone
from era_dagster.pipeline.watch import RunReport
from era_dagster.settings import Settings
from era_dagster.storage.attempts import note_stopped
from era_dagster.storage.database import Database
from era_dagster.storage.drops import (
    KnownChapter,
    find_chapters,
    pending_chapters,
    retired_chapter,
    unreadable_sources,
)
from era_dagster.storage.map_rows import DomainCount, domain_counts
from era_dagster.storage.stamps import set_recorded

COMBINED_INDEX = "combined_index"
ASSET_ORDER = (*STAGES, COMBINED_INDEX)
# One paragraph each, for whoever meets the asset in the UI for the first time.
_DESCRIPTIONS = {
    "chapters": "The chapter was read from the drop folder, cleaned and validated: its text, its doctrine entries and where"
    " they come from are stored (tables `doctrine_sources`, `minister_entries`). Items that hold no sentence are named in the"
    " metadata with the reason; files that cannot be read are in quarantine and never become a chapter.",
    "chunks": "The chapter's text is cut into chunks of whole sentences, 512 to 1,024 characters unless the settings say"
    " otherwise, with offsets into the text (table `chapter_chunks`). Together they cover it: no text is lost.",
    "embeddings": "Every text of the chapter, chunk or entry, has a vector of the live model in the cache"
    " (`embedding_cache`), or is a dead letter with its reason (`era dead-letters list`). The metadata tell what that took:"
    " requests, tokens, retries, refusals and percentiles of the requests that carried texts of this chapter.",
    "vector_tables": "The chapter's rows in `chunk_embeddings`, `doctrine_embeddings` and `doctrine_embeddings_all` are"
    " exactly its texts, written in one transaction: what left the chapter left the tables. From here it can be searched.",
    "minister_files": "Every file under `ministers/<domain>/` that the chapter touches agrees with the database. Files are"
    " rendered whole and replaced atomically, each domain once a run; a damaged file is rebuilt. The metadata tell in which"
    " files the chapter stands, with how many of its entries in each domain.",
}
_KINDS = {
    "chapters": {"json", "postgres"},
    "chunks": {"postgres"},
    "embeddings": {"postgres"},
    "vector_tables": {"postgres"},
    "minister_files": {"json"},
}

# Each costs 11 ms; all of them are named in the run's failure and in `era status`.
_MOST_FAILURES_TOLD = 100
_LONGEST_SETTLING_SECONDS = 10.0
_BACKFILL_TAG = "dagster/backfill"
OWNERS = ["team:knowledge-base"]

Progress = Callable[[Receipt, int, EmbedStats | None], None]


class IngestConfig(dg.Config):
    """Which chapters a run takes when it has no partitions: empty means everything pending."""

    chapters: list[str] = Field(default=[], description="Partition keys; empty: everything that is pending.")
    look: bool = Field(default=True, description="Look at the drop folder first.")
    _cleared = model_validator(mode="before")(without_cleared)


def build_assets(*, partitioned: bool, on_progress: Progress | None = None) -> list[dg.AssetsDefinition]:
    """The assets. Unpartitioned ones do everything pending and still record events per chapter (see definitions)."""
    with warnings.catch_warnings():
        # Backfill policies are documented, and marked as beta for years; a user can do nothing about the warning.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return [_chapter_assets(partitioned=partitioned, on_progress=on_progress), _combined_index()]


def _chapter_assets(*, partitioned: bool, on_progress: Progress | None) -> dg.AssetsDefinition:
    specs = [
        dg.AssetSpec(
            stage,
            deps=list(UPSTREAM[stage]),
            description=_DESCRIPTIONS[stage],
            kinds=_KINDS[stage],
            group_name="knowledge_base",
            owners=OWNERS,
            skippable=True,
            partitions_def=book_chapters if partitioned else None,
        )
        for stage in STAGES
    ]

    @dg.multi_asset(
        name=OP_NAME,
        specs=specs,
        can_subset=True,
        partitions_def=book_chapters if partitioned else None,
        backfill_policy=dg.BackfillPolicy.single_run() if partitioned else None,
    )
    def ingest_chapters(
        context: dg.AssetExecutionContext, config: IngestConfig, knowledge_base: KnowledgeBaseResource
    ) -> Iterator[Any]:
        with as_dagster_failures():
            settings = knowledge_base.settings()
            with knowledge_base.database(settings, run_id=context.run.run_id) as database:
                _run(context, config, settings, database, on_progress)
        yield from ()

    return ingest_chapters


def _combined_index() -> dg.AssetsDefinition:
    """Unpartitioned; a chapter run refreshes it too."""

    @dg.asset(
        name=COMBINED_INDEX,
        deps=["vector_tables", "minister_files"],
        group_name="knowledge_base",
        owners=OWNERS,
        kinds={"json", "postgres"},
        description="The whole: totals of all domains are written (`combined_vector.index`), and vector indexes stand where"
        " they pay. Every run that touches tables or files refreshes it and leaves its figures here: items a second,"
        " percentiles, retries, refusals, the controller's decisions as a plot, chunk lengths, domains. Materialized by"
        " itself it also draws a map of the knowledge base.",
        # Dagster refuses a partition range over several assets when one of them has no policy.
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def combined_index(knowledge_base: KnowledgeBaseResource) -> dg.MaterializeResult:
        with as_dagster_failures():
            settings = knowledge_base.settings()
            with knowledge_base.database(settings) as database:
                return dg.MaterializeResult(
                    metadata={**refresh_combined_index(settings, database), **knowledge_pictures(database)}
                )

    return combined_index


def _run(
    context: dg.AssetExecutionContext,
    config: IngestConfig,
    settings: Settings,
    database: Database,
    on_progress: Progress | None,
) -> None:
    settle_runs(context.instance, database, now=time.time())
    selected = [key.to_user_string() for key in context.selected_asset_keys]
    keys = [partition_key(*parse_partition_key(key.strip())) for key in config.chapters] or _partition_keys(context)
    with taking(context.instance, context.run.run_id, keys, everything=not keys):
        look, away = None, []
        try:
            look = _look(context, settings, database) if config.look else None
        except ConfigurationError as error:
            if not keys:
                raise
            away = [str(error)]  # the chapters asked for may lie elsewhere, or need no source
        if keys:
            chapters, problems = _named(context, database, keys)
            problems += away
            if look is not None:
                # What is stored of them is of an earlier look: they are done, and not what the person asked for.
                problems += [trouble.sentence() for trouble in unreadable_sources(database, keys)]
                waiting = look.left_waiting({chapter.source_path for chapter in chapters})
                problems += [f"{source}. Materialize again when that is over." for source in waiting]
        else:
            chapters = _everything_pending(context, settings, database, selected)
            problems = look.problems() if look is not None else []
        for problem in problems:
            context.log.error(problem)
        run_chapters(context, settings, database, chapters=chapters, selected=selected, on_progress=on_progress)
    if problems:
        more = f" And {len(problems) - 10} more." if len(problems) > 10 else ""
        told = " ".join(f"{problem.removesuffix('.')}." for problem in problems[:10])
        raise dg.Failure(description=f"Everything else is done, but: {told}{more}", allow_retries=False)
    others = [node.name for node in context.job_def.nodes if node.name != OP_NAME]
    if others:
        # Dagster's own words for it, which come next, read as if something had gone wrong.
        context.log.info(
            f"Done here too: {' and '.join(others)}. Dagster skips these steps now, and nothing is missing."
        )


def run_chapters(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
    settings: Settings,
    database: Database,
    *,
    chapters: Sequence[KnownChapter],
    selected: Sequence[str],
    on_progress: Progress | None = None,
) -> Receipt:
    """Run the selected stages of these chapters, record what is done of each, then judge the claims about the whole.

    Raises as `pipeline.ingest.run_stages`, after everything that is true is recorded.
    """
    log = MaterializationLog(context, ASSET_ORDER)
    listener = _DagsterListener(log, on_progress)

    def tell_of_the_whole() -> None:
        _forget_retired(context.instance, database, chapters)
        if listener.whole is not None:
            log.add(COMBINED_INDEX, None, _whole_metadata(listener.whole, listener.report, database))

    try:
        with log:
            try:
                receipt = run_stages(
                    settings,
                    database,
                    chapters=chapters,
                    selected=selected,
                    run_id=context.run.run_id,
                    listener=listener,
                )
            except (dg.DagsterExecutionInterruptedError, EraError) as end:
                # Where the database is away, what ended the run is what counts.
                with suppress(EraError):
                    tell_of_the_whole()
                    if not isinstance(end, EraError):
                        # Stopped; the sensor would start it again within seconds.
                        note_stopped(database, [chapter.partition_key for chapter in chapters])
                raise
            tell_of_the_whole()
        set_recorded(database, sorted(listener.told))
    except EraError:
        # The trouble of the run is what counts, should the checks meet the same.
        with suppress(EraError):
            set_recorded(database, sorted(listener.told))
            if listener.whole is None:
                # Nothing became true of the whole; the figures of the run are an observation.
                context.log_event(
                    dg.AssetObservation(
                        COMBINED_INDEX, metadata=_run_metadata(listener.report, domain_counts(database))
                    )
                )
            for observation in listener.failures(selected):
                context.log_event(observation)
            if listener.report is not None:
                context.log.info("Receipt: %s", listener.report.receipt.as_json())
            record_checks(context, settings, database)
        raise
    record_checks(context, settings, database)
    context.log.info("Receipt: %s", receipt.as_json())
    return receipt


def _whole_metadata(totals: Mapping[str, int | str], report: RunReport | None, database: Database) -> dict[str, Any]:
    counts = domain_counts(database)
    return {
        **_run_metadata(report, counts),
        "space": "none yet",
        **totals,
        "entries_by_domain": domains_picture(counts),
    }


def _run_metadata(report: RunReport | None, counts: Sequence[DomainCount]) -> dict[str, Any]:
    return {} if report is None else run_metadata(report, {each.domain: each.entries for each in counts})


def _forget_retired(instance: dg.DagsterInstance, database: Database, chapters: Sequence[KnownChapter]) -> None:
    """Remove the partitions of the chapters that left the input, before the run or meanwhile, and whose rows are gone."""
    keys = [chapter.partition_key for chapter in chapters]
    remaining = {chapter.partition_key for chapter in find_chapters(database, keys)}
    forget(instance, [key for key in keys if key not in remaining])


def _partition_keys(context: dg.AssetExecutionContext) -> list[str]:
    """The chapters that the run's partitions name; none for a run without partitions."""
    if not (context.has_partition_key or context.has_partition_key_range):
        return []
    keys = list(context.partition_keys)
    if not keys:
        asked = context.partition_key_range
        raise ConfigurationError(
            f"No chapter lies between {asked.start} and {asked.end}: the second comes before the first.",
            hint="A range follows the order in which chapters were registered, as the UI lists them: swap its ends.",
        )
    if _BACKFILL_TAG not in context.run.tags:
        # A backfill names its chapters one by one, and what it leaves out is meant.
        left = left_out(context.instance.get_dynamic_partitions(BOOK_CHAPTERS), keys)
        if left:
            more = f" and {len(left) - 10} more" if len(left) > 10 else ""
            context.log.warning(
                f"Not in this range: {', '.join(left[:10])}{more}. A range follows the order in which chapters were"
                " registered, and these came before its first or after its last: materialize them too, by their keys."
            )
    return keys


def _named(
    context: dg.AssetExecutionContext, database: Database, keys: Sequence[str]
) -> tuple[list[KnownChapter], list[str]]:
    """The chapters a run names, and one sentence for those that nobody dropped (or that left before they were stored).

    Those that another run removed since this one was requested are done already.
    """
    found = find_chapters(database, keys)
    missing = set(keys) - {chapter.partition_key for chapter in found}
    if not missing:
        return found, []
    removed = missing & context.instance.get_materialized_partitions(dg.AssetKey(STAGES[0]))
    for key in sorted(removed):
        context.log.info(f"{key} has left the drop folder and is removed.")
    chapters = [*found, *map(retired_chapter, sorted(removed))]
    unknown = sorted(missing - removed)
    if not unknown:
        return chapters, []
    more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    return chapters, [
        f"Not in the drop folder: {', '.join(unknown[:10])}{more}; drop the book again, or remove the partition."
    ]


def _look(context: dg.AssetExecutionContext, settings: Settings, database: Database) -> DropLook:
    """A look at the drop folder; a second one after a moment for what somebody is just writing there."""
    look = look_at_drop(settings, database, settings.drop_dir)
    if look.settling:
        # Somebody who drops a book and asks at once means that book.
        seconds = min(settings.settle_seconds, _LONGEST_SETTLING_SECONDS)
        context.log.info(f"{len(look.settling)} sources were just written: looking again in {seconds:g} s.")
        time.sleep(seconds)
        look = look_at_drop(settings, database, settings.drop_dir, settling=look.settling)
    for notice in (*look.notices(), *look.nothing_there()):
        context.log.info(notice)
    return look


def _everything_pending(
    context: dg.AssetExecutionContext, settings: Settings, database: Database, selected: Sequence[str]
) -> list[KnownChapter]:
    """Every chapter that has a stale or unmarked stage among the selected ones."""
    stages = with_upstream(selected)
    suffixes = stamp_rules(settings, database).suffixes
    pending = with_unmarked(
        context.instance,
        context.instance.get_dynamic_partitions(BOOK_CHAPTERS),
        registered=pending_chapters(database, stages=stages, suffixes={}, root=None),
        pending=pending_chapters(database, stages=stages, suffixes=suffixes, root=None),
        stages=[stage for stage in STAGES if stage in selected],
    )
    add_missing(context.instance, [chapter.partition_key for chapter in pending if not chapter.gone])
    return pending


class _DagsterListener:
    """Turns finished stages into materializations and passes totals on; `told` are the chapters it heard of, with their
    finished stages."""

    def __init__(self, log: MaterializationLog, on_progress: Progress | None) -> None:
        self._log = log
        self._on_progress = on_progress
        self.told: dict[str, set[str]] = {}
        self.report: RunReport | None = None
        self.whole: Mapping[str, int | str] | None = None

    def stages_done(self, done: Sequence[StageDone]) -> None:
        for stage in done:
            self.told.setdefault(stage.partition_key, set()).add(stage.stage)
            self._log.add(stage.stage, stage.partition_key, chapter_metadata(stage.metadata))
        self._log.flush_if_due()

    def progress(self, receipt: Receipt, total_chapters: int, stats: EmbedStats | None) -> None:
        self._log.flush_if_due()
        if self._on_progress is not None:
            self._on_progress(receipt, total_chapters, stats)

    def whole_refreshed(self, totals: Mapping[str, int | str]) -> None:
        self.whole = totals

    def run_ended(self, report: RunReport) -> None:
        self.report = report

    def failures(self, selected: Sequence[str]) -> Iterator[dg.AssetObservation]:
        """Why a chapter is missing, told where it is missing: at the first selected stage that was not finished."""
        failed = {} if self.report is None else self.report.receipt.chapters_failed
        for key, reason in list(failed.items())[:_MOST_FAILURES_TOLD]:
            missing = [stage for stage in STAGES if stage in selected and stage not in self.told.get(key, ())]
            if missing:
                yield dg.AssetObservation(missing[0], partition=key, metadata={"failure": reason})
