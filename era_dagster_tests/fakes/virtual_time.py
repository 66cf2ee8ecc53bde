"""An asyncio loop whose clock jumps to the next timer as soon as nothing else is left to do.

Minutes of waiting pass in milliseconds, and every run takes the same course. While a thread of the loop's executor
works, the clock stands still: threads take real time, not virtual time.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class NothingLeftToWaitFor(AssertionError):
    """Every task waits for something that cannot happen any more."""


class _JumpingSelector:
    """Looks for real events without waiting; where the loop would wait, it moves the clock instead."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.now = 0.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = self._real.select(0)
        if events or timeout == 0:
            return events
        if self.threads:
            return self._real.select(0.05)
        if timeout is None:
            raise NothingLeftToWaitFor("No timer is set, no thread works, and every task waits.")
        self.now += timeout
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at 0.0 seconds."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._jumping.now

    def stand_still(self, seconds: float) -> None:
        """Time passes in which nothing runs, as while the machine sleeps."""
        self._jumping.now += seconds

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self._jumping.threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    async def shutdown_default_executor(self, *timeout: float) -> None:  # Python 3.12 brought the time-out
        self._jumping.threads += 1  # it waits for a thread of its own
        await super().shutdown_default_executor(*timeout)
        self._jumping.threads -= 1

    def _thread_ended(self, _: asyncio.Future[Any]) -> None:
        self._jumping.threads -= 1


def run_virtually(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` to its end on a fresh loop; asserts that it leaves no task behind."""

    async def watched() -> Result:
        result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"
        return result

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(watched())
