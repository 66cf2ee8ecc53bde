"""Runs an event loop so that a signal which is to end the process ends it, wherever it arrives.

A signal's handler raises in whatever the main thread does at that moment. Inside an event loop that may be a callback or a
task that nobody waits for: asyncio logs what they raise and goes on, and the stop is lost.
"""

import asyncio
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]


def run_stoppable(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, but at a signal `main` is cancelled, and when all has ended the signal's handler of before is called.

    A second signal calls that handler at once. Signals that the process ignores, or that end it without a handler of ours,
    are left as they are; so are all of them outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(main)
    before = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
    received: list[int] = []
    running: list[asyncio.Task[Any]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            before[number](number, frame)
        for task in running:
            task.get_loop().call_soon_threadsafe(task.cancel)

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None
        running.append(task)
        if received:
            task.cancel()
        try:
            return await main
        finally:
            running.clear()

    for number in before:
        signal.signal(number, stop)
    try:
        return asyncio.run(run())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            before[received[0]](received[0], None)
