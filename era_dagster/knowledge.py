"""The knowledge base as other programs use it: look up by vector or by text, and the names a persona calls.

An edge like `cli`: with no settings given it reads them from the environment. Imports no Dagster, and the embedding
code only when a text must be embedded. Reading only; the SQL is `storage.search`.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from era_dagster.domain.doctrine import CATEGORIES
from era_dagster.domain.domains import fold_domain
from era_dagster.domain.errors import BadVectors, ConfigurationError
from era_dagster.settings import Settings, configured_model, load_settings
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.migrations import migrate
from era_dagster.storage.search import OtherModel, SearchHit, search_chunks, search_entries
from era_dagster.storage.spaces import Space, check_configured, check_same_model, live_space

if TYPE_CHECKING:
    from era_dagster.embedding.embedder import Embedder

Within = Literal["entries", "chunks"]
Vector = Sequence[float] | npt.NDArray[np.floating]

# Somebody waits for the answer: a dead embedding server is said after seconds, not after a run's patience.
_LONGEST_RETRY_SECONDS = 10.0
_JUDGED_ENTRIES = 20
# A switch of the model between embedding a text and looking its vector up is met by embedding it again; two in a row
# within one search are an accident that deserves its error.
_SWITCHES_PER_SEARCH = 2


class KnowledgeBase:
    """Look-ups in one database; `with KnowledgeBase.open() as base: ...`, or `open()` and `close()`.

    Safe to use from several threads, and inside a running event loop (which it blocks: there use `AsyncKnowledgeBase`).
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._queries = _QueryEmbedder(settings)
        self._vectors_of: Space | None = None

    @classmethod
    def open(cls, settings: Settings | None = None, *, url: str | None = None) -> Self:
        """Connect to the database at `url`, or to the one `settings` (or else the environment) names.

        The embedded server is started, and the schema made, where need be. Raises `ConfigurationError` for a wrong
        setting, `DatabaseUnavailable` when the database cannot be reached.
        """
        settings = settings or load_settings(os.environ)
        url = url or database_url(settings)
        migrate(url)
        database = Database(url, pool_size=settings.database_pool)
        database.open()
        return cls(database, settings)

    def close(self) -> None:
        """Close all connections; the object cannot be used afterwards."""
        self._queries.close()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def lookup(
        self,
        query_embedding: Vector,
        domain: str | None = None,
        top_k: int = 5,
        category: str | None = None,
        book: str | None = None,
        within: Within = "entries",
    ) -> list[SearchHit]:
        """The `top_k` texts nearest to `query_embedding`, best first; `score` is the cosine similarity.

        `domain` in any spelling, `book` by its name or slug; `within` is "entries" (doctrine) or "chunks" (chapter
        text, which has no category). An unknown domain or book, or an empty database, gives an empty list. Raises
        `ConfigurationError` for a vector that cannot be compared with the stored ones.

        A vector does not say which model made it: it is taken to be of the model that was live at the first look-up by
        vector. Once another is promoted, `OtherModel` (a `ConfigurationError`) says so instead of comparing what cannot
        be compared; embed with the new model then, and open the knowledge base anew. `search` follows by itself.
        """
        return self._lookup(query_embedding, domain, top_k, category, book, within, made_by=self._expected_model())

    def _expected_model(self) -> Space | None:
        if self._vectors_of is None:
            live = live_space(self._database)
            check_configured(live, model=configured_model(self._settings))
            self._vectors_of = live
        return self._vectors_of

    def _lookup(
        self,
        query_embedding: Vector,
        domain: str | None,
        top_k: int,
        category: str | None,
        book: str | None,
        within: Within,
        *,
        made_by: Space | None,
    ) -> list[SearchHit]:
        slug = None if domain is None else _slug(domain)
        if within not in ("entries", "chunks"):
            raise ConfigurationError(f"Nothing is stored under {within!r}.", hint="Use 'entries' or 'chunks'.")
        if within == "chunks" and category is not None:
            raise ConfigurationError("Chunks of text have no category.", hint="Search the entries, or leave it out.")
        with self._database.connection() as connection:
            if within == "chunks":
                return search_chunks(connection, query_embedding, domain=slug, book=book, top_k=top_k, made_by=made_by)
            return search_entries(
                connection, query_embedding, domain=slug, category=category, book=book, top_k=top_k, made_by=made_by
            )

    def search(
        self,
        text: str,
        domain: str | None = None,
        top_k: int = 5,
        category: str | None = None,
        book: str | None = None,
        within: Within = "entries",
    ) -> list[SearchHit]:
        """As `lookup`, for a text: it is embedded as a query by the model whose vectors the database holds, also when
        that changes between two searches or during one.

        Raises `ConfigurationError` for a blank text and when the settings name another model, and what the embedding
        server's trouble calls for (`EndpointUnavailable`, `EndpointRefused`, ...).
        """
        if not text.strip():
            raise ConfigurationError("The text to search for is blank.", hint="Pass a question or a sentence.")
        for switches_left in reversed(range(_SWITCHES_PER_SEARCH + 1)):
            space = live_space(self._database)
            if space is None:
                return []
            vector, made_by = self._queries.embed(text, space)
            check_same_model(space, made_by)
            try:
                return self._lookup(vector, domain, top_k, category, book, within, made_by=made_by)
            except OtherModel:
                if not switches_left:
                    raise
        return []


