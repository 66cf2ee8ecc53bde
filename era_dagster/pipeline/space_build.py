"""Builds an embedding space beside the live one from stored texts: no book is read, nothing is cut or extracted anew.

Through the same embedder and cache as an ingest, chapter by chapter, each in one transaction: a build that is killed goes
on where it was. It ends when no chapter is due, so what an ingest changed meanwhile is caught up.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from era_dagster.domain.errors import ConfigurationError, EraError
from era_dagster.domain.space import Space
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.factory import open_embedder
from era_dagster.pipeline.report import dead_texts
from era_dagster.pipeline.sharing import sharing
from era_dagster.settings import Settings, configured_model
from era_dagster.storage.cache import PostgresVectorCache
from era_dagster.storage.database import Database
from era_dagster.storage.indexes import build_vector_indexes, drop_indexes_before_load, vacuum_space
from era_dagster.storage.space_register import RegisteredSpace, list_spaces, space_beside, working_on
from era_dagster.storage.space_rows import (
    ChapterTexts,
    due_chapters,
    remove_space_chapter,
    stored_texts,
    write_space_chapter,
)
from era_dagster.storage.spaces import attach_domain_table

T = TypeVar("T")
_TEXTS_PER_CHAPTER = 8
_MOST_CHAPTERS_IN_FLIGHT = 64


@dataclass(slots=True, kw_only=True)
class BuildReport:
    """What a build did. `chapters` were written of `chapters_due` (more than once when an ingest changed them
    meanwhile); `texts` were embedded or found in the cache, `dead` were refused by the model (text, reason)."""

    space: RegisteredSpace | None = None
    chapters_due: int = 0
    chapters: int = 0
    chapters_removed: int = 0
    texts: int = 0
    from_cache: int = 0
    dead: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    requests: int = 0
    indexes: list[str] = field(default_factory=list[str])
    seconds: float = 0.0


Progress = Callable[[BuildReport], None]


def build_space(
    settings: Settings,
    database: Database,
    *,
    on_progress: Progress = lambda report: None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> BuildReport:
    """Bring the space of the configured model, beside the live one, up to date with the stored texts.

    With no model configured the one space that is being built is gone on with. Raises `ConfigurationError` when it is
    open which model is meant, or it is the live one; `TransientError` when another process builds this space; and what
    the embedding server's or the database's trouble calls for: then everything written so far is kept.
    """
    known = _known_model(settings, database)
    report = BuildReport()
    started = time.monotonic()
    try:
        with ExitStack() as working:
            space = asyncio.run(_build(settings, database, known, report, on_progress, transport, working))
            # Still the only one at work here, so that nobody promotes a space whose index is half built. Not in a thread of the
            # event loop, where Ctrl-C would wait for minutes until an index is done.
            report.indexes = build_vector_indexes(database, schema=space.schema)
            vacuum_space(database, schema=space.schema)
    finally:
        report.seconds = time.monotonic() - started
    report.space = next(found for found in list_spaces(database) if found.space_id == space.space_id)
    return report


def _known_model(settings: Settings, database: Database) -> Space | None:
    if configured_model(settings) is not None:
        return None
    building = [found for found in list_spaces(database) if found.state == "building"]
    if len(building) != 1:
        raise ConfigurationError(
            "Which model shall the new space be of? "
            + (f"{len(building)} are being built." if building else "None is configured."),
            hint="Name it with --model (and --provider, --url), or by ERA_EMBEDDING_MODEL.",
        )
    return building[0].space


async def _build(
    settings: Settings,
    database: Database,
    known: Space | None,
    report: BuildReport,
    on_progress: Progress,
    transport: httpx.AsyncBaseTransport | None,
    working: ExitStack,
) -> RegisteredSpace:
    """Fill the space; that nobody else works on it lasts until `working` is closed."""
    async with open_embedder(
        settings, known=known, cache=lambda model: PostgresVectorCache(database, model=model), transport=transport
    ) as embedder:
        space = space_beside(database, (await embedder.identify()).space)
        working.enter_context(working_on(database, space.space_id))
        builder = _Builder(database, embedder, space, settings, report, on_progress)
        async with sharing(embedder, database):
            await builder.run()
    return space


class _Builder:
    """Works off what is due, round after round, until a round finds nothing new."""

    def __init__(
        self,
        database: Database,
        embedder: Embedder,
        space: RegisteredSpace,
        settings: Settings,
        report: BuildReport,
        on_progress: Progress,
    ) -> None:
        self._database = database
        self._embedder = embedder
        self._space = space
        self._report = report
        self._on_progress = on_progress
        self._in_flight = min(_MOST_CHAPTERS_IN_FLIGHT, max(4, settings.queue_limit // _TEXTS_PER_CHAPTER))
        self._threads = ThreadPoolExecutor(settings.store_workers, thread_name_prefix="era-space")
        self._domains: set[str] = set()
        self._domains_lock = asyncio.Lock()
        self._failure: EraError | None = None

    async def run(self) -> None:
        """Raises the first error that concerns the whole build, after what was under way has ended."""
        try:
            # A chapter whose texts were tried and are dead stays due; it is tried once a build.
            tried: dict[str, bytes] = {}
            while True:
                due = await self._in_thread(lambda: due_chapters(self._database, self._space.space_id))
                todo = {key: fingerprint for key, fingerprint in due.write.items() if tried.get(key) != fingerprint}
                if not todo and not due.remove:
                    return
                tried |= todo
                self._report.chapters_due += len(todo)
                await self._in_thread(lambda todo=todo: self._make_way(len(todo)))
                await self._remove(due.remove)
                await self._write(todo)
                if self._failure is not None:
                    raise self._failure
        finally:
            self._threads.shutdown(wait=True)

    def _make_way(self, chapters: int) -> None:
        drop_indexes_before_load(self._database, chapters=chapters, schema=self._space.schema)

    async def _remove(self, keys: list[str]) -> None:
        for key in keys:
            await self._in_thread(lambda key=key: remove_space_chapter(self._database, self._space.space_id, key))
            self._report.chapters_removed += 1

    async def _write(self, todo: Mapping[str, bytes]) -> None:
        waiting = iter(todo)

        async def worker() -> None:
            for key in waiting:
                if self._failure is not None:
                    return
                try:
                    await self._one(key)
                except EraError as error:
                    self._failure = self._failure or error
                self._on_progress(self._report)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._in_flight, len(todo))):
                group.create_task(worker())

    async def _one(self, key: str) -> None:
        chapter = await self._in_thread(lambda: stored_texts(self._database, key))
        if chapter is None:
            return
        await self._attach_domains(chapter)
        texts = chapter.texts
        embedded = await self._embedder.embed(texts)
        dead = dead_texts(texts, embedded)
        written = await self._in_thread(
            lambda: write_space_chapter(self._database, self._space.space_id, chapter, embedded.vectors, dead)
        )
        if not written:
            return
        self._report.chapters += 1
        self._report.texts += len(texts)
        self._report.from_cache += embedded.from_cache
        self._report.requests = self._embedder.stats().requests
        self._report.dead += ((letter.text, letter.message) for letter in dead)

    async def _attach_domains(self, chapter: ChapterTexts) -> None:
        wanted = {domain for entry in chapter.entries for domain in entry.domains}
        async with self._domains_lock:
            for domain in sorted(wanted - self._domains):
                await self._in_thread(
                    lambda domain=domain: attach_domain_table(self._database, self._space.schema, domain)
                )
                self._domains.add(domain)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
