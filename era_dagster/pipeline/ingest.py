"""One run: the chosen chapters through the chosen stages, then the files of the domains they touched, then the totals.

The synchronous face of the pipeline: `defs.assets` calls it, and it owns the event loop. Which model is used is settled
here, once, before the first text is sent.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace

import httpx

from era_dagster.domain.errors import EndpointRefused, EndpointUnavailable, EraError, TransientError
from era_dagster.domain.stages import Stage, StampRules, stale_stages, with_upstream
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.factory import open_embedder
from era_dagster.embedding.vectors import ModelIdentity
from era_dagster.intake.aliases import domain_aliases
from era_dagster.pipeline.receipt import Receipt
from era_dagster.pipeline.report import files_metadata
from era_dagster.pipeline.rules import chunk_rules
from era_dagster.pipeline.runner import (
    ChapterRunner,
    Listener,
    Outcome,
    StageDone,
    Work,
    raise_failures,
)
from era_dagster.pipeline.sharing import sharing
from era_dagster.pipeline.stopping import run_stoppable
from era_dagster.pipeline.watch import RunWatch, watching
from era_dagster.settings import Settings, configured_model
from era_dagster.storage.attempts import note_failures
from era_dagster.storage.cache import PostgresVectorCache
from era_dagster.storage.database import Database
from era_dagster.storage.drops import KnownChapter
from era_dagster.storage.full_text import note_languages
from era_dagster.storage.indexes import (
    build_vector_indexes,
    drop_indexes_before_load,
    load_goes_on,
    tend_tables,
)
from era_dagster.storage.minister_files import chapter_domains, render_due, write_combined_index
from era_dagster.storage.spaces import check_configured, ensure_space, live_space, live_space_name
from era_dagster.storage.stamps import set_stamp, stored_stamps

_ASK_AGAIN_SECONDS = 1.0


def stamp_rules(settings: Settings, database: Database) -> StampRules:
    """What stamps depend on now: the chunk rules, the live model, if there is one, and the domain aliases.

    Raises `ConfigurationError` when the settings name another model than the live one.
    """
    live = live_space(database)
    check_configured(live, model=configured_model(settings))
    return StampRules(
        chunk_rules=chunk_rules(settings),
        model_stamp=live.stamp if live else None,
        aliases=domain_aliases(settings),
    )


def run_stages(
    settings: Settings,
    database: Database,
    *,
    chapters: Sequence[KnownChapter],
    selected: Collection[str],
    run_id: str,
    listener: Listener,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Receipt:
    """Bring `selected` stages (and what they need) up to date for `chapters`; returns the receipt.

    Raises `ChaptersFailed` when some chapters could not be finished, or the error that stopped the run; everything done
    before stays, its files are written and its stages are stamped.
    """
    work = Work(
        chapters=chapters,
        stages=with_upstream(selected),
        selected=with_upstream(selected) & frozenset(selected),
        rules=stamp_rules(settings, database),
        run_id=run_id,
    )
    if "vector_tables" in work.stages:
        drop_indexes_before_load(database, chapters=len(chapters))
    with watching(settings, database.url, run_id=run_id, chapters=len(chapters)) as watch:
        try:
            outcome = run_stoppable(_run(settings, database, work, listener, watch, transport))
            receipt = outcome.receipt
            # A chapter that left is removed whole, whichever stages are wanted, and its entries stand in files too.
            with_files = "minister_files" in work.stages or receipt.chapters_retired > 0
            if with_files:
                _files(settings, database, work, outcome, listener)
            watch.progress(receipt, None)
            well = outcome.fatal is None
            note_failures(database, chapters, receipt.chapters_failed, outcome.finished, well=well)
            if with_files or "vector_tables" in work.stages:
                listener.whole_refreshed(refresh_combined_index(settings, database, build=not load_goes_on(database)))
            raise_failures(outcome)
        finally:
            listener.run_ended(watch.report())
    return receipt


def refresh_combined_index(settings: Settings, database: Database, *, build: bool = True) -> dict[str, int | str]:
    """Write the totals file, tend the tables, and build the vector indexes that pay; returns key numbers for metadata.

    Without `build` the indexes are left to a later run, because more chapters are on their way.
    """
    write_combined_index(database, settings.data_dir)
    note_languages(database)
    tend_tables(database)
    built = build_vector_indexes(database) if build else []
    with database.connection() as connection:
        row = connection.execute(
            "SELECT count(DISTINCT domain), count(*), count(DISTINCT doctrine_id) FROM minister_entries"
        ).fetchone()
    domains, pairs, entries = row or (0, 0, 0)
    totals = {"domains": domains, "entry_domain_rows": pairs, "entries": entries, "indexes_built": len(built)}
    live = live_space_name(database)
    return {**totals, **({"space": live} if live else {})}


async def _run(
    settings: Settings,
    database: Database,
    work: Work,
    listener: Listener,
    watch: RunWatch,
    transport: httpx.AsyncBaseTransport | None,
) -> Outcome:
    stamps = await asyncio.to_thread(stored_stamps, database, [chapter.partition_key for chapter in work.chapters])
    vector_stages: frozenset[Stage] = frozenset(work.stages & {"embeddings", "vector_tables"})
    # Where only a stage below is to do, as when a text became again what its vectors were made from, they are written too.
    written_with_vectors: frozenset[Stage] = work.stages - {"minister_files"}
    needs_vectors = bool(vector_stages) and any(
        stale_stages(written_with_vectors, work.rules.stamps(chapter.content_hash), stamps.get(chapter.partition_key))
        for chapter in work.chapters
        if not chapter.gone
    )
    without_vectors = ChapterRunner(database, None, listener=listener, watch=watch, settings=settings, space=None)
    if not needs_vectors:
        return await without_vectors.run(work, stamps)
    live = await asyncio.to_thread(live_space, database)
    async with open_embedder(
        settings,
        known=live,
        cache=lambda model: PostgresVectorCache(database, model=model),
        transport=transport,
        trace=watch.decision,
        on_request=watch.request,
    ) as embedder:
        try:
            identity = await _identify(embedder, watch, settings.retry_budget_seconds if live else 0.0)
        except (TransientError, EndpointRefused) as error:
            # No model is at hand: what needs none is done all the same, so that only the vectors are left to the next run.
            outcome = await without_vectors.run(replace(work, stages=work.stages - vector_stages), stamps)
            outcome.fatal = outcome.fatal or error
            outcome.finished.clear()
            return outcome
        space = identity.space
        await asyncio.to_thread(ensure_space, database, space)
        work = replace(work, rules=replace(work.rules, model_stamp=space.stamp))
        runner = ChapterRunner(database, embedder, listener=listener, watch=watch, settings=settings, space=space)
        async with sharing(embedder, database):
            return await runner.run(work, stamps)


async def _identify(embedder: Embedder, watch: RunWatch, patience_seconds: float) -> ModelIdentity:
    """Ask which model answers; a server that has worked before and is away now gets so long to come back."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_seconds
    told = False
    while True:
        try:
            return await embedder.identify()
        except EndpointUnavailable as error:
            if loop.time() + _ASK_AGAIN_SECONDS > until:
                raise
            if not told:
                told = True
                watch.waits_for_server(error, until - loop.time(), embedder.stats().endpoints)
        await asyncio.sleep(_ASK_AGAIN_SECONDS)


def _files(settings: Settings, database: Database, work: Work, outcome: Outcome, listener: Listener) -> None:
    """Rewrite every domain whose files are due, once, then stamp and report the chapters that waited for it."""
    try:
        report = render_due(database, settings.ministers_dir, None)
    except EraError as error:
        outcome.fatal = outcome.fatal or error
        return
    outcome.receipt.count(
        "minister_files",
        stored=report.files_written,
        unchanged=report.files_unchanged,
        removed=len(report.domains_removed),
    )
    set_stamp(database, "minister_files", outcome.files_due)
    if "minister_files" in work.selected:
        found = chapter_domains(database, list(outcome.files_due))
        for key in sorted(outcome.files_due):
            metadata = files_metadata(settings.ministers_dir, found.get(key, {}))
            listener.stages_done([StageDone(stage="minister_files", partition_key=key, metadata=metadata)])