class AsyncKnowledgeBase:
    """`KnowledgeBase` for event loops; `async with AsyncKnowledgeBase.open() as base: ...`.

    The work is done in threads, so that the loop goes on; the connection is made at the first look-up.
    """

    def __init__(self, connect: Callable[[], KnowledgeBase]) -> None:
        self._connect = connect
        self._opened: KnowledgeBase | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, settings: Settings | None = None, *, url: str | None = None) -> Self:
        """As `KnowledgeBase.open`; its errors come from the first look-up."""
        return cls(lambda: KnowledgeBase.open(settings, url=url))

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def lookup(
        self,
        query_embedding: Vector,
        domain: str | None = None,
        top_k: int = 5,
        category: str | None = None,
        book: str | None = None,
        within: Within = "entries",
    ) -> list[SearchHit]:
        """See `KnowledgeBase.lookup`."""
        return await asyncio.to_thread(
            lambda: self._base().lookup(query_embedding, domain, top_k, category, book, within)
        )

    async def search(
        self,
        text: str,
        domain: str | None = None,
        top_k: int = 5,
        category: str | None = None,
        book: str | None = None,
        within: Within = "entries",
    ) -> list[SearchHit]:
        """See `KnowledgeBase.search`."""
        return await asyncio.to_thread(lambda: self._base().search(text, domain, top_k, category, book, within))

    def _base(self) -> KnowledgeBase:
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    def _close(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None


def semantic_similarity_lookup(query_embedding: Vector, domain: str | None, top_k: int = 5) -> list[SearchHit]:
    """The `top_k` doctrine entries of `domain` (None: of all) nearest to `query_embedding`; see `KnowledgeBase.lookup`.

    Uses the process's own knowledge base, opened from the environment at the first call.
    """
    return _shared().lookup(query_embedding, domain, top_k)


def enrich_context_with_doctrine(persona: Any, query_text: str, top_k: int = 3) -> list[SearchHit]:
    """Set `persona.doctrine_context` to the `top_k` entries nearest to `query_text`, and return them.

    A persona with a `domain` looks there alone; where that domain has no entries the context is an empty list. Uses the
    process's own knowledge base.
    """
    hits = _shared().search(query_text, getattr(persona, "domain", None) or None, top_k)
    persona.doctrine_context = hits
    return hits


def judgment_prior_features(query_embedding: Vector, domain: str | None) -> dict[str, float]:
    """What the 20 entries of `domain` nearest to `query_embedding` say for and against, as numbers for a judgment.

    For each category (principles, rules, claims, warnings): `<category>_count`, and the mean and the largest evidence,
    `<category>_mean` and `<category>_max`. The evidence of an entry is its cosine similarity, not below 0; a category
    without entries has none, 0. `prior` is 1 + 0.3 * m * (1 - 2 w), where m is the largest evidence of all and w the
    warnings' share of the evidence's sum: near 1.3 when close entries are all encouragement, near 0.7 when they are all
    warnings, 1 when both weigh the same, when nothing is close, or when the domain has no entries. Uses the process's
    own knowledge base.
    """
    evidence: dict[str, list[float]] = {category: [] for category in CATEGORIES}
    for hit in _shared().lookup(query_embedding, domain, _JUDGED_ENTRIES):
        if hit.category is not None:
            evidence[hit.category].append(min(1.0, max(0.0, hit.score)))
    features: dict[str, float] = {}
    for category, values in evidence.items():
        features[f"{category}_count"] = float(len(values))
        features[f"{category}_mean"] = sum(values) / len(values) if values else 0.0
        features[f"{category}_max"] = max(values, default=0.0)
    total = sum(sum(values) for values in evidence.values())
    largest = max(max(values, default=0.0) for values in evidence.values())
    balance = 1.0 - 2.0 * sum(evidence["warnings"]) / total if total > 0.0 else 0.0
    features["prior"] = 1.0 + 0.3 * largest * balance
    return features


_shared_lock = threading.Lock()
_shared_base: KnowledgeBase | None = None


def _shared() -> KnowledgeBase:
    global _shared_base  # noqa: PLW0603
    with _shared_lock:
        if _shared_base is None:
            _shared_base = KnowledgeBase.open()
            atexit.register(_shared_base.close)
        return _shared_base


def _slug(domain: str) -> str:
    """As at ingestion; a name nothing usable is in has no entries, like the empty slug."""
    name = fold_domain(domain)
    return "" if name is None else name.slug


@dataclass(slots=True, kw_only=True)
class _OpenEmbedder:
    """An open embedder, the space it was opened for, the model it turned out to be, and what closes it.

    `waiting` callers have a text in it; `closing` says that the last of them shall close it.
    """

    embedder: "Embedder"
    asked_for: Space
    made_by: Space
    stack: AsyncExitStack
    waiting: int = 0
    closing: bool = False

    async def close_when_idle(self) -> None:
        """Close it now, or when the last waiting caller has its answer: another model's vector is no loss to them."""
        self.closing = True
        if not self.waiting:
            await self.stack.aclose()


async def _open(settings: Settings, space: Space) -> _OpenEmbedder:
    """Open an embedder for `space`: the one place that knows how that is done."""
    # Imported here: httpx and its like cost a consumer who brings vectors a tenth of a second for nothing.
    from era_dagster.embedding.factory import open_embedder

    check_configured(space, model=configured_model(settings))
    patience = min(settings.retry_budget_seconds, _LONGEST_RETRY_SECONDS)
    async with AsyncExitStack() as stack:
        embedder = await stack.enter_async_context(
            open_embedder(replace(settings, retry_budget_seconds=patience), known=space)
        )
        identity = await embedder.identify()
        return _OpenEmbedder(
            embedder=embedder,
            asked_for=space,
            made_by=Space(
                provider=identity.provider,
                model=identity.model,
                digest=identity.digest,
                dimension=identity.dimension,
                document_prefix=identity.document_prefix,
                query_prefix=identity.query_prefix,
            ),
            stack=stack.pop_all(),
        )


class _QueryEmbedder:
    """An embedder that stays open on an event loop in a thread of its own, so that any thread can wait for it.

    An event loop per query would open the model or the connections anew each time, and cannot start inside another.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._opening = asyncio.Lock()
        self._opened: _OpenEmbedder | None = None

    def embed(self, text: str, space: Space) -> tuple[npt.NDArray[np.float32], Space]:
        """The vector of `text` as a query, and the model that made it; `space` is the one asked for."""
        return asyncio.run_coroutine_threadsafe(self._embed(text, space), self._running_loop()).result()

    def close(self) -> None:
        """Close the embedder and end the thread."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._close_embedder(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                started: Future[asyncio.AbstractEventLoop] = Future()
                self._thread = threading.Thread(target=_run_loop, args=(started,), name="era-queries", daemon=True)
                self._thread.start()
                self._loop = started.result()
            return self._loop

    async def _embed(self, text: str, space: Space) -> tuple[npt.NDArray[np.float32], Space]:
        async with self._opening:
            if self._opened is None or self._opened.asked_for != space:
                await self._close_embedder()
                self._opened = await _open(self._settings, space)
            opened = self._opened
            opened.waiting += 1
        try:
            report = await opened.embedder.embed([text], role="query")
        finally:
            opened.waiting -= 1
            if opened.closing and not opened.waiting:
                await opened.stack.aclose()
        vector = report.vectors[0]
        if vector is None:
            raise BadVectors(
                f"The text to search for got no vector: {report.failures[0].message}",
                hint="Search for a shorter or simpler text.",
            )
        return vector, opened.made_by

    async def _close_embedder(self) -> None:
        if self._opened is not None:
            opened, self._opened = self._opened, None
            await opened.close_when_idle()


def _run_loop(started: "Future[asyncio.AbstractEventLoop]") -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        started.set_result(loop)
        loop.run_forever()
