"""One client on one server, simulated or not: warm-up, measurement, cool-down, and the account of it.

Everything runs in the event loop of the client, whose processor time is measured; the server is another process.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil

from era_dagster.bench.clients import Client, Reading, Tape
from era_dagster.bench.result import LatencyBin, Run, Sample, Stretch
from era_dagster.bench.scenario import Scenario
from era_dagster.bench.simulated import SimulatedProcess
from era_dagster.bench.source import Source
from era_dagster.domain.errors import EraError
from era_dagster.embedding.config import EmbedderConfig
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
    return backlog_for(scenario.most_texts_per_second())


def backlog_for(texts_per_second: float) -> int:
    """The same for a server of which that was seen."""
    return int(min(max(texts_per_second, LEAST_BACKLOG), MOST_BACKLOG))


async def measure(
    scenario: Scenario,
    server: SimulatedProcess,
    make: Callable[[EmbedderConfig], Client],
    *,
    label: str,
    timing: Timing,
) -> Run:
    """Run `make(config)` on a fresh server of the scenario. A client that gives up ends the run; `Run.error` says why."""
    course = scenario.course(warm_up_seconds=timing.warm_up_seconds, seconds=timing.seconds)
    source = Source(scenario.characters, poison_every=scenario.poison_every)
    async with make(scenario.config(server.url)) as client:
        await server.start_anew(course)
        run, before, after = await _measured(scenario.name, label, client, source, timing, look=server.account)
    account = await server.account(start=before["elapsed_seconds"], end=after["elapsed_seconds"])
    window = account["window"]
    # By the server's clock, as both are counted: on a busy machine ours is read some milliseconds later.
    limit, seconds = window["texts_limit"], window["end_seconds"] - window["start_seconds"]
    answered = after["texts_answered"] - before["texts_answered"]
    end = run.warm_up_seconds + run.window_seconds
    return replace(
        run,
        ratio=window["texts_delivered"] / limit if limit else None,
        texts_per_second=window["texts_delivered"] / seconds,
        limit_texts_per_second=limit / seconds if limit is not None else None,
        server_cpu_ms_per_text=(after["cpu_seconds"] - before["cpu_seconds"]) / answered * 1000.0 if answered else None,
        most_in_flight=account["most_requests_in_flight"],
        limits=tuple(
            Stretch(start=begin, end=min(stop, end), texts_per_second=_finite(spec.texts_per_second_limit(tokens)))
            for tokens in (max(account["mean_tokens"], 1.0),)
            for begin, stop, spec in course_from(course).phases(end)
        ),
    )


async def measure_own(client: Client, *, server: str, label: str, characters: tuple[int, int], timing: Timing) -> Run:
    """Run `client` on a `server` of which nothing is known but what it answers: no limit, no ratio, no vector to compare."""

    async def nothing() -> dict[str, Any]:
        return {}

    source = Source(characters, simulated=False)
    async with client:
        run, _, _ = await _measured(server, label, client, source, timing, look=nothing)
    return run


async def _measured(
    server: str,
    label: str,
    client: Client,
    source: Source,
    timing: Timing,
    *,
    look: Callable[[], Awaitable[dict[str, Any]]],
) -> tuple[Run, dict[str, Any], dict[str, Any]]:
    """The phases of one run as the client saw them, and what `look` told at both ends of the measurement."""
    loop = asyncio.get_running_loop()
    watch = _Watch(client)
    watching = asyncio.create_task(watch.forever())
    driving = asyncio.create_task(_drive(client, source))
    await _until(driving, loop.time() + timing.warm_up_seconds)
    before = await look()
    first = _Mark.of(client)
    await _as_long_as_asked(driving, client, first, timing)
    after = await look()
    last = _Mark.of(client)
    source.closed = True
    done, _ = await asyncio.wait([driving], timeout=timing.cool_down_seconds)
    drained = loop.time() - last.at
    error = driving.result() if done else f"It had not finished {timing.cool_down_seconds:g} s after the last text."
    for task in (watching, driving):
        task.cancel()
    await asyncio.gather(watching, driving, return_exceptions=True)
    texts, seconds = last.reading.embedded - first.reading.embedded, last.at - first.at
    took = latency(client.tape.between(first.at, last.at))
    run = Run(
        scenario=server,
        client=label,
        ratio=None,
        texts=texts,
        window_seconds=seconds,
        texts_per_second=texts / max(seconds, 1e-9),
        limit_texts_per_second=None,
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
        server_cpu_ms_per_text=None,
        most_in_flight=max((sample.in_flight for sample in watch.samples), default=0),
        drain_seconds=drained,
        memory_mb_start=first.memory_mb,
        memory_mb_end=last.memory_mb,
        error=error,
        warm_up_seconds=first.at - watch.started_at,
        samples=tuple(watch.samples),
        latencies=_binned(client.tape, watch.started_at, last.at),
        limits=(),
    )
    return run, before, after


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


async def _as_long_as_asked(driving: asyncio.Task[str | None], client: Client, first: "_Mark", timing: Timing) -> None:
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
