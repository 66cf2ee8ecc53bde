"""Who may use what is open, and who waits for its opening: the same for every way of asking the knowledge base.

Standard library only, so that importing it costs a program next to nothing.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable

T = TypeVar("T")


class Use:
    """Whether a knowledge base may still be used: a forked process has connections that another one talks over, and no
    threads."""

    def __init__(self) -> None:
        self.closed = False
        self._process = os.getpid()

    @property
    def is_ours(self) -> bool:
        return self._process == os.getpid()

    def check(self) -> None:
        if not self.is_ours:
            raise ConfigurationError(
                "This knowledge base was opened in another process, from which this one was forked.",
                hint="Open one in each process.",
            )
        if self.closed:
            raise ConfigurationError("This knowledge base is closed.", hint="Open another one.")


class Opening(Generic[T]):
    """What is opened once for all who ask, by `begin`, in another thread.

    All who come while it is being opened share its failure: one after the other each would wait as long again. Who comes
    after that has it tried anew.
    """

    def __init__(self, begin: Callable[[], Future[T]]) -> None:
        self.begun: Future[T] | None = None
        self._begin = begin
        self._lock = threading.Lock()

    def latest(self) -> Future[T]:
        with self._lock:
            if self.begun is None or (self.begun.done() and self.begun.exception() is not None):
                self.begun = self._begin()
            return self.begun


class Line:
    """Threads that ask the database, one for each connection; who comes while all are at it waits, as long as they get answers.

    Who has waited for `patience_seconds` behind one that found the database away is told the same: one row after the other
    each would wait as long again to find it out.
    """

    def __init__(self, threads: int, *, patience_seconds: float) -> None:
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="era-lookup")
        self._patience_seconds = patience_seconds
        self._away: tuple[float, DatabaseUnavailable] | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        return self.threads.submit(self._in_turn, time.monotonic(), work)

    def _in_turn(self, came: float, work: Callable[[], T]) -> T:
        away = self._away
        # What was found before he came may be over: he waits behind others, or for the opening.
        if away is not None and came <= away[0] and time.monotonic() - came >= self._patience_seconds:
            raise away[1].with_traceback(None)
        try:
            answer = work()
        except DatabaseUnavailable as error:
            self._away = time.monotonic(), error
            raise
        self._away = None
        return answer
