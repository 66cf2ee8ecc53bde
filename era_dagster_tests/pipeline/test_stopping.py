"""A signal that is to end the process ends the event loop it arrives in, whatever runs there at that moment."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType

import pytest

from era_dagster.pipeline.stopping import run_stoppable


class Stopped(BaseException):
    """What the process's own handler raises, as Dagster's does."""


_tasks: list[asyncio.Task[None]] = []


@pytest.fixture
def _raising() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGINT, stop)
    yield
    signal.signal(signal.SIGINT, before)


async def in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)


async def in_a_task_nobody_waits_for() -> None:
    async def short() -> None:
        signal.raise_signal(signal.SIGINT)

    _tasks.append(asyncio.create_task(short()))


async def in_a_task_of_a_group() -> None:
    async def short() -> None:
        signal.raise_signal(signal.SIGINT)

    async with asyncio.TaskGroup() as group:
        group.create_task(short())
        await asyncio.sleep(60)


async def in_the_work_itself() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("_raising")
@pytest.mark.parametrize(
    "arrives", [in_a_callback, in_a_task_nobody_waits_for, in_a_task_of_a_group, in_the_work_itself]
)
def test_a_stop_that_arrives_anywhere_in_the_loop_stops_the_work_in_order(
    arrives: Callable[[], Awaitable[None]],
) -> None:
    tidied: list[str] = []

    async def work() -> None:
        try:
            await arrives()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            tidied.append("tidied")

    with pytest.raises(Stopped):
        run_stoppable(work())
    assert tidied == ["tidied"]
