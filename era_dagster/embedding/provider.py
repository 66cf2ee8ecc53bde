"""What every provider of vectors offers, and the HTTP exchange the two remote ones share.

A provider is one endpoint: it asks once and says what came, vectors or a verdict. It never retries and knows
no queue. The dialects are in `embedding.ollama` and `embedding.openai`, the model in process in `embedding.local`.
"""

import asyncio
import ipaddress
import ssl
import zlib
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Protocol, cast
from urllib.request import getproxies, proxy_bypass

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import BadVectors, ConfigurationError, EndpointUnavailable
from era_dagster.embedding.responses import (
    Asked,
    Verdict,
    classify,
    json_object,
    not_connected,
    oversized,
    said_of,
    timed_out,
    unreachable,
    unreadable,
)
from era_dagster.embedding.vectors import matrix
from era_dagster.settings import without_secrets

CANARY = "the quick brown fox jumps over the lazy dog"
"""A short text every model can embed: it tells the dimension, and whether an endpoint lives again."""

CONNECT_TIMEOUT_SECONDS = 10.0

CLOSED_BEFORE_SECONDS = 1.0
"""A connection that was closed before a request shows it after a way there and back. What breaks off later was worked on."""

LONGEST_VECTOR_BYTES = 16_000 * 24
"""One vector as JSON: 16,000 numbers, the most that pgvector stores, as doubles in full with their comma. The widest models
have 4,096 today, in some 50 kB."""

SPARE_ANSWER_BYTES = 1 << 20
"""What an answer may hold beside its vectors; a list of 2,500 models fits."""

LONGEST_ERROR_BYTES = 16_384
"""So much of an error is read. Only its first words are kept, and some servers echo the whole request in it."""

_NO_COOKIES = DefaultCookiePolicy(allowed_domains=())
"""A client would remember, and send along, whatever cookies a server or what is before it sets with each answer."""

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Vectors as the server gave them: float32, shape (texts, dimension), neither checked nor normalised.

    `tokens` is the server's own count, where it gave one; its `headers` may tell of its limits.
    """

    vectors: NDArray[np.float32]
    tokens: int | None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """What an endpoint says of its model."""

    dimension: int
    digest: str | None
    server_version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A JSON object that a server answered, and its headers, with names in any case.

    `asked_bytes`: the length of the request's body.
    """

    content: Mapping[str, Any]
    asked_bytes: int
    headers: Mapping[str, str]


class Provider(Protocol):
    """One endpoint that makes vectors."""

    @property
    def url(self) -> str:
        """Where it is, for people; without credentials."""
        ...

    async def embed(self, texts: Sequence[str], timeout_seconds: float) -> Answer | Verdict:
        """Ask once for the vectors of `texts`, as they are."""
        ...

    async def identify(self, timeout_seconds: float, loading_timeout_seconds: float) -> Identified | Verdict:
        """Ask which model answers; `timeout_seconds` for each ordinary request, the other for the first vector."""
        ...

    async def close(self) -> None: ...


def first_dimension(answer: Answer | Verdict) -> int | Verdict:
    """The dimension an answer shows."""
    return answer if isinstance(answer, Verdict) else answer.vectors.shape[1]


def answered(asked: Asked, reply: Reply, rows: Any, count: int, tokens: Any) -> Answer | Verdict:
    """The rows of a reply as an `Answer`. Where they are no vectors the server failed: that says nothing of one text.

    A count of more `tokens` than the request has bytes is none: the pace would follow it.
    """
    try:
        vectors = matrix(rows, count)
    except BadVectors as error:
        said = reply.content.get("error")
        words = f" It says: {said_of({'error': said}, asked.key).text}." if said else ""
        return Verdict(error=EndpointUnavailable(f"{asked}: {error.message}{words}"), outcome=Outcome.FAILED)
    tokens = tokens if type(tokens) is int and 0 < tokens <= reply.asked_bytes else None
    return Answer(vectors=vectors, tokens=tokens, headers=reply.headers)


