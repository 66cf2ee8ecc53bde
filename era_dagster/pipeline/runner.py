"""Takes a batch of chapters from their files to the tables: read, clean, chunk, embed and store overlap, chapter by chapter.

Knows neither Dagster nor the terminal: a `Listener` hears what was finished. Memory is bounded by the number of chapters
in flight and the embedder's queue. A chapter that fails is named and left; trouble that concerns every chapter (the
embedding server, the database) ends the run with everything stored so far kept.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from era_dagster.domain.chunking import cut_chunks
from era_dagster.domain.cleaning import clean_chapter
from era_dagster.domain.doctrine import Chapter, Chunk, SourceChapter
from era_dagster.domain.errors import (
    BadVectors,
    ChaptersFailed,
    ConfigurationError,
    CorruptInput,
    EndpointRefused,
    EraError,
    PermanentError,
    StorageError,
    TransientError,
)
from era_dagster.domain.space import Space
from era_dagster.domain.stages import STAGES, Stage, StampRules, stale_stages
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.report import EmbedStats
from era_dagster.intake.books import BookShelf
from era_dagster.pipeline.receipt import Receipt
from era_dagster.pipeline.report import ChapterVectors, count_chapter, dead_texts, stage_metadata
from era_dagster.pipeline.watch import RunReport, RunWatch
from era_dagster.settings import Settings
from era_dagster.storage.chapters import (
    ChapterWrite,
    retire_chapter,
    write_chapter,
)
from era_dagster.storage.database import Database
from era_dagster.storage.dead_letters import texts_given_up
from era_dagster.storage.drops import KnownChapter, find_chapters
from era_dagster.storage.spaces import ensure_domain_tables

T = TypeVar("T")
# One chapter of the user's corpus holds about 14 texts; more chapters than this in flight only cost memory.
_TEXTS_PER_CHAPTER = 8
_MOST_CHAPTERS_IN_FLIGHT = 64
_PROGRESS_SECONDS = 0.2
_TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDone:
    """One stage of one chapter is true now; `metadata` holds its key numbers, JSON-ready."""

    stage: Stage
    partition_key: str
    metadata: Mapping[str, Any]


class Listener(Protocol):
    """Hears what the runner finishes. Called from the event loop's thread; must return quickly and never raise."""

    def stages_done(self, done: Sequence[StageDone]) -> None:
        """These stages of one chapter are stored."""
        ...

    def progress(self, receipt: Receipt, total_chapters: int, stats: EmbedStats | None) -> None:
        """The totals changed; `stats` are the embedder's, when there is one."""
        ...

    def whole_refreshed(self, totals: Mapping[str, int | str]) -> None:
        """The totals and vector indexes of the whole are up to date with what is stored now; their key numbers."""
        ...

    def run_ended(self, report: RunReport) -> None:
        """The work is over, well or not; called once, from the thread that started it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one run does: which chapters, which stages (upstream included), and which of them are to be reported.

    `selected` are the stages the user asked for; other stages are reported only where they had to be done anew.
    """

    chapters: Sequence[KnownChapter]
    stages: frozenset[Stage]
    selected: frozenset[Stage]
    rules: StampRules
    run_id: str


@dataclass(slots=True)
class Outcome:
    """What a run left behind for its last step: the receipt, the chapters that ended well, and those that wait for the
    files of their domains (key to stamp)."""

    receipt: Receipt
    finished: list[str] = field(default_factory=list[str])
    files_due: dict[str, str] = field(default_factory=dict[str, str])
    fatal: EraError | None = None


