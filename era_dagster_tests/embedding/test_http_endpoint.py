"""One exchange with servers that misbehave on the wire: real loopback connections, written byte by byte."""

import asyncio
import base64
import gzip
import logging
import time
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate

import httpx
import numpy as np
import orjson
import pytest

from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import EndpointBusy, EndpointRefused, EndpointUnavailable, EraError, TextsTooLarge
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.ollama import OllamaProvider
from era_dagster.embedding.openai import OpenAIProvider
from era_dagster.embedding.provider import LONGEST_ERROR_BYTES, LONGEST_VECTOR_BYTES, SPARE_ANSWER_BYTES, Answer
from era_dagster.embedding.report import EmbedReport
from era_dagster.embedding.responses import Verdict
from era_dagster_tests.fakes import embedding_server
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving

Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]

GOOD = orjson.dumps({"embeddings": [[0.6, 0.8]]})
MOST_BYTES = SPARE_ANSWER_BYTES + LONGEST_VECTOR_BYTES + 1000
"""Above the bound for one short text."""


def head(*lines: str, status: int = 200) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode("latin-1")


def whole(body: bytes, *lines: str, status: int = 200) -> bytes:
    return head(f"Content-Length: {len(body)}", *lines, status=status) + body


def ask(*replies: bytes | Reply, timeout_seconds: float = 10.0) -> tuple[list[Answer | Verdict], int]:
    """Ask once for each reply, one after the other; gives the answers and the number of connections."""
    left = list(replies)
    connections: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        try:
            while left:
                request = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in request.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                reply = left.pop(0)
                if isinstance(reply, bytes):
                    writer.write(reply)
                else:
                    await reply(writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()

    async def main() -> list[Answer | Verdict]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            provider = OllamaProvider(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "m")
            answers = [await provider.embed(["text"], timeout_seconds) for _ in replies]
            await provider.close()
            tasks = [task for task in connections if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return answers

    return asyncio.run(main()), len(connections)


def failure(answer: Answer | Verdict) -> tuple[type[EraError], Outcome, str]:
    assert isinstance(answer, Verdict)
    return type(answer.error), answer.outcome, answer.error.message


async def without_end(writer: asyncio.StreamWriter) -> None:
    """Chunks of blanks, which JSON allows, for ever."""
    block = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    while True:
        writer.write(block)
        await writer.drain()


async def endless_body(writer: asyncio.StreamWriter) -> None:
    writer.write(head("Transfer-Encoding: chunked"))
    await without_end(writer)


async def endless_error(writer: asyncio.StreamWriter) -> None:
    writer.write(head("Transfer-Encoding: chunked", "Retry-After: 3", status=429))
    await without_end(writer)


def test_a_body_without_end_is_read_up_to_what_may_be_right_and_the_next_request_has_a_new_connection() -> None:
    (first, second), connections = ask(endless_body, whole(GOOD))
    error, outcome, message = failure(first)
    assert (error, outcome) == (EndpointUnavailable, Outcome.FAILED)
    assert "answered more than" in message
    assert isinstance(second, Answer)
    assert connections == 2


async def crumbs(writer: asyncio.StreamWriter) -> None:
    writer.write(head("Transfer-Encoding: chunked"))
    for _ in range(40):
        writer.write(b"2\r\n  \r\n" * 1000)
        await writer.drain()
    writer.write(b"0\r\n\r\n")


def test_a_body_in_chunks_of_two_bytes_takes_little_more_memory_than_in_one_piece() -> None:
    ask(whole(GOOD))  # whatever is loaded once is
    tracemalloc.start()
    try:
        (answer,), _ = ask(crumbs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "answered nothing" in failure(answer)[2]
    assert peak < 2_500_000


def test_an_error_without_end_is_still_judged_by_its_status() -> None:
    (first, second), connections = ask(endless_error, whole(GOOD))
    assert failure(first)[:2] == (EndpointBusy, Outcome.RATE_LIMITED)
    assert isinstance(second, Answer)
    assert connections == 2


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_packed_body_is_unpacked_no_further_than_what_may_be_right(encoding: str) -> None:
    packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    tracemalloc.start()
    try:
        (answer,), _ = ask(whole(bomb, f"Content-Encoding: {encoding}"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "answered more than" in failure(answer)[2]
    assert peak < 8 * MOST_BYTES < 64 << 20


def test_a_packed_error_is_unpacked_as_far_as_it_is_read() -> None:
    body = gzip.compress(b'{"error":"the model is loading"}' + b" " * 1_000_000)
    (answer,), _ = ask(whole(body, "Content-Encoding: gzip", status=503))
    assert len(body) < LONGEST_ERROR_BYTES
    assert "the model is loading" in failure(answer)[2]


def test_no_packing_is_asked_for_and_what_comes_packed_is_read() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(whole(gzip.compress(GOOD), "Content-Encoding: gzip", "Connection: close"))
        await writer.drain()
        writer.close()

    async def main() -> Answer | Verdict:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            provider = OllamaProvider(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "m")
            answer = await provider.embed(["text"], 10.0)
            await provider.close()
            return answer

    assert isinstance(asyncio.run(main()), Answer)
    assert b"accept-encoding: identity\r\n" in asked[0].lower()


def test_what_claims_to_be_packed_and_is_not_is_no_json() -> None:
    (answer,), _ = ask(whole(b"\x1f\x8b123456", "Content-Encoding: gzip"))
    assert failure(answer)[:2] == (EndpointUnavailable, Outcome.FAILED)


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(head("Content-Length: 1000"))
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


def test_a_body_that_comes_byte_by_byte_ends_with_the_time_out() -> None:
    started = time.monotonic()
    (answer,), _ = ask(drip, timeout_seconds=0.3)
    assert failure(answer)[:2] == (EndpointUnavailable, Outcome.TIMED_OUT)
    assert "gave no answer within 0.3 s" in failure(answer)[2]
    assert time.monotonic() - started < 3.0


async def half(writer: asyncio.StreamWriter) -> None:
    writer.write(whole(GOOD)[:-10])
    writer.write_eof()


def test_a_connection_half_closed_inside_a_body_is_a_failure_at_once() -> None:
    (first, second), connections = ask(half, whole(GOOD))
    assert failure(first)[:2] == (EndpointUnavailable, Outcome.FAILED)
    assert "closed connection" in failure(first)[2]
    assert isinstance(second, Answer)
    assert connections == 2


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    raise ConnectionAbortedError


def test_a_connection_that_is_closed_as_a_request_goes_out_on_it_is_no_failure_and_another_is_made_at_once() -> None:
    answers, connections = ask(whole(GOOD), hang_up, whole(GOOD), whole(GOOD))
    assert [type(answer) for answer in answers[:3]] == [Answer] * 3
    assert connections >= 2


def test_a_connection_that_breaks_off_while_a_request_is_worked_on_is_a_failure_and_it_is_not_sent_twice_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy that gives a slow server a minute made each such request two, and nobody slowed down."""
    monkeypatch.setattr("era_dagster.embedding.provider.CLOSED_BEFORE_SECONDS", 0.1)

    async def hang_up_later(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        await hang_up(writer)

    (_, second, third), _ = ask(whole(GOOD), hang_up_later, whole(GOOD))
    assert failure(second)[:2] == (EndpointUnavailable, Outcome.FAILED)
    assert isinstance(third, Answer)


def test_a_server_that_hangs_up_on_a_new_connection_has_failed() -> None:
    (first, second), _ = ask(hang_up, whole(GOOD))
    assert failure(first)[:2] == (EndpointUnavailable, Outcome.FAILED)
    assert isinstance(second, Answer)


def test_a_moment_to_come_back_is_read_also_in_an_answer_without_a_date() -> None:
    headers = [f"Retry-After: {formatdate(time.time() + wait, usegmt=True)}" for wait in (3600.0, -3600.0)]
    later, before = ask(whole(b"", headers[0], status=429), whole(b"", headers[1], status=503))[0]
    assert isinstance(later, Verdict)
    assert later.retry_after_seconds == pytest.approx(3600.0, abs=600.0)
    assert isinstance(before, Verdict)
    assert before.retry_after_seconds == 0.0


@pytest.mark.parametrize("count", ["9" * 400, "-5", "0", "true", "1e400", '"7"', "[7]", "1000"])
def test_a_count_of_tokens_that_cannot_be_meant_is_none_and_the_vectors_stay(count: str) -> None:
    (answer,), _ = ask(whole(GOOD[:-1] + b',"prompt_eval_count":' + count.encode() + b"}"))
    assert isinstance(answer, Answer)
    assert answer.tokens is None


def test_cookies_are_neither_kept_nor_sent_back() -> None:
    sent: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"Set-Cookie": f"place{len(sent)}=x; Path=/"}, content=GOOD)

    async def main() -> None:
        provider = OllamaProvider("http://host.example", "m", transport=httpx.MockTransport(answer))
        for _ in range(3):
            assert isinstance(await provider.embed(["text"], 5.0), Answer)

    asyncio.run(main())
    assert sent == [None] * 3


class Doorman(FakeEmbeddingServer):
    """Remembers how it was asked to let somebody in."""

    def __init__(self) -> None:
        super().__init__(dimension=2)
        self.logins: list[str | None] = []

    async def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> embedding_server.Reply:
        self.logins.append(headers.get("authorization"))
        return await super().handle(method, path, headers, body)


def basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


@pytest.mark.parametrize("provider", [OllamaProvider, OpenAIProvider])
@pytest.mark.parametrize(
    ("user", "key", "login"),
    [
        ("admin:hunter2@", None, basic("admin:hunter2")),
        ("the%20admin:hunter%402%3a%2f@", None, basic("the admin:hunter@2:/")),
        (":hunter2@", None, basic(":hunter2")),
        ("hunter2@", None, basic("hunter2:")),
        ("admin:hunter2@", "sk-key", basic("admin:hunter2")),
        ("", "sk-key", "Bearer sk-key"),
        ("", None, None),
    ],
)
def test_user_and_password_of_a_url_let_in_and_stand_in_no_line_of_the_log(
    provider: type[OllamaProvider | OpenAIProvider],
    user: str,
    key: str | None,
    login: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server = Doorman()
    with serving(server) as url:

        async def main() -> None:
            asked = provider(url.replace("://", f"://{user}") + "/", server.model, api_key=key)
            assert asked.url == url
            assert not isinstance(await asked.identify(5.0, 5.0), Verdict)
            assert isinstance(await asked.embed(["text"], 5.0), Answer)
            await asked.close()

        asyncio.run(main())
    assert set(server.logins) == {login}
    assert f'{url}/api/embed "' in caplog.text or f'{url}/v1/embeddings "' in caplog.text
    for secret in ("hunter", "admin", "sk-key", basic("admin:hunter2").split()[1]):
        assert secret not in caplog.text


def test_an_empty_answer_is_called_so() -> None:
    (answer, no_content), _ = ask(whole(b""), head(status=204))
    for each in (answer, no_content):
        assert failure(each)[:2] == (EndpointUnavailable, Outcome.FAILED)
        assert failure(each)[2].endswith("answered nothing.")


def test_json_that_breaks_off_is_no_answer() -> None:
    (answer,), _ = ask(whole(GOOD[:-10]))
    assert failure(answer)[:2] == (EndpointUnavailable, Outcome.FAILED)
    assert "no JSON" in failure(answer)[2]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_but_named(status: int) -> None:
    (answer,), connections = ask(whole(b"", "Location: http://127.0.0.1:9/elsewhere", status=status))
    assert failure(answer)[:2] == (EndpointRefused, Outcome.TEXTS)
    assert f"answered {status}" in failure(answer)[2]
    assert connections == 1


def message_of(status: int, body: bytes, key: str | None = None) -> str:
    """What is told of one answer, in the OpenAI dialect."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    provider = OpenAIProvider("http://host", "m", api_key=key, transport=transport)
    return failure(asyncio.run(provider.embed(["text"], 10.0)))[2]


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
@pytest.mark.parametrize("key", ["sk-secret-123456", 'ab"cd/efgh\\12', "it's<a>key&\\\\9", "sk-" + "secret" * 300])
def test_a_key_that_a_server_names_is_not_shown_whatever_the_status_and_however_it_is_quoted(
    status: int, key: str
) -> None:
    words = f"Incorrect API key provided: {key}"
    once = orjson.dumps({"error": words})
    bodies = [
        once,
        once[:-1],
        once.replace(b"/", b"\\/"),
        orjson.dumps([words]),
        orjson.dumps({"error": {"message": words}}),
        orjson.dumps({"error": {"said": [words]}}),
        orjson.dumps({"error": f"XException - {once.decode()}"}),
        orjson.dumps({"error": orjson.dumps({"error": once.decode()}).decode()}),
        words.encode(),
    ]
    for body in bodies:
        told = message_of(status, body, key)
        assert "Incorrect API key provided: ***" in told, body
        assert key[:8] not in told


def test_a_short_key_may_be_a_word_like_any_other() -> None:
    assert "answered 400: none of it" in message_of(400, b'{"error":"none of it"}', "none")
    assert "answered 400: no backslash is a key" in message_of(400, b'{"error":"no backslash is a key"}', "\\" * 9)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (b'"bad \\ud800 text"', "bad text"),
        (b"[" * 300 + b"1" + b"]" * 300, "[[["),
        (b'{"code":123456789012345678901234567890,"message":"m"}', "m, 123456789012345678901234567890"),
        (b"NaN", "nan"),
    ],
)
def test_an_error_in_whatever_json_is_read_beside_vectors_that_are_none(error: bytes, told: str) -> None:
    assert f"It says: {told}" in message_of(200, b'{"x":NaN,"error":%b}' % error)


@pytest.mark.parametrize(
    ("places", "first"),
    [([1, 0], 0.8), ([0, 0], None), ([True, False], None), (["0", "1"], None), ([1, 2], None), ([-1, 0], None)],
)
def test_vectors_of_the_openai_dialect_are_placed_by_whole_numbers_that_come_once(
    places: list[object], first: float | None
) -> None:
    rows = [[0.6, 0.8], [0.8, 0.6]]
    data = [{"index": place, "embedding": row} for place, row in zip(places, rows, strict=True)]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"data": data}))
    answer = asyncio.run(OpenAIProvider("http://host.example", "m", transport=transport).embed(["a", "b"], 5.0))
    if first is None:
        assert failure(answer)[:2] == (TextsTooLarge, Outcome.TOO_LARGE)
    else:
        assert isinstance(answer, Answer)
        assert answer.vectors[0, 0] == pytest.approx(first)


