"""A simulated embedding server, honest about what real ones do: Ollama's routes and the OpenAI one.

One `FakeEmbeddingServer` holds model, faults and counters; `FakeTransport` puts it behind httpx without a network (and
so under virtual time), `serving` and `python -m era_dagster_tests.fakes.embedding_server` behind a real loopback port.
Its vectors depend on the text alone, so that mix-ups show.
"""

import argparse
import asyncio
import hashlib
import json
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import httpx
import numpy as np
import orjson

TOO_LONG = "the input length exceeds the context length"
NOT_A_NUMBER = "embedding contains NaN or Inf values"
BUSY = "server busy, please try again.  maximum pending requests exceeded"
RUNNER_DIED = 'do embedding request: Post "http://127.0.0.1:40001/embedding": EOF'

Answer = Literal["wrong_count", "nan", "zero", "wrong_dimension", "empty", "not_json", "shuffled"]


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What happens to one embedding request instead of an answer: an error status, or one of the named accidents.

    `answer` spoils an otherwise good answer. `reset` breaks the connection, `stall` never answers.
    """

    status: int = 0
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    reset: bool = False
    stall: bool = False
    answer: Answer | None = None


class ConnectionBroken(Exception):
    """The front closes the connection without an answer."""


def vector_of(text: str, dimension: int = 768) -> np.ndarray:
    """The vector of a text as it was sent; float32, length 1 up to rounding to six digits."""
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")
    values = np.random.default_rng(seed).standard_normal(dimension)
    return np.round(values / np.linalg.norm(values), 6).astype(np.float32)


class FakeEmbeddingServer:
    """`faults` are used up one by one by embedding requests, `always` then hits every one.

    `poison`, `nan`, `zero`: texts containing one of these strings give 400, a NaN, a zero vector. More than `most_texts` in a
    request get `too_many`. `seconds_per_text` is
    worked off in `slots` places at once (Ollama has one). `down` refuses connections, `stalled` never answers.
    """

    def __init__(self, *, model: str = "test-model", dimension: int = 768, version: str = "0.32.0") -> None:
        self.model = model
        self.dimension = dimension
        self.version = version
        self.digest = hashlib.sha256(model.encode("utf-8")).hexdigest()
        self.api_key: str | None = None
        self.faults: deque[Fault | None] = deque()
        self.always: Fault | None = None
        self.poison: set[str] = set()
        self.crashing: set[str] = set()
        self.nan: set[str] = set()
        self.zero: set[str] = set()
        self.longest_text = math.inf
        self.most_texts = math.inf
        self.too_many = Fault(413, "batch size exceeds the maximum allowed batch size")
        self.seconds_per_text = 0.0
        self.slots = 1
        self.down = False
        self.stalled = False
        self.batches: list[tuple[str, ...]] = []
        self.times: list[float] = []
        self.payloads: list[dict] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._encoded: dict[str, bytes] = {}
        self._working: asyncio.Semaphore | None = None

    @property
    def requests(self) -> int:
        """Embedding requests so far."""
        return len(self.batches)

    @property
    def texts(self) -> list[str]:
        """Every text of every embedding request, in order."""
        return [text for batch in self.batches for text in batch]

    async def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answer one request; raises `ConnectionBroken` where the connection is to be closed instead."""
        if self.stalled:
            await asyncio.Event().wait()
        if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            return _json(401, {"error": {"message": "Incorrect API key provided.", "code": 401}})
        if (method, path) == ("GET", "/api/version"):
            return _json(200, {"version": self.version})
        if (method, path) == ("GET", "/api/tags"):
            name = self.model if ":" in self.model else f"{self.model}:latest"
            return _json(200, {"models": [{"name": name, "model": name, "digest": self.digest}]})
        if (method, path) == ("POST", "/api/show"):
            return _json(200, {"model_info": {"bert.embedding_length": self.dimension}, "capabilities": ["embedding"]})
        if method == "POST" and path in ("/api/embed", "/v1/embeddings"):
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                return await self._embed(path == "/v1/embeddings", orjson.loads(body))
            finally:
                self.in_flight -= 1
        return Reply(404, b"404 page not found")

    async def _embed(self, openai: bool, payload: dict) -> Reply:
        given = payload.get("input", [])
        texts = tuple([given] if isinstance(given, str) else given)
        self.batches.append(texts)
        self.times.append(asyncio.get_running_loop().time())
        self.payloads.append(payload)
        fault = self.faults.popleft() if self.faults else self.always
        if self.seconds_per_text:
            await self._work(len(texts) * self.seconds_per_text)
        if fault is not None and fault.reset:
            raise ConnectionBroken
        if fault is not None and fault.stall:
            await asyncio.Event().wait()
        if fault is not None and fault.status:
            return _json(fault.status, {"error": fault.message}, fault.headers)
        refusal = self._refusal(payload, texts)
        if refusal is not None:
            return refusal
        spoilt = None if fault is None else fault.answer
        if spoilt == "not_json":
            return Reply(200, b"<html>It works!</html>")
        return _answer(openai, self._rows(texts, spoilt), shuffled=spoilt == "shuffled")

    def _refusal(self, payload: dict, texts: tuple[str, ...]) -> Reply | None:
        if payload.get("model") != self.model:
            return _json(404, {"error": f'model "{payload.get("model")}" not found, try pulling it first'})
        if len(texts) > self.most_texts:
            return _json(self.too_many.status, {"error": self.too_many.message})
        if any(len(text) > self.longest_text for text in texts):
            return _json(400, {"error": TOO_LONG})
        if _holds(texts, self.crashing):
            raise ConnectionBroken
        if _holds(texts, self.poison):
            return _json(400, {"error": "the text offends the tokenizer"})
        return None

    async def _work(self, seconds: float) -> None:
        if self._working is None:
            self._working = asyncio.Semaphore(self.slots)
        async with self._working:
            await asyncio.sleep(seconds)

    def _rows(self, texts: tuple[str, ...], spoilt: Answer | None) -> list[bytes]:
        dimension = self.dimension // 2 if spoilt == "wrong_dimension" else self.dimension
        rows = [self._encoded_vector(text, dimension) for text in texts]
        for place, text in enumerate(texts):
            if _holds((text,), self.nan) or spoilt == "nan":
                rows[place] = b"[" + b",".join([b"null"] * dimension) + b"]"
            if _holds((text,), self.zero) or spoilt == "zero":
                rows[place] = b"[" + b",".join([b"0"] * dimension) + b"]"
        if spoilt == "wrong_count":
            rows = rows[:-1]
        return [] if spoilt == "empty" else rows

    def _encoded_vector(self, text: str, dimension: int) -> bytes:
        if dimension != self.dimension:
            return orjson.dumps(vector_of(text, dimension), option=orjson.OPT_SERIALIZE_NUMPY)
        if text not in self._encoded:
            self._encoded[text] = orjson.dumps(vector_of(text, dimension), option=orjson.OPT_SERIALIZE_NUMPY)
        return self._encoded[text]


