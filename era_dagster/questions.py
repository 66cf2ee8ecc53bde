"""From a question in words to what is near it: its vector is made by the model whose vectors the database holds.

In steps, because the embedding server may take its time: whoever asks waits for it as suits him, a thread or an event loop.
What is heavy is imported in the functions that need it, as in `knowledge`, which is the way in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING

from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.text import clean_line, is_visible
from era_dagster.settings import Settings, configured_model

if TYPE_CHECKING:
    from era_dagster.domain.space import Space
    from era_dagster.embedding.queries import Answer, QueryEmbedder
    from era_dagster.embedding.vectors import Vector
    from era_dagster.storage.access import Use
    from era_dagster.storage.database import Database
    from era_dagster.storage.search import SearchHit

    Look = Callable[[Vector, Space, str], list[SearchHit]]
    Steps = Generator[Future[Answer], Answer, list[SearchHit]]


class Questions:
    """The questions to one database. Thread-safe."""

    def __init__(self, database: Database, settings: Settings, use: Use) -> None:
        self._database = database
        self._settings = settings
        self._use = use
        self._queries: QueryEmbedder | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """End what is under way; `use` is closed by now, so that nothing begins anew."""
        with self._lock:
            queries, self._queries = self._queries, None
        if queries is not None:
            queries.close()

    def steps(self, text: str, look: Look) -> Steps:
        """Yields a vector that is being made, takes it, and at its end returns what `look` finds by it.

        `look` gets the vector, the model that made it, and the text as it was cleaned; of `OtherModel` the steps go on.
        """
        from era_dagster.storage.search import OtherModel
        from era_dagster.storage.spaces import ensure_space, live_space

        # As the texts that it is compared with were cleaned.
        text = clean_line(text)
        if not is_visible(text):
            raise ConfigurationError("The text to search for is blank.", hint="Pass a question or a sentence.")
        self._use.check()
        space = live_space(self._database)
        while space is not None:
            vector, identity = yield self.ask(text, space)
            try:
                return look(vector, identity.space, text)
            except OtherModel:
                # The database may have switched to another model since the text was embedded.
                asked, space = space, live_space(self._database)
                if space == asked:
                    # It has not: the server holds another model. This says which, and what to do.
                    ensure_space(self._database, identity.space)
        return []

    def ask(self, text: str, space: Space) -> Future[Answer]:
        """Have the vector made; `answer_of` and `awaited_answer` wait for it."""
        from era_dagster.embedding.queries import QueryEmbedder
        from era_dagster.storage.cache import PostgresVectorCache
        from era_dagster.storage.spaces import check_configured

        check_configured(space, model=configured_model(self._settings))
        with self._lock:
            self._use.check()
            if self._queries is None:
                self._queries = QueryEmbedder(self._settings, PostgresVectorCache(self._database, model=space.model))
            queries = self._queries
        return queries.ask(text, space)


def next_step(steps: Steps, answer: Answer | None = None) -> Future[Answer] | list[SearchHit]:
    """Go on until a vector is waited for, or to the end."""
    try:
        return next(steps) if answer is None else steps.send(answer)
    except StopIteration as ended:
        return ended.value


def answer_of(asked: Future[Answer]) -> Answer:
    """Wait for the vector in this thread."""
    try:
        return asked.result()
    except CancelledError:
        raise _closed() from None


async def awaited_answer(asked: Future[Answer]) -> Answer:
    """Wait for the vector in this task; when that is cancelled, the question ends with it."""
    import asyncio

    try:
        return await asyncio.wrap_future(asked)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _closed() from None


def _closed() -> ConfigurationError:
    return ConfigurationError("The knowledge base was closed before the question was answered.")