@pytest.mark.parametrize("row", [None, [0.6, 0.8], {"index": 0, "embedding": None}])
def test_rows_that_are_no_vectors_are_the_servers_failure_and_say_nothing_of_how_many_texts_it_takes(
    row: object,
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"data": [row] * 2, "error": "out of memory"}))
    answer = asyncio.run(OpenAIProvider("http://host.example", "m", transport=transport).embed(["a", "b"], 5.0))
    error, outcome, message = failure(answer)
    assert (error, outcome) == (EndpointUnavailable, Outcome.FAILED)
    assert "out of memory" in message


@pytest.mark.parametrize("place", [0, 3, -1, "0"])
def test_texts_go_one_by_one_to_a_server_that_numbers_their_vectors_wrongly(place: object) -> None:
    asked: list[list[str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        texts = orjson.loads(request.content)["input"]
        asked.append(texts)
        data = [{"index": place, "embedding": embedding_server.vector_of(text).tolist()} for text in texts]
        return httpx.Response(200, json={"data": data})

    texts = [f"text {number}" for number in range(150)]

    async def main() -> EmbedReport:
        config = EmbedderConfig(provider="openai", urls=("http://host.example",), model="m", retry_budget_seconds=5.0)
        async with Embedder(config, transport=httpx.MockTransport(answer)) as embedder:
            return await embedder.embed(texts)

    report = asyncio.run(main())
    assert report.failures == ()
    for text, vector in zip(texts, report.vectors, strict=True):
        assert vector is not None
        np.testing.assert_allclose(vector, embedding_server.vector_of(text), atol=1e-5)
    assert sum(len(each) > 1 for each in asked) < 20


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("https://host", "/v1/embeddings"),
        ("https://host/openai/v1/", "/openai/v1/embeddings"),
        ("https://host/v1/embeddings", "/v1/embeddings"),
        ("https://host/v1beta/openai/embeddings/", "/v1beta/openai/embeddings"),
        ("https://host/embeddings", "/embeddings"),
    ],
)
def test_an_openai_url_that_names_the_embeddings_themselves_is_asked_as_it_is(url: str, asked: str) -> None:
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(200, json={"data": [{"index": 0, "embedding": [1.0, 2.0]}]})

    provider = OpenAIProvider(url, "m", transport=httpx.MockTransport(answer))
    assert isinstance(asyncio.run(provider.embed(["a text"], 5.0)), Answer)
    assert paths == [asked]
