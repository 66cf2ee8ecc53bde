"""The two clients a benchmark compares: ours, told nothing, and a naive one with a fixed concurrency and batch.

Each drives a `Source` until it is closed and everything is settled, and counts in the same words.
"""

import asyncio
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import TracebackType
from typing import Literal, Protocol, Self

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from era_dagster.bench.source import Source
from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import ConfigurationError
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.observer import RequestRecord
from era_dagster.embedding.openai import address

CALL_TEXTS = 20
"""Texts of one `embed` call: small, so that a text that is late holds few others back."""

FIXED_ATTEMPTS = 6
FIXED_BACKOFF_SECONDS = 0.25
FIXED_TIMEOUT_SECONDS = 60.0


@dataclass(slots=True)
class Tape:
    """Every successful request: when it ended (the loop's clock) and how long it took, in seconds."""

    ended_at: "array[float]" = field(default_factory=lambda: array("d"))
    seconds: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, ended_at: float, seconds: float) -> None:
        """One more."""
        self.ended_at.append(ended_at)
        self.seconds.append(seconds)

    def between(self, start: float, end: float) -> list[float]:
        """The durations of those that ended in a window."""
        return [took for at, took in zip(self.ended_at, self.seconds, strict=True) if start <= at <= end]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A client at one moment. Counters since its start; `limit`, `batch` (texts) and `rate` (texts a second) as decided,
    None where it decides none."""

    embedded: int
    requests: int
    texts_sent: int
    retries: int
    refusals: int
    in_flight: int
    limit: int
    batch: float | None
    rate: float | None
    mode: str


class Client(Protocol):
    """What is measured."""

    tape: Tape

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def drive(self, source: Source) -> None:
        """Embed the texts of `source` until it is closed and all are settled."""
        ...

    def read(self) -> Reading:
        """Its state at this moment."""
        ...


class EraClient:
    """The project's own embedder, as configured, or with ceilings; `backlog` texts wait at any time."""

    def __init__(self, config: EmbedderConfig, *, backlog: int, ceilings: "Setting | None" = None) -> None:
        if ceilings is not None:
            config = replace(config, concurrency=ceilings.concurrency, batch_items=ceilings.batch)
        self.tape = Tape()
        self._embedder = Embedder(config, random=Random(1), on_request=self._ended)
        self._callers = max(2, -(-backlog // CALL_TEXTS))

    async def __aenter__(self) -> Self:
        await self._embedder.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._embedder.__aexit__(kind, error, trace)

    async def drive(self, source: Source) -> None:
        """Enough callers at once that the queue is never empty."""

        async def call() -> None:
            while asked := source.take(CALL_TEXTS):
                report = await self._embedder.embed([each.text for each in asked])
                source.give_back(asked, report.vectors)

        async with asyncio.TaskGroup() as callers:
            for _ in range(self._callers):
                callers.create_task(call())

    def _ended(self, request: RequestRecord) -> None:
        if request.outcome is Outcome.SUCCESS and not request.probe:
            self.tape.add(request.ended_at, request.seconds)

    def read(self) -> Reading:
        """The one place that looks into the embedder while it works."""
        stats = self._embedder.stats()
        endpoint = stats.endpoints[0]
        return Reading(
            embedded=stats.embedded,
            requests=stats.requests,
            texts_sent=stats.texts_sent,
            retries=stats.retries,
            refusals=stats.refusals,
            in_flight=endpoint.in_flight,
            limit=endpoint.limit,
            batch=endpoint.batch,
            rate=endpoint.rate,
            mode=endpoint.mode,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A client besides ours: so many requests in flight with so many texts each, for ever (`fixed`), or at most (`era`)."""

    kind: Literal["fixed", "era"] = "fixed"
    concurrency: int
    batch: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.concurrency}x{self.batch}"

    def client(self, config: EmbedderConfig, *, backlog: int) -> Client:
        """It, for the first server of `config`."""
        if self.kind == "era":
            return EraClient(config, backlog=backlog, ceilings=self)
        return FixedClient(config, self)


def setting_from(words: str) -> Setting:
    """Read `fixed:CxB` or `era:CxB`."""
    found = re.fullmatch(r"(fixed|era):([1-9]\d{0,3})x([1-9]\d{0,3})", words)
    if found is None:
        raise ConfigurationError(f"{words!r} is no client.", hint="Use fixed:CxB or era:CxB, for example fixed:8x16.")
    kind = "era" if found[1] == "era" else "fixed"
    return Setting(kind=kind, concurrency=int(found[2]), batch=int(found[3]))


class FixedClient:
    """As many loops as requests in flight, each sending the next batch; after trouble again, up to six times in all."""

    def __init__(self, config: EmbedderConfig, setting: Setting) -> None:
        url = config.urls[0]
        self._url = f"{url.rstrip('/')}/api/embed" if config.provider == "ollama" else "".join(address(url))
        self._model = config.model
        self._headers = {"Content-Type": "application/json"}
        if config.api_key:
            self._headers["Authorization"] = f"Bearer {config.api_key}"
        self._setting = setting
        self._random = Random(1)
        self._clients: list[httpx.AsyncClient] = []
        self.tape = Tape()
        self._embedded = self._requests = self._texts_sent = self._retries = self._refusals = self._in_flight = 0

    async def __aenter__(self) -> Self:
        for _ in range(self._setting.concurrency):
            # One client for each connection: a shared one costs seven times the processor time at 64 of them.
            limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
            secure = self._url.startswith("https:")
            client = httpx.AsyncClient(
                timeout=FIXED_TIMEOUT_SECONDS, limits=limits, trust_env=secure, verify=secure, headers=self._headers
            )
            self._clients.append(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            await client.aclose()

    async def drive(self, source: Source) -> None:
        """One loop for each request in flight."""

        async def work(client: httpx.AsyncClient) -> None:
            while asked := source.take(self._setting.batch):
                source.give_back(asked, await self._embed(client, [each.text for each in asked]))

        async with asyncio.TaskGroup() as workers:
            for client in self._clients:
                workers.create_task(work(client))

    async def _embed(self, client: httpx.AsyncClient, texts: list[str]) -> Sequence[NDArray[np.float32] | None]:
        for attempt in range(FIXED_ATTEMPTS):
            if attempt:
                self._retries += len(texts)
                await asyncio.sleep(self._random.uniform(0.0, FIXED_BACKOFF_SECONDS * 2.0 ** (attempt - 1)))
            vectors = await self._ask(client, texts)
            if vectors is not None:
                self._embedded += len(texts)
                return vectors
        return [None] * len(texts)

    async def _ask(self, client: httpx.AsyncClient, texts: list[str]) -> Sequence[NDArray[np.float32]] | None:
        loop = asyncio.get_running_loop()
        self._requests += 1
        self._texts_sent += len(texts)
        self._in_flight += 1
        started = loop.time()
        try:
            payload = orjson.dumps({"model": self._model, "input": texts})
            response = await client.post(self._url, content=payload)
        except httpx.RequestError:
            return None
        finally:
            self._in_flight -= 1
        if not response.is_success:
            self._refusals += response.status_code in (429, 503)
            return None
        vectors = _vectors(response.content, len(texts))
        if vectors is not None:
            self.tape.add(loop.time(), loop.time() - started)
        return vectors

    def read(self) -> Reading:
        """Its counters; it decides nothing."""
        return Reading(
            embedded=self._embedded,
            requests=self._requests,
            texts_sent=self._texts_sent,
            retries=self._retries,
            refusals=self._refusals,
            in_flight=self._in_flight,
            limit=self._setting.concurrency,
            batch=float(self._setting.batch),
            rate=None,
            mode="fixed",
        )


def _vectors(content: bytes, count: int) -> list[NDArray[np.float32]] | None:
    """The vectors of an answer in either dialect; None where it holds not exactly `count` of one length."""
    try:
        body = orjson.loads(content)
        rows = body.get("embeddings") or [each["embedding"] for each in body.get("data", [])]
        vectors = np.asarray(rows, dtype=np.float32)
    except (ValueError, AttributeError):
        return None
    return list(vectors) if vectors.ndim == 2 and len(vectors) == count else None