def _holds(texts: tuple[str, ...], parts: set[str]) -> bool:
    return any(part in text for text in texts for part in parts)


def _json(status: int, content: object, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, orjson.dumps(content), {"Content-Type": "application/json", **(headers or {})})


def _answer(openai: bool, rows: list[bytes], *, shuffled: bool) -> Reply:
    if openai:
        items = [b'{"index":%d,"embedding":%b}' % (index, row) for index, row in enumerate(rows)]
        if shuffled:
            items.reverse()
        body = b'{"object":"list","data":[%b],"usage":{"total_tokens":%d}}' % (b",".join(items), len(rows))
    else:
        body = b'{"embeddings":[%b],"prompt_eval_count":%d}' % (b",".join(rows), len(rows))
    return Reply(200, body, {"Content-Type": "application/json"})


class FakeTransport(httpx.AsyncBaseTransport):
    """Servers by host name, in place of the network."""

    def __init__(self, servers: FakeEmbeddingServer | Mapping[str, FakeEmbeddingServer]) -> None:
        self._servers = servers

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        servers = self._servers
        server = servers if isinstance(servers, FakeEmbeddingServer) else servers[request.url.host]
        if server.down:
            raise httpx.ConnectError("All connection attempts failed", request=request)
        try:
            reply = await server.handle(request.method, request.url.path, request.headers, await request.aread())
        except ConnectionBroken as error:
            raise httpx.ReadError("", request=request) from error
        return httpx.Response(reply.status, headers=dict(reply.headers), content=reply.body)


async def start(server: FakeEmbeddingServer, port: int = 0) -> asyncio.Server:
    """Listen on loopback; HTTP/1.1 with keep-alive, as far as an embedding client needs it."""

    # asyncio itself holds no task: a stalled one, whose client is gone, would be collected with its open connection.
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            while await _serve_one(server, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, ConnectionBroken):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()  # not raised again: asyncio prints what a connection's task raises
        finally:
            writer.close()
            tasks.discard(asyncio.current_task())

    return await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 20)


async def _serve_one(server: FakeEmbeddingServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    reply = await server.handle(method, path, headers, body)
    lines = [f"HTTP/1.1 {reply.status} X", f"Content-Length: {len(reply.body)}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + reply.body)
    await writer.drain()
    return headers.get("connection", "").lower() != "close"


@contextmanager
def serving(server: FakeEmbeddingServer) -> Iterator[str]:
    """The server in a thread of its own, on a free loopback port; gives its URL."""
    ready = threading.Event()
    ports: list[int] = []
    loop = asyncio.new_event_loop()

    async def main() -> None:
        listening = await start(server)
        ports.append(listening.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        # Not `async with`: from Python 3.12 on its end waits for what clients have open.
        listening.close()
        # A task or a transport that its loop leaves behind fails whatever test runs by then.
        await asyncio.sleep(0.01)  # what was just accepted has begun
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5)
        await asyncio.sleep(0.01)  # what was just closed is closed

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def _main() -> None:
    parser = argparse.ArgumentParser(description="Serve deterministic vectors on loopback; prints its URL as JSON.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="test-model")
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--seconds-per-text", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=1)
    given = parser.parse_args()

    async def main() -> None:
        server = FakeEmbeddingServer(model=given.model, dimension=given.dimension)
        server.seconds_per_text = given.seconds_per_text
        server.slots = given.slots
        listening = await start(server, given.port)
        port = listening.sockets[0].getsockname()[1]
        print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)  # noqa: T201
        await listening.serve_forever()

    asyncio.run(main())


if __name__ == "__main__":
    _main()
