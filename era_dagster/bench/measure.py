"""One client on one simulated server: warm-up, measurement, cool-down, and the account of it.

Everything runs in the event loop of the client, whose processor time is measured; the server is another process.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from era_dagster.bench.clients import Client, Reading, Tape
from era_dagster.bench.result import LatencyBin, Run, Sample, Stretch
from era_dagster.bench.scenario import Scenario
from era_dagster.bench.simulated import SimulatedProcess
from era_dagster.bench.source import Source
from era_dagster.domain.errors import EraError
from era_dagster.embedding.report import latency
from era_dagster.simulation.spec import course_from

SAMPLE_SECONDS = 0.1
LATENCY_BIN_SECONDS = 0.25
LEAST_BACKLOG = 100
MOST_BACKLOG = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long the phases take. With `texts` the measurement ends when so many were delivered instead.

    `cool_down_seconds`: the most that what is still open may take after the last text was handed out.
    """

    warm_up_seconds: float = 3.0
    seconds: float = 8.0
    texts: int | None = None
    cool_down_seconds: float = 40.0


def backlog_of(scenario: Scenario) -> int:
    """Texts that wait at any time: a second of the server's work, so that the client is never short of them."""
    return int(min(max(scenario.most_texts_per_second(), LEAST_BACKLOG), MOST_BACKLOG))


async def measure(
    scenario: Scenario, server: SimulatedProcess, make: Callable[[str], Client], *, label: str, timing: Timing
) -> Run:
    """Run `make(url)` on a fresh server of the scenario. A client that gives up ends the run; `Run.error` says why."""
    loop = asyncio.get_running_loop()
    course = scenario.course(warm_up_seconds=timing.warm_up_seconds, seconds=timing.seconds)
    source = Source(scenario)
    client = make(server.url)
    async with client:
        await server.start_anew(course)
        watch = _Watch(client)
        watching = asyncio.create_task(watch.forever())
        driving = asyncio.create_task(_drive(client, source))
        await _until(driving, loop.time() + timing.warm_up_seconds)
        before = await server.account()
        first = _Mark.of(client)
        await _measured(driving, client, first, timing)
        after = await server.account()
        last = _Mark.of(client)
        source.closed = True
        done, _ = await asyncio.wait([driving], timeout=timing.cool_down_seconds)
        drained = loop.time() - last.at
        error = driving.result() if done else f"It had not finished {timing.cool_down_seconds:g} s after the last text."
        for task in (watching, driving):
            task.cancel()
        await asyncio.gather(watching, driving, return_exceptions=True)
    account = await server.account(start=before["elapsed_seconds"], end=after["elapsed_seconds"])
    window = account["window"]
    texts = last.reading.embedded - first.reading.embedded
    # By the server's clock, as both are counted: on a busy machine ours is read some milliseconds later.
    limit, seconds = window["texts_limit"], window["end_seconds"] - window["start_seconds"]
    took = latency(client.tape.between(first.at, last.at))
    answered = after["texts_answered"] - before["texts_answered"]
    end = last.at - watch.started_at
    return Run(
        scenario=scenario.name,
        client=label,
        ratio=window["texts_delivered"] / limit if limit else None,
        texts=texts,
        window_seconds=last.at - first.at,
        texts_per_second=window["texts_delivered"] / seconds,
        limit_texts_per_second=limit / seconds if limit is not None else None,
        p50_seconds=took.p50_seconds,
        p95_seconds=took.p95_seconds,
        p99_seconds=took.p99_seconds,
        requests=last.reading.requests - first.reading.requests,
        refusals=last.reading.refusals - first.reading.refusals,
        retries=last.reading.retries - first.reading.retries,
        asked=source.handed_out,
        lost=source.lost,
        poison_asked=source.poison_handed_out,
        poison_missing=source.poison_missing,
        vectors_checked=source.checked,
        wrong_vectors=source.wrong_vectors,
        cpu_ms_per_text=(last.cpu - first.cpu) / texts * 1000.0 if texts else None,
        server_cpu_ms_per_text=(after["cpu_seconds"] - before["cpu_seconds"]) / answered * 1000.0 if answered else None,
        most_in_flight=account["most_requests_in_flight"],
        drain_seconds=drained,
        memory_mb_start=first.memory_mb,
        memory_mb_end=last.memory_mb,
        error=error,
        warm_up_seconds=first.at - watch.started_at,
        samples=tuple(watch.samples),
        latencies=_binned(client.tape, watch.started_at, last.at),
        limits=tuple(
            Stretch(start=begin, end=min(stop, end), texts_per_second=_finite(spec.texts_per_second_limit(tokens)))
            for tokens in (max(account["mean_tokens"], 1.0),)
            for begin, stop, spec in course_from(course).phases(end)
        ),
    )