class HttpEndpoint:
    """JSON requests to one server, one connection pool per request slot.

    A user and password in `base_url` go along as basic authentication, in place of `api_key`; the URL that is asked has
    none, because httpx logs it with each request. `transport` replaces the network; it stays the caller's to close.

    A client of its own for each request in flight costs about 1 ms of CPU a request at any width; one shared client costs
    7 ms at 64 connections.
    """

    def __init__(
        self, asked: Asked, base_url: str, *, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        url = httpx.URL(base_url)
        self._trust_env = not _is_loopback(url.host)
        proxy = _proxy(url) if self._trust_env and transport is None else ""
        self.asked = replace(asked, key=api_key or "", proxy=proxy)
        self._base_url = str(url.copy_with(userinfo=b"")).rstrip("/")
        self._login = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
        # Uncompressed: numbers shrink by half at most, unpacking costs as much as parsing, and few bytes can hold gigabytes.
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._transport = transport
        self._idle: list[tuple[httpx.AsyncClient, bool]] = []  # and whether its connection was kept after an answer
        self._all: list[httpx.AsyncClient] = []
        self._tls: ssl.SSLContext | None = None

    async def get(self, path: str, timeout_seconds: float) -> Reply | Verdict:
        """GET a JSON object."""
        return await self._exchange("GET", path, None, timeout_seconds, SPARE_ANSWER_BYTES)

    async def post(
        self, path: str, payload: Mapping[str, Any], timeout_seconds: float, *, vectors: int
    ) -> Reply | Verdict:
        """POST a JSON object, get a JSON object that holds so many vectors; the request may be echoed in it."""
        content = orjson.dumps(payload)
        most_bytes = SPARE_ANSWER_BYTES + len(content) + vectors * LONGEST_VECTOR_BYTES
        return await self._exchange("POST", path, content, timeout_seconds, most_bytes)

    async def _exchange(
        self, method: str, path: str, content: bytes | None, timeout_seconds: float, most_bytes: int
    ) -> Reply | Verdict:
        client, kept = self._idle.pop() if self._idle else (self._new_client(), False)
        request = client.build_request(
            method,
            self._base_url + path,
            content=content,
            headers=self._headers,
            timeout=httpx.Timeout(timeout_seconds, connect=min(CONNECT_TIMEOUT_SECONDS, timeout_seconds)),
        )
        answered_well = False
        try:
            # httpx bounds each read, not the whole exchange; an injected transport bounds nothing.
            async with asyncio.timeout(timeout_seconds), aclosing(await _sent(client, request, kept=kept)) as response:
                body = await _body(response, most_bytes if response.is_success else LONGEST_ERROR_BYTES)
                answered_well = True
        except httpx.ConnectTimeout:
            return not_connected(self.asked, min(CONNECT_TIMEOUT_SECONDS, timeout_seconds))
        except (httpx.TimeoutException, TimeoutError):
            return timed_out(self.asked, timeout_seconds)
        except (httpx.RequestError, OSError) as error:
            return unreachable(self.asked, str(error) or type(error).__name__)
        finally:
            self._idle.append((client, answered_well and self._transport is None))
        if not response.is_success:
            return classify(self.asked, response.status_code, response.headers, body, datetime.now(UTC))
        if len(body) > most_bytes:
            return oversized(self.asked, most_bytes)
        parsed = json_object(body)
        if parsed is None:
            return unreadable(self.asked, body)
        return Reply(content=parsed, headers=response.headers, asked_bytes=0 if content is None else len(content))

    def _new_client(self) -> httpx.AsyncClient:
        try:
            if self._tls is None and self._transport is None:
                trusts = self._trust_env or self._base_url.startswith("https:")
                # Certificates take 20 ms: once, not once a client, and not for http:// without a proxy, which never speaks TLS.
                self._tls = httpx.create_ssl_context(verify=trusts, trust_env=trusts)
        except OSError as error:
            raise ConfigurationError(
                f"The certificates for {self.asked.url} cannot be read: {error.strerror or error}.",
                hint="Correct or unset SSL_CERT_FILE, SSL_CERT_DIR and SSLKEYLOGFILE.",
            ) from error
        try:
            client = httpx.AsyncClient(
                transport=self._transport,
                auth=self._login,
                verify=self._tls or True,
                trust_env=self._trust_env,
                cookies=CookieJar(_NO_COOKIES),
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=30.0),
            )
        except (httpx.InvalidURL, ValueError, ImportError):
            raise ConfigurationError(
                f"The proxy that the environment names for {self.asked.url} cannot be used.",
                hint="Set HTTP_PROXY, HTTPS_PROXY and ALL_PROXY to http://host:port (SOCKS is not spoken), and NO_PROXY to"
                " hosts, or unset them.",
            ) from None  # the reason quotes a part of the URL, which may hold a password
        self._all.append(client)
        return client

    async def close(self) -> None:
        """Close the connections."""
        clients, self._all, self._idle = self._all, [], []
        if self._transport is None:
            for client in clients:
                await client.aclose()


async def _sent(client: httpx.AsyncClient, request: httpx.Request, *, kept: bool) -> httpx.Response:
    """The answer, its body not read yet. A server, or what is before it, may close a `kept` connection in the very moment in
    which a request is sent on it: that is no failure, and the request goes at once on a new one."""
    clock = asyncio.get_running_loop()
    sent_at = clock.time()
    try:
        return await client.send(request, stream=True)
    except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
        if not kept or clock.time() - sent_at > CLOSED_BEFORE_SECONDS:
            raise
        return await client.send(request, stream=True)


async def _body(response: httpx.Response, most_bytes: int) -> bytes:
    """The body, unpacked if a server packs it though it was asked not to; over `most_bytes` long when there is more.

    What is not read to its end costs the connection. Not httpx's own decoders: they unpack without a bound.
    """
    read = bytearray()  # not a list of chunks: those of one byte each would take forty times their size
    async for chunk in cast(httpx.AsyncByteStream, response.stream):
        read += chunk
        if len(read) > most_bytes:
            break
    body = bytes(read)
    if response.headers.get("content-encoding", "").lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    try:
        return zlib.decompressobj(wbits=_GZIP_OR_ZLIB).decompress(body, most_bytes + 1)
    except zlib.error:
        return body


def shown_url(url: str) -> str:
    """A URL fit for messages: no user, no password.

    Raises `ConfigurationError`, that shows no secret either, for what is no http(s) URL to which a path can be added.
    """
    shown, hint = without_secrets(url), "Correct ERA_EMBEDDING_URLS."
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ConfigurationError(f"{shown!r} is not a URL.", hint=hint) from None  # its reason quotes a part of it
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(f"{shown!r} is not a URL that starts with http:// or https://.", hint=hint)
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise ConfigurationError(f"{shown!r} names a port that is not 1 to 65535.", hint=hint)
    if parsed.query or parsed.fragment:
        raise ConfigurationError(f"{shown!r} has a query or a fragment, which cannot be sent along.", hint=hint)
    return str(parsed.copy_with(userinfo=b"")).rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _proxy(url: httpx.URL) -> str:
    """The proxy that the environment names for a URL, without its password; empty where there is none."""
    named = getproxies()
    passed_by = proxy_bypass(url.netloc.decode("ascii"))  # NO_PROXY may name a port
    return "" if passed_by else without_secrets(named.get(url.scheme) or named.get("all") or "")
