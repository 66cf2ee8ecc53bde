"""The knowledge base as other programs use it: look up by vector or by text, and the names a persona calls.

An edge like `cli`: with no settings given it reads them from the environment. Reading only; the SQL is `storage.search`.
Imports no Dagster. What is heavy (numpy, the database's driver, the embedding code) is imported in the functions that need
it: a program pays for it when it opens the knowledge base, not when it starts.
"""

from __future__ import annotations

import atexit
import operator
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from era_dagster.domain.domains import fold_domain
from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.judgment import judgment_features
from era_dagster.questions import Questions, answer_of, awaited_answer, next_step
from era_dagster.settings import Settings, configured_model, load_settings
from era_dagster.storage.access import Line, Opening, Use

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from era_dagster.domain.space import Space
    from era_dagster.embedding.queries import Answer
    from era_dagster.questions import Steps
    from era_dagster.storage.database import Database
    from era_dagster.storage.search import SearchHit

    Vector = Sequence[float] | npt.NDArray[np.floating]

Within = Literal["entries", "chunks"]
T = TypeVar("T")

# Somebody waits for the answer: a database that is away, or a table that stays locked, is said after seconds.
_LONGEST_WAIT_SECONDS = 5.0
_JUDGED_ENTRIES = 20


class KnowledgeBase:
    """Look-ups in one database; `with KnowledgeBase.open() as base: ...`, or `open()` and `close()`.

    Safe to use from several threads, and inside a running event loop (which it blocks: there use `AsyncKnowledgeBase`).
    All methods raise `DatabaseUnavailable` while the database is away or somebody keeps a table locked, after 5 seconds (20 where
    it falls silent in the middle of one), and work again when that is over; and `ConfigurationError` once it is closed, and in a
    process forked from the one that opened it, which must open its own.
    """

    def __init__(self, database: Database, settings: Settings, aliases: Mapping[str, str]) -> None:
        self._opened = database
        self._use = Use()
        self._settings = settings
        self._aliases = aliases
        self._questions = Questions(database, settings, self._use)
        self._vectors_of: Space | None = None

    @classmethod
    def open(cls, settings: Settings | None = None, *, url: str | None = None) -> Self:
        """Connect to the database at `url`, or to the one `settings` (or else the environment) names.

        The embedded server is started, and the schema made, where need be; for it, variables that tell libpq of another
        one (`PGSERVICE`, `PGOPTIONS`) leave the environment of this process. Raises `ConfigurationError` for a wrong
        setting, `DatabaseUnavailable` when the database cannot be reached.
        """
        from era_dagster.intake.aliases import domain_aliases
        from era_dagster.storage.database import Database, database_url
        from era_dagster.storage.migrations import migrate

        settings = settings or load_settings(os.environ)
        aliases = domain_aliases(settings)
        url = url or database_url(settings)
        migrate(url)
        database = Database(url, pool_size=settings.database_pool, longest_wait_seconds=_LONGEST_WAIT_SECONDS)
        database.open()
        return cls(database, settings, aliases)

    def close(self) -> None:
        """Close all connections; the object cannot be used afterwards. Searches under way fail, look-ups end."""
        if not self._use.is_ours:
            return  # a forked process has but copies of the connections
        self._use.closed = True
        self._questions.close()
        self._opened.close()

    @property
    def _database(self) -> Database:
        self._use.check()
        return self._opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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

        `domain` in any spelling or by an alias of it, `book` by its name or slug; `within` is "entries" (doctrine) or
        "chunks" (chapter text, which has no category). At most 1,000. An unknown domain or book, a `top_k` below 1, or an
        empty database, gives an empty list. Raises `ConfigurationError` for a vector that cannot be compared with the
        stored ones, and for a `top_k` that is no whole number.

        A vector does not say which model made it: it is taken to be of the model that was live at the first look-up by
        vector. Once another is promoted, `OtherModel` (a `ConfigurationError`) says so instead of comparing what cannot
        be compared; embed with the new model then, and open the knowledge base anew. `search` follows by itself.
        """
        return self._look(query_embedding, domain, top_k, category, book, within, made_by=self._expected_model())

    def _expected_model(self) -> Space | None:
        if self._vectors_of is None:
            from era_dagster.storage.spaces import check_configured, live_space

            live = live_space(self._database)
            check_configured(live, model=configured_model(self._settings))
            self._vectors_of = live
        return self._vectors_of

    def search(
        self,
        text: str,
        domain: str | None = None,
        top_k: int = 5,
        category: str | None = None,
        book: str | None = None,
        within: Within = "entries",
        *,
        hybrid: bool = False,
    ) -> list[SearchHit]:
        """As `lookup`, for a text: it is embedded as a query by the model whose vectors the database holds, also when
        that changes between two searches or during one.

        With `hybrid` the order counts the words of the text too (docs/search.md says when that helps). Raises
        `ConfigurationError` for a blank text and when the settings name another model, and what the embedding server's
        trouble calls for (`EndpointUnavailable`, after 20 seconds at the latest, `EndpointRefused`, ...).
        """
        steps = self._steps(text, domain, top_k, category, book, within, hybrid)
        found = next_step(steps)
        while isinstance(found, Future):
            found = next_step(steps, answer_of(found))
        return found

    def _steps(
        self,
        text: str,
        domain: str | None,
        top_k: int,
        category: str | None,
        book: str | None,
        within: Within,
        hybrid: bool,
    ) -> Steps:
        def look(vector: Vector, made_by: Space, cleaned: str) -> list[SearchHit]:
            words = cleaned if hybrid else None
            return self._look(vector, domain, top_k, category, book, within, words=words, made_by=made_by)

        return self._questions.steps(text, look)

    def semantic_similarity_lookup(
        self, query_embedding: Vector, domain: str | None, top_k: int = 5
    ) -> list[SearchHit]:
        """The `top_k` doctrine entries of `domain` (None: of all) nearest to `query_embedding`; as `lookup`."""
        return self.lookup(query_embedding, domain, top_k)

    def enrich_context_with_doctrine(self, persona: Any, query_text: str, top_k: int = 3) -> list[SearchHit]:
        """Set `persona.doctrine_context` to the `top_k` entries nearest to `query_text`, and return them.

        A persona with a `domain` looks there alone; where that domain has no entries the context is an empty list.
        """
        hits = self.search(query_text, _domain_of(persona), top_k)
        persona.doctrine_context = hits
        return hits

    def judgment_prior_features(self, query_embedding: Vector, domain: str | None) -> dict[str, float]:
        """What the 20 entries of `domain` (None: of all) nearest to `query_embedding` say for and against.

        For each category (principles, rules, claims, warnings) `<category>_count`, and the mean and the largest evidence,
        `<category>_mean` and `<category>_max`; the evidence of an entry is its cosine similarity, not below 0. And `prior`,
        a factor in 0.7 ... 1.3: 1 + 0.3 * m * (1 - 2 * w), where m is the largest evidence of all and w the warnings'
        share of the evidence's sum; 1 when nothing was found (`domain.judgment` says more).
        """
        hits = self.lookup(query_embedding, domain, _JUDGED_ENTRIES)
        return judgment_features((hit.category, hit.score) for hit in hits if hit.category is not None)

    def _look(
        self,
        vector: Vector,
        domain: str | None,
        top_k: int,
        category: str | None,
        book: str | None,
        within: Within,
        *,
        words: str | None = None,
        made_by: Space | None = None,
    ) -> list[SearchHit]:
        if within not in ("entries", "chunks"):
            raise ConfigurationError(f"Nothing is stored under {within!r}.", hint="Use 'entries' or 'chunks'.")
        if within == "chunks" and category is not None:
            raise ConfigurationError("Chunks of text have no category.", hint="Search the entries, or leave it out.")
        from era_dagster.storage.search import search_chunks, search_entries

        try:
            top_k = int(operator.index(top_k))
        except TypeError:
            raise ConfigurationError(
                f"`top_k` is {top_k!r}, and no whole number.", hint="Pass how many texts are wanted at most."
            ) from None
        slug = None if domain is None else self._slug(domain)
        scope = {"domain": slug, "book": book, "top_k": top_k, "words": words, "made_by": made_by}
        with self._database.connection() as connection:
            if within == "chunks":
                return search_chunks(connection, vector, **scope)
            return search_entries(connection, vector, category=category, **scope)

    def _slug(self, domain: str) -> str:
        """As at ingestion; a name nothing usable is in has no entries, like the empty slug."""
        name = fold_domain(domain)
        return "" if name is None else self._aliases.get(name.slug, name.slug)


def _domain_of(persona: Any) -> str | None:
    return getattr(persona, "domain", None) or None


class AsyncKnowledgeBase:
    """`KnowledgeBase` for event loops: `async with AsyncKnowledgeBase.open() as base: ...`; the same methods, awaited.

    The database is asked in threads, as many as the pool has connections, so that the loop goes on (docs/adr/0012). A look-up
    that is cancelled gives up its place: its question is dropped, and what the database is at ends in its thread.
    """

    def __init__(self, settings: Settings, url: str | None) -> None:
        self._settings = settings
        self._url = url
        self._use = Use()
        self._line = Line(settings.database_pool, patience_seconds=_LONGEST_WAIT_SECONDS)
        self._opening = Opening(lambda: self._line.threads.submit(KnowledgeBase.open, self._settings, url=self._url))

    @classmethod
    def open(cls, settings: Settings | None = None, *, url: str | None = None) -> Self:
        """As `KnowledgeBase.open`; it connects, and raises what that raises, at `async with` or at the first look-up."""
        return cls(settings or load_settings(os.environ), url)

    async def close(self) -> None:
        """Close all connections; the object cannot be used afterwards. Searches under way fail, look-ups are waited for."""
        import asyncio

        self._use.closed = True
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Self:
        await self._run(lambda base: base)
        return self

    async def __aexit__(self, *_: object) -> None:
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
        return await self._run(lambda base: base.lookup(query_embedding, domain, top_k, category, book, within))

    async def search(
        self,
        text: str,
        domain: str | None = None,
        top_k: int = 5,
        category: str | None = None,
        book: str | None = None,
        within: Within = "entries",
        *,
        hybrid: bool = False,
    ) -> list[SearchHit]:
        """See `KnowledgeBase.search`."""

        def begun(base: KnowledgeBase) -> tuple[Steps, Future[Answer] | list[SearchHit]]:
            steps = base._steps(text, domain, top_k, category, book, within, hybrid)
            return steps, next_step(steps)

        steps, found = await self._run(begun)
        while isinstance(found, Future):
            answer = await awaited_answer(found)  # in no thread, so that no other look-up waits for its end
            found = await self._run(lambda _, answer=answer: next_step(steps, answer))
        return found

    async def semantic_similarity_lookup(
        self, query_embedding: Vector, domain: str | None, top_k: int = 5
    ) -> list[SearchHit]:
        """See `KnowledgeBase.semantic_similarity_lookup`."""
        return await self._run(lambda base: base.semantic_similarity_lookup(query_embedding, domain, top_k))

    async def enrich_context_with_doctrine(self, persona: Any, query_text: str, top_k: int = 3) -> list[SearchHit]:
        """See `KnowledgeBase.enrich_context_with_doctrine`."""
        hits = await self.search(query_text, _domain_of(persona), top_k)
        persona.doctrine_context = hits
        return hits

    async def judgment_prior_features(self, query_embedding: Vector, domain: str | None) -> dict[str, float]:
        """See `KnowledgeBase.judgment_prior_features`."""
        return await self._run(lambda base: base.judgment_prior_features(query_embedding, domain))

    async def _run(self, work: Callable[[KnowledgeBase], T]) -> T:
        import asyncio

        self._use.check()
        # Waited for in a thread: the opening was handed to one before.
        opening = self._opening.latest()
        return await asyncio.wrap_future(self._line.submit(lambda: work(opening.result())))

    def _close(self) -> None:
        if not self._use.is_ours:
            return
        self._line.threads.shutdown()
        if self._opening.begun is not None and self._opening.begun.exception() is None:
            self._opening.begun.result().close()


def semantic_similarity_lookup(query_embedding: Vector, domain: str | None, top_k: int = 5) -> list[SearchHit]:
    """See `KnowledgeBase.semantic_similarity_lookup`; on the process's own knowledge base.

    It is opened from the environment at the first call (in a forked process too), and closed when the process ends.
    """
    return _shared().semantic_similarity_lookup(query_embedding, domain, top_k)


def enrich_context_with_doctrine(persona: Any, query_text: str, top_k: int = 3) -> list[SearchHit]:
    """See `KnowledgeBase.enrich_context_with_doctrine`; on the process's own knowledge base."""
    return _shared().enrich_context_with_doctrine(persona, query_text, top_k)


def judgment_prior_features(query_embedding: Vector, domain: str | None) -> dict[str, float]:
    """See `KnowledgeBase.judgment_prior_features` (the formula of `prior`); on the process's own knowledge base."""
    return _shared().judgment_prior_features(query_embedding, domain)


def _shared() -> KnowledgeBase:
    return _shared_opening.latest().result()


def _begin_shared() -> Future[KnowledgeBase]:
    begun: Future[KnowledgeBase] = Future()
    # No pool of threads: it takes nothing more once the main thread has ended, and others may ask then.
    threading.Thread(target=_open_shared, args=(begun,), name="era-opening", daemon=True).start()
    return begun


def _open_shared(begun: Future[KnowledgeBase]) -> None:
    try:
        base = KnowledgeBase.open()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised to all who wait
        begun.set_exception(error)
    else:
        atexit.register(base.close)
        begun.set_result(base)


def _forget_shared() -> None:
    """A forked process has but copies of the connections, and not the thread that may just be opening them."""
    global _shared_opening  # noqa: PLW0603
    _shared_opening = Opening(_begin_shared)


_shared_opening = Opening(_begin_shared)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_shared)
