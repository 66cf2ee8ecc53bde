"""An embedding server on a real port that can be taken away and brought back, as when its machine restarts."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, Fault, start


class Switch:
    """Takes the server away and brings it back, on the same port; safe to call from any thread."""

    def __init__(self, server: FakeEmbeddingServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.port = 0
        self._loop = loop
        self._listening: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        self.server.always = None
        self._listening = self._call(start(self.server, self.port))
        self.port = self._listening.sockets[0].getsockname()[1]

    def down(self) -> None:
        """New connections are refused, and open ones break at their next request."""
        self.server.always = Fault(reset=True)
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def away_for(self, seconds: float, *, after_requests: int) -> threading.Thread:
        """In a thread: wait until the server got so many more requests, then take it away for `seconds`."""
        wanted = self.server.requests + after_requests

        def play() -> None:
            while self.server.requests < wanted:
                time.sleep(0.005)
            self.down()
            time.sleep(seconds)
            self.up()

        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        return thread

    def _call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@contextmanager
def switchable(server: FakeEmbeddingServer) -> Iterator[Switch]:
    """The server, up, on a free loopback port, with its switch."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    switch = Switch(server, loop)
    switch.up()
    try:
        yield switch
    finally:
        loop.call_soon_threadsafe(switch.down)
        loop.call_soon_threadsafe(_stop, loop)
        thread.join(10)
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.call_later(0.1, loop.stop)
