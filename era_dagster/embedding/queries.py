"""Questions become vectors one at a time, for callers in any thread.

The embedder stays open on an event loop in a thread of its own: a loop for each question would open the model or the
connections anew each time, and cannot start inside another loop.
"""

import asyncio
import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace

from era_dagster.domain.errors import BadVectors, EndpointUnavailable
from era_dagster.domain.space import Space
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.factory import OLLAMA_URL, open_embedder
from era_dagster.embedding.provider import shown_url
from era_dagster.embedding.vectors import ModelIdentity, Vector, VectorCache
from era_dagster.settings import Settings

# Somebody waits for the answer: a dead embedding server is said after seconds, not after a run's patience.
_LONGEST_RETRY_SECONDS = 10.0
# And a silent one too, but a server that loads its model first takes 10 to 20 s. The request itself goes on: Ollama gives up
# loading for somebody who hangs up, and would begin anew for each question.
_LONGEST_ANSWER_SECONDS = 20.0
# Half of it, so that who comes when the server is back has an answer in time.
_ASKED_ANEW_SECONDS = 10.0
# More at once are no faster, and had none of its own time left when its turn came: the others wait in line.
_MOST_QUESTIONS = 64

Answer = tuple[Vector, ModelIdentity]


@dataclass(slots=True, kw_only=True)
class _OpenEmbedder:
    """An open embedder, the model it turned out to be, what closes it, and how many questions are under way."""

    embedder: Embedder
    identity: ModelIdentity
    stack: AsyncExitStack
    questions: int = 0