async def _drive(client: Client, source: Source) -> str | None:
    """Drive to the end; the sentence of the error that ended it, if one did."""
    reason: str | None = None
    try:
        await client.drive(source)
    except* EraError as errors:
        reason = str(errors.exceptions[0])
    return reason


async def _until(driving: asyncio.Task[str | None], at: float) -> None:
    """Wait, but not for a client that has given up."""
    wait = at - asyncio.get_running_loop().time()
    if wait > 0:
        await asyncio.wait([driving], timeout=wait)


async def _measured(driving: asyncio.Task[str | None], client: Client, first: "_Mark", timing: Timing) -> None:
    loop = asyncio.get_running_loop()
    if timing.texts is None:
        await _until(driving, first.at + timing.seconds)
        return
    while not driving.done() and client.read().embedded - first.reading.embedded < timing.texts:
        await _until(driving, loop.time() + SAMPLE_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """The client, the clock and the process at one end of the measurement."""

    at: float
    cpu: float
    reading: Reading
    memory_mb: float

    @staticmethod
    def of(client: Client) -> "_Mark":
        return _Mark(
            at=asyncio.get_running_loop().time(),
            cpu=time.process_time(),
            reading=client.read(),
            memory_mb=psutil.Process().memory_info().rss / 1e6,
        )


class _Watch:
    """Reads the client ten times a second."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._process = psutil.Process()
        self.started_at = asyncio.get_running_loop().time()
        self.samples: list[Sample] = []

    async def forever(self) -> None:
        loop = asyncio.get_running_loop()
        before, before_at = self._client.read(), loop.time()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            now, now_at = self._client.read(), loop.time()
            requests = now.requests - before.requests
            batch = now.batch
            if batch is None and requests:
                batch = (now.texts_sent - before.texts_sent) / requests
            self.samples.append(
                Sample(
                    at=now_at - self.started_at,
                    limit=now.limit,
                    in_flight=now.in_flight,
                    batch=batch,
                    rate=now.rate,
                    texts_per_second=(now.embedded - before.embedded) / (now_at - before_at),
                    mode=now.mode,
                    memory_mb=self._process.memory_info().rss / 1e6,
                )
            )
            before, before_at = now, now_at


def _binned(tape: Tape, started_at: float, end: float) -> tuple[LatencyBin, ...]:
    bins: dict[int, list[float]] = {}
    for at, seconds in zip(tape.ended_at, tape.seconds, strict=True):
        if at <= end:
            bins.setdefault(int((at - started_at) / LATENCY_BIN_SECONDS), []).append(seconds)
    found: list[LatencyBin] = []
    for place in sorted(bins):
        took = latency(bins[place])
        assert took.p50_seconds is not None and took.p95_seconds is not None
        found.append(LatencyBin(at=(place + 1) * LATENCY_BIN_SECONDS, p50=took.p50_seconds, p95=took.p95_seconds))
    return tuple(found)


def _finite(rate: float) -> float | None:
    return None if rate == float("inf") else rate