class ChapterRunner:
    """Runs one `Work`. `embedder`, and `space`, whose vectors it makes, are None when no stage needs vectors."""

    def __init__(
        self,
        database: Database,
        embedder: Embedder | None,
        *,
        listener: Listener,
        watch: RunWatch,
        settings: Settings,
        space: Space | None,
    ) -> None:
        self._watch = watch
        self._database = database
        self._embedder = embedder
        self._listener = listener
        self._space = space
        self._in_flight = min(_MOST_CHAPTERS_IN_FLIGHT, max(4, settings.queue_limit // _TEXTS_PER_CHAPTER))
        self._shelf = BookShelf()
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="era-read")
        self._writers = ThreadPoolExecutor(settings.store_workers, thread_name_prefix="era-store")
        self._next_progress = 0.0
        self._domains_ready: set[tuple[str, str]] = set()
        self._domains_lock = asyncio.Lock()

    async def run(self, work: Work, stored: Mapping[str, Mapping[str, str | None]]) -> Outcome:
        """Do the work; returns what is left to do for files and events. Never raises for a chapter's own trouble.

        `stored` holds the stamps of the chapters that are stored already, by key and stage.
        `Outcome.fatal` is set when something stopped the whole run; the caller raises it after the last step.
        """
        outcome = Outcome(receipt=Receipt(chapters_seen=len(work.chapters)))
        started = asyncio.get_running_loop().time()
        self._watch.loop_started()
        try:
            await self._run(work, stored, outcome)
        finally:
            self._readers.shutdown(wait=True)
            self._writers.shutdown(wait=True)
            outcome.receipt.seconds = asyncio.get_running_loop().time() - started
            self._progress(outcome.receipt, len(work.chapters))
        return outcome

    async def _run(self, work: Work, stored: Mapping[str, Mapping[str, str | None]], outcome: Outcome) -> None:
        # Chapters of one book follow each other, so that its file is read once.
        ordered = sorted(work.chapters, key=lambda chapter: (chapter.source_path, chapter.partition_key))
        waiting = iter(ordered)
        queue_closed = asyncio.Event()

        async def worker() -> None:
            for chapter in waiting:
                if queue_closed.is_set():
                    return
                try:
                    await self._one(chapter, stored.get(chapter.partition_key), work, outcome)
                    outcome.finished.append(chapter.partition_key)
                except EraError as error:
                    outcome.receipt.chapters_failed[chapter.partition_key] = str(error)
                    self._watch.chapter_failed(chapter.partition_key, error)
                    if _concerns_every_chapter(error):
                        outcome.fatal = outcome.fatal or error
                        queue_closed.set()
                self._tell_progress(outcome.receipt, len(work.chapters))

        ticker = asyncio.create_task(self._tick(outcome.receipt, len(work.chapters)))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._in_flight, len(ordered))):
                    group.create_task(worker())
        finally:
            ticker.cancel()

    async def _tick(self, receipt: Receipt, total: int) -> None:
        """Totals and controllers are told while no chapter ends, too: most of all when the server is away."""
        while True:
            self._tell_progress(receipt, total)
            await asyncio.sleep(_TICK_SECONDS)

    async def _one(
        self, known: KnownChapter, stamps: Mapping[str, str | None] | None, work: Work, outcome: Outcome
    ) -> None:
        key = known.partition_key
        if not known.gone:
            try:
                await self._bring(known, stamps, work, outcome)
                return
            except CorruptInput:
                # Another run may have seen meanwhile that it left: then there is nothing wrong.
                if not await self._in_thread(self._writers, lambda: _has_left(self._database, key)):
                    raise
        if await self._in_thread(self._writers, lambda: retire_chapter(self._database, key)) is not None:
            outcome.receipt.chapters_retired += 1

    async def _bring(
        self, known: KnownChapter, stamps: Mapping[str, str | None] | None, work: Work, outcome: Outcome
    ) -> None:
        expected = work.rules.stamps(known.content_hash)
        stale = stale_stages(work.stages, expected, stamps)
        if not stale - {"minister_files"}:
            outcome.receipt.chapters_unchanged += 1
            if "minister_files" in stale:
                outcome.files_due[known.partition_key] = expected["minister_files"]
            self._report(known.partition_key, work.selected - stale, {"unchanged": True})
            return
        started = asyncio.get_running_loop().time()
        source, file_hash = await self._in_thread(
            self._readers, lambda: self._shelf.chapter(known.source_path, known.partition_key)
        )
        chapter, chunks = await self._in_thread(self._readers, lambda: _prepare(source, work))
        if chunks is not None and "chunks" in stale:
            self._watch.chunks_cut([len(chunk.text) for chunk in chunks])
        expected = work.rules.stamps(chapter.content_hash)
        await self._register_domains(chapter)
        await self._store(known, chapter, chunks, file_hash, expected, stale, work, outcome)
        self._watch.chapter_stored(chapter.partition_key, asyncio.get_running_loop().time() - started)

    async def _store(
        self,
        known: KnownChapter,
        chapter: Chapter,
        chunks: tuple[Chunk, ...] | None,
        file_hash: bytes,
        expected: Mapping[Stage, str],
        stale: frozenset[Stage],
        work: Work,
        outcome: Outcome,
    ) -> None:
        vectors = ChapterVectors()
        if chunks is not None and "embeddings" in work.stages:
            vectors = await self._embed(chapter, chunks)
        trouble = await self._trouble_of_all(chapter.partition_key, vectors)
        done = work.stages - {"minister_files"}
        if trouble is not None:
            done -= {"embeddings", "vector_tables"}
        with_tables = "vector_tables" in work.stages
        written = await self._in_thread(
            self._writers,
            lambda: write_chapter(
                self._database,
                ChapterWrite(
                    chapter=chapter,
                    path=known.source_path,
                    file_hash=file_hash,
                    run_id=work.run_id,
                    space=self._space,
                    chunks=chunks,
                    chunk_vectors=vectors.chunks,
                    entry_vectors=vectors.entries,
                    cached=vectors.cached,
                    write_vector_tables=with_tables,
                    dead=vectors.dead,
                    stamps={stage: expected[stage] for stage in done},
                ),
                # Another run may have retired it meanwhile: nobody would ever remove what came after that.
                registered_only=True,
            ),
        )
        if "minister_files" in work.stages:
            outcome.files_due[chapter.partition_key] = expected["minister_files"]
        count_chapter(outcome.receipt, chapter, chunks, vectors, written, with_tables=with_tables)
        reported = (work.selected | stale) & done
        self._report(chapter.partition_key, reported, stage_metadata(chapter, chunks, vectors, written, self._space))
        if trouble is not None:
            raise trouble
        outcome.receipt.chapters_stored += 1

    async def _trouble_of_all(self, key: str, vectors: "ChapterVectors") -> PermanentError | None:
        """What there is to tell of a chapter none of whose texts got a vector; nothing when somebody gave them all up for
        these failures: then it is as finished as it will be."""
        if not vectors.texts or len(vectors.dead) < vectors.texts:
            return None
        given_up = await self._in_thread(self._writers, lambda: texts_given_up(self._database, key, vectors.dead))
        left = [text for text in vectors.dead if text.text not in given_up]
        if not left:
            return None
        return PermanentError(
            f"None of the {vectors.texts} texts of {key} could be embedded: {left[0].message}",
            hint="Mend the cause, then run again.",
        )

    async def _register_domains(self, chapter: Chapter) -> None:
        if not chapter.entries:
            return
        wanted = {(name.slug, name.spelling) for name in chapter.domains}
        async with self._domains_lock:
            new = wanted - self._domains_ready
            if new:
                await self._in_thread(self._writers, lambda: ensure_domain_tables(self._database, sorted(new)))
                self._domains_ready |= new

    async def _embed(self, chapter: Chapter, chunks: Sequence[Chunk]) -> "ChapterVectors":
        if self._embedder is None:
            raise ConfigurationError("Vectors are wanted and no embedding model is open.")
        texts = [chunk.text for chunk in chunks] + [entry.text for entry in chapter.entries]
        if not texts:
            return ChapterVectors(chunks=[], entries=[])
        report = await self._embedder.embed(texts)
        for failure in report.failures:
            self._watch.text_failed(chapter.partition_key, failure)
        return ChapterVectors(
            chunks=list(report.vectors[: len(chunks)]),
            entries=list(report.vectors[len(chunks) :]),
            dead=dead_texts(texts, report),
            texts=len(texts),
            report=report,
        )

    def _report(self, key: str, stages: Collection[Stage], metadata: Mapping[str, Any]) -> None:
        self._listener.stages_done(
            [
                StageDone(stage=stage, partition_key=key, metadata=metadata.get(stage, metadata))
                for stage in STAGES
                if stage in stages
            ]
        )

    def _tell_progress(self, receipt: Receipt, total: int) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_progress:
            self._next_progress = now + _PROGRESS_SECONDS
            self._progress(receipt, total)

    def _progress(self, receipt: Receipt, total: int) -> None:
        stats = None if self._embedder is None else self._embedder.stats()
        if stats is not None:
            receipt.embedding_requests = stats.requests
            receipt.embedding_retries = stats.retries
            receipt.texts_embedded = stats.embedded
            receipt.texts_from_cache = stats.from_cache
            receipt.texts_failed = stats.failed
            receipt.tokens = stats.tokens
            receipt.embedding_refusals = stats.refusals
            receipt.request_seconds = {
                "p50": stats.latency.p50_seconds,
                "p95": stats.latency.p95_seconds,
                "p99": stats.latency.p99_seconds,
            }
        self._watch.progress(receipt, stats)
        self._listener.progress(receipt, total, stats)

    async def _in_thread(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def raise_failures(outcome: Outcome) -> None:
    """Raise what the run has to tell: the trouble that stopped it, else the chapters that could not be finished."""
    if outcome.fatal is not None:
        raise outcome.fatal
    failed = outcome.receipt.chapters_failed
    if failed:
        named = "; ".join(f"{key}: {reason}" for key, reason in sorted(failed.items())[:10])
        more = f"; and {len(failed) - 10} more" if len(failed) > 10 else ""
        seen = outcome.receipt.chapters_seen
        others = ", the others are stored" if len(failed) < seen else ""
        raise ChaptersFailed(f"{len(failed)} of {seen} chapters failed{others}: {named}{more}", failures=failed)


def _has_left(database: Database, key: str) -> bool:
    """Whether a look at the drop folder, by any run, has missed the chapter."""
    return all(chapter.gone for chapter in find_chapters(database, [key]))


def _concerns_every_chapter(error: EraError) -> bool:
    """Whether it would end every other chapter too; `BadVectors` that are raised are those of another model."""
    return isinstance(error, TransientError | ConfigurationError | EndpointRefused | BadVectors | StorageError)


def _prepare(source: SourceChapter, work: Work) -> tuple[Chapter, tuple[Chunk, ...] | None]:
    chapter = clean_chapter(source, work.rules.aliases)
    return chapter, cut_chunks(chapter.text, work.rules.chunk_rules) if "chunks" in work.stages else None