class QueryEmbedder:
    """Embeds questions with the model the settings and the database name; opened at the first one. Thread-safe.

    `recalled_from`: what earlier runs remember, by which a model that tells no digest is known again.
    """

    def __init__(self, settings: Settings, recalled_from: VectorCache | None = None) -> None:
        patience = min(settings.retry_budget_seconds, _LONGEST_RETRY_SECONDS)
        self._settings = replace(settings, retry_budget_seconds=patience)
        self._recalled_from = recalled_from
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # One for each model the database held in our time: questions may still be under way when it switches.
        self._opened: dict[Space, asyncio.Task[_OpenEmbedder]] = {}
        # What a silent server was asked is not taken back, it may be loading; it fills all its room: the next go beside it.
        self._left: list[asyncio.Task[_OpenEmbedder]] = []
        self._line = asyncio.Semaphore(_MOST_QUESTIONS)
        self._answered_at = -math.inf
        self._unanswered_since: float | None = None

    def ask(self, text: str, known: Space) -> Future[Answer]:
        """The normalised float32 vector of `text` as a query, shape (dimension,), and the model that made it.

        Who cancels it gives up the question; closing cancels all.

        `known` is the model the database holds; each has its own embedder, which is opened anew for the next question when the
        server turned out to hold another model at its opening. Raises what `Embedder.embed` and `Embedder.identify` raise,
        `EndpointUnavailable` too where a server is silent for 20 s, and `BadVectors` for a text the model cannot take. A model
        in this process is waited for: it may have to be fetched first.
        """
        with self._running_loop() as loop:
            return asyncio.run_coroutine_threadsafe(self._answered(text, known), loop)

    def close(self) -> None:
        """Close the embedder and end the thread. A later `ask` opens both again."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._close_embedders(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    @contextmanager
    def _running_loop(self) -> Iterator[asyncio.AbstractEventLoop]:
        """The loop, which cannot be closed as long as it is held."""
        with self._lock:
            if self._loop is None:
                started: Future[asyncio.AbstractEventLoop] = Future()
                self._line = asyncio.Semaphore(_MOST_QUESTIONS)  # it belongs to the loop in which somebody waits for it
                self._thread = threading.Thread(target=_run_loop, args=(started,), name="era-queries", daemon=True)
                self._thread.start()
                self._loop = started.result()
            yield self._loop

    async def _answered(self, text: str, known: Space) -> Answer:
        if self._is_here(known):
            return await self._embed(text, known)
        line, came = self._line, asyncio.get_running_loop().time()
        if self._unanswered_since is None:
            self._unanswered_since = came
        await self._admitted(line, came)
        try:
            async with asyncio.timeout_at(self._patience_ends(came)):
                answer = await self._embed(text, known)
        except TimeoutError:
            raise self._silent() from None
        finally:
            line.release()
        self._answered_at, self._unanswered_since = asyncio.get_running_loop().time(), None
        return answer

    def _is_here(self, known: Space) -> bool:
        return (self._settings.embedding_provider or known.provider) == "local"

    async def _admitted(self, line: asyncio.Semaphore, came: float) -> None:
        """Wait in line, as long as it moves."""
        while True:
            until = self._patience_ends(came)
            try:
                async with asyncio.timeout_at(until):
                    await line.acquire()
            except TimeoutError:
                if self._patience_ends(came) <= until:
                    raise self._silent() from None
            else:
                return

    def _patience_ends(self, came: float) -> float:
        """With a server that says nothing; for who came when it had answered somebody last, and who was in line by then."""
        return max(came, self._answered_at) + _LONGEST_ANSWER_SECONDS

    def _silent(self) -> EndpointUnavailable:
        urls = ", ".join(map(shown_url, self._settings.embedding_urls or (OLLAMA_URL,)))
        return EndpointUnavailable(
            f"{urls} made no vector of the question within {_LONGEST_ANSWER_SECONDS:g} s.",
            hint="It may be loading its model: `era doctor` waits longer for it, and tells what it answers.",
        )

    async def _embed(self, text: str, known: Space) -> Answer:
        opening = self._opened.get(known)
        # All who come while it is being opened share its failure: one after the other each would wait as long again.
        if opening is None or (opening.done() and opening.exception() is not None):
            opening = self._opened[known] = asyncio.create_task(self._open(known))
        if not opening.done():
            await asyncio.wait([opening])  # goes on when we are no longer waited for
        opened = opening.result()
        if not opened.identity.space.same_model(known) and self._opened.get(known) is opening:
            del self._opened[known]  # the next question finds out whether the server holds the right one by then
        opened.questions += 1
        try:
            report = await opened.embedder.embed([text], role="query")
        except asyncio.CancelledError:
            if self._has_fallen_silent() and self._opened.get(known) is opening:
                self._left.append(self._opened.pop(known))
            raise
        finally:
            opened.questions -= 1
            if not opened.questions and self._opened.get(known) is not opening and opening not in self._left:
                await opened.stack.aclose()
        vector = report.vectors[0]
        if vector is None:
            raise BadVectors(
                f"The text to search for got no vector: {report.failures[0].message}",
                hint="Search for a shorter or simpler text.",
            )
        return vector, opened.identity

    def _has_fallen_silent(self) -> bool:
        now, since = asyncio.get_running_loop().time(), self._unanswered_since
        return since is not None and now - since >= _LONGEST_ANSWER_SECONDS

    async def _close_left(self) -> None:
        """The server answers again: of what it was asked before nothing is waited for, but by those who still do."""
        while self._left:
            left = self._left.pop().result()
            if not left.questions:
                await left.stack.aclose()

    async def _open(self, known: Space) -> _OpenEmbedder:
        """Where it takes long, what was asked may be lost: it is asked anew beside that, and the first answer counts."""
        patience = None if self._is_here(known) else _ASKED_ANEW_SECONDS
        begun: set[asyncio.Task[_OpenEmbedder]] = set()
        try:
            while True:
                begun.add(asyncio.create_task(self._open_once(known)))
                done, _ = await asyncio.wait(begun, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    first = done.pop()
                    begun.remove(first)
                    return first.result()
        finally:
            for other in begun:
                other.cancel()
            for end in await asyncio.gather(*begun, return_exceptions=True):
                if isinstance(end, _OpenEmbedder):
                    await end.stack.aclose()

    async def _open_once(self, known: Space) -> _OpenEmbedder:
        async with AsyncExitStack() as stack:
            embedder = await stack.enter_async_context(
                open_embedder(self._settings, known=known, recalled_from=self._recalled_from)
            )
            identity = await embedder.identify()
            if self._unanswered_since is not None:
                self._unanswered_since = asyncio.get_running_loop().time()
            await self._close_left()
            return _OpenEmbedder(embedder=embedder, identity=identity, stack=stack.pop_all())

    async def _close_embedders(self) -> None:
        opened, self._opened, self._left = [*self._opened.values(), *self._left], {}, []
        async with AsyncExitStack() as stack:
            for opening in opened:
                if opening.done() and opening.exception() is None:
                    stack.push_async_callback(opening.result().stack.aclose)
                else:
                    opening.cancel()


def _run_loop(started: Future[asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        started.set_result(loop)
        loop.run_forever()
