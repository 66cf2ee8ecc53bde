"""Servers that count requests or tokens and refuse with 429: what is not its fault costs no text."""

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

import httpx
import orjson
import pytest

from era_dagster.domain.errors import EndpointUnavailable
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embed_texts import embed_texts
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.provider import CANARY
from era_dagster.embedding.report import EmbedReport
from era_dagster.embedding.vectors import Vector
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport, vector_of
from era_dagster_tests.fakes.virtual_time import run_virtually

URL = "http://server"


def refusal(wait: float | None) -> httpx.Response:
    headers = {} if wait is None else {"Retry-After": str(wait)}
    return httpx.Response(429, headers=headers, content=b'{"error":{"message":"rate limit"}}')


class Window(httpx.AsyncBaseTransport):
    """One request in each window of so many seconds, by host; `honest`: says when the next window opens."""

    def __init__(
        self, server: FakeEmbeddingServer | Mapping[str, FakeEmbeddingServer], *, seconds: float, honest: bool
    ) -> None:
        self._inner = FakeTransport(server)
        self._seconds = seconds
        self._honest = honest
        self._opens_at: defaultdict[str, float] = defaultdict(float)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        now, host = asyncio.get_running_loop().time(), request.url.host
        if now < self._opens_at[host]:
            return refusal(self._opens_at[host] - now if self._honest else None)
        self._opens_at[host] = (now // self._seconds + 1) * self._seconds
        return await self._inner.handle_async_request(request)


class Tokens(httpx.AsyncBaseTransport):
    """A bucket of characters that fills steadily; a request larger than the bucket is refused for ever."""

    def __init__(self, server: FakeEmbeddingServer, *, most: float, each_second: float, wait: float | None) -> None:
        self._inner = FakeTransport(server)
        self._most = self._level = most
        self._each_second = each_second
        self._wait = wait
        self._at = 0.0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        now = asyncio.get_running_loop().time()
        self._level = min(self._most, self._level + self._each_second * (now - self._at))
        self._at = now
        needed = sum(map(len, orjson.loads(request.content)["input"]))
        if needed > self._level:
            return refusal(self._wait)
        self._level -= needed
        return await self._inner.handle_async_request(request)


def embed(
    wanted: list[str], server: FakeEmbeddingServer, transport: httpx.AsyncBaseTransport, **options
) -> EmbedReport:
    return run_virtually(embed_texts(wanted, urls=URL, model=server.model, transport=transport, **options))


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("most", [1, 128])
def test_one_request_a_minute_loses_no_text(most: int, honest: bool) -> None:
    server = FakeEmbeddingServer(dimension=4)
    server.seconds_per_text, server.slots = 0.002, 16
    wanted = [f"text number {number}" for number in range(150)]
    report = embed(wanted, server, Window(server, seconds=60.0, honest=honest), batch_items=most)
    assert report.failures == ()
    assert report.seconds < 60.0 * 151


@pytest.mark.parametrize("wait", [None, 5.0])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_text_larger_than_the_whole_allowance_is_given_up_and_holds_nobody_up(wait: float | None, place: int) -> None:
    server = FakeEmbeddingServer(dimension=4)
    wanted = [f"text number {number}" for number in range(6)]
    wanted.insert(place, "x" * 4000)
    report = embed(wanted, server, Tokens(server, most=200.0, each_second=80.0, wait=wait))
    assert [failure.position for failure in report.failures] == [place]
    assert report.failures[0].error_class == "EndpointBusy"
    assert 120.0 < report.seconds < 600.0


@pytest.mark.parametrize(("place", "wait"), [(0, 50.0), (2, 50.0), (0, 60.0)])
def test_a_text_larger_than_the_whole_allowance_does_not_end_the_run_where_the_server_asks_for_long_waits(
    place: int, wait: float
) -> None:
    server = FakeEmbeddingServer(dimension=4)
    wanted = ["a", "b"]
    wanted.insert(place, "x" * 4000)
    report = embed(wanted, server, Tokens(server, most=200.0, each_second=80.0, wait=wait))
    assert [failure.position for failure in report.failures] == [place]
    assert report.failures[0].error_class == "EndpointBusy"
    assert report.seconds < 600.0


class Daily(httpx.AsyncBaseTransport):
    """Ten requests a day, and says so; what comes after is refused."""

    def __init__(self, server: FakeEmbeddingServer) -> None:
        self._inner = FakeTransport(server)
        self._left = 10

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._left == 0:
            return refusal(None)
        self._left -= 1
        response = await self._inner.handle_async_request(request)
        said = {"limit": "10", "remaining": str(self._left), "reset": "24h0m0s"}
        for name, value in said.items():
            response.headers[f"x-ratelimit-{name}-requests"] = value
        return response


def test_an_allowance_that_is_used_up_until_tomorrow_ends_the_run_at_once_and_says_so() -> None:
    server = FakeEmbeddingServer(dimension=4)

    async def main() -> float:
        with pytest.raises(EndpointUnavailable, match=f"{URL} has given all that its rate limit headers allow"):
            await embed_texts([str(n) for n in range(5000)], urls=URL, model=server.model, transport=Daily(server))
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) < 10.0


def test_a_server_that_refuses_everything_ends_the_run_when_its_patience_ends() -> None:
    server = FakeEmbeddingServer(dimension=4)

    async def main() -> float:
        with pytest.raises(EndpointUnavailable, match="429"):
            transport = Tokens(server, most=0.0, each_second=0.0, wait=None)
            await embed_texts(["a"], urls=URL, model=server.model, transport=transport)
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == pytest.approx(120.0)


class Answers(httpx.AsyncBaseTransport):
    """A server in a few words: `answer` gets the host and the texts; vectors where it gives no response."""

    def __init__(self, answer: Callable[[str, list[str]], Awaitable[httpx.Response | None]]) -> None:
        self._answer = answer
        self.sent: list[tuple[float, list[str]]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"version": "1", "models": []})
        wanted = orjson.loads(request.content)["input"]
        self.sent.append((asyncio.get_running_loop().time(), wanted))
        response = await self._answer(request.url.host, wanted)
        return vectors(wanted) if response is None else response


def vectors(wanted: list[str], **headers: str) -> httpx.Response:
    return httpx.Response(200, json={"embeddings": [vector_of(text, 8).tolist() for text in wanted]}, headers=headers)


def run(transport: Answers, wanted: list[str], *, urls: tuple[str, ...] = (URL,), **options) -> EmbedReport:
    cache = options.pop("cache", None)

    async def main() -> EmbedReport:
        config = EmbedderConfig(urls=urls, model="m", **options)
        async with Embedder(config, transport=transport, cache=cache) as embedder:
            return await embedder.embed(wanted)

    return run_virtually(main())


class Remembers:
    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, Vector]:
        return {}

    def put_many(self, vectors: Mapping[bytes, Vector]) -> None:
        pass


def used_up(wanted: list[str]) -> httpx.Response:
    said = {"limit": "100", "remaining": "0", "reset": "86400"}
    return vectors(wanted, **{f"x-ratelimit-{part}-requests": value for part, value in said.items()})


@pytest.mark.parametrize("cache", [None, Remembers()])
def test_an_allowance_that_was_just_enough_does_not_fail_a_finished_run(cache: Remembers | None) -> None:
    async def answer(_: str, wanted: list[str]) -> httpx.Response | None:
        await asyncio.sleep(0.1 * int(wanted[0]) if wanted[0].isdigit() else 0.2)
        return used_up(wanted)

    assert run(Answers(answer), ["1", "2", "3", "4"], cache=cache).failures == ()


def test_requests_under_way_may_end_when_another_is_told_to_wait_for_longer_than_the_patience() -> None:
    async def alone(_: str, wanted: list[str]) -> httpx.Response | None:
        await asyncio.sleep(1.0)
        return refusal(1000.0) if wanted == ["x"] else None

    async def main() -> tuple[EmbedReport, BaseException]:
        config = EmbedderConfig(urls=(URL,), model="m")
        async with Embedder(config, transport=Answers(alone)) as embedder:
            one = asyncio.create_task(embedder.embed(["x"]))
            await asyncio.sleep(0.5)
            other = asyncio.create_task(embedder.embed(["y"]))
            return await other, (await asyncio.gather(one, return_exceptions=True))[0]

    report, error = run_virtually(main())
    assert report.failures == ()
    assert isinstance(error, EndpointUnavailable)


def once_a_minute(*, told: bool) -> Callable[[str, list[str]], Awaitable[httpx.Response | None]]:
    """The host `full` refuses everything; every other takes one request a minute."""
    opens_at = 0.0

    async def answer(host: str, _: list[str]) -> httpx.Response | None:
        nonlocal opens_at
        await asyncio.sleep(0.1)
        now = asyncio.get_running_loop().time()
        if host == "full":
            return refusal(60 if told else None)
        if now < opens_at:
            return refusal(math.ceil(opens_at - now) if told else None)
        opens_at = now + 59.999
        return None

    return answer


def test_one_request_a_minute_loses_no_text_whatever_turns_the_texts_take() -> None:
    wanted = [f"text {number}" for number in range(300)]
    assert run(Answers(once_a_minute(told=False)), wanted).failures == ()


def test_what_one_server_accepts_does_not_show_a_text_too_large_that_another_refuses() -> None:
    wanted = [f"text {number}" for number in range(30)]
    report = run(Answers(once_a_minute(told=True)), wanted, urls=("http://full", "http://other"), batch_items=1)
    assert report.failures == ()
    assert report.seconds < 60.0 * 31


def test_no_text_of_our_own_follows_a_refused_text_during_the_pause_the_server_asked_for() -> None:
    async def answer(_: str, wanted: list[str]) -> httpx.Response | None:
        if wanted == ["pause"] and asyncio.get_running_loop().time() < 1.0:
            await asyncio.sleep(0.5)
            return refusal(30.0)
        if wanted == ["wrong"]:
            await asyncio.sleep(1.0)
            return httpx.Response(400, json={"error": "bad text"})
        return None

    report = run(transport := Answers(answer), ["wrong", "pause"], batch_items=1)
    assert [failure.position for failure in report.failures] == [0]
    assert min(at for at, _ in transport.sent[2:]) >= 30.5


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("seconds", [1.0, 60.0])
def test_texts_at_fault_are_found_where_each_text_of_our_own_that_follows_one_is_refused(
    seconds: float, honest: bool
) -> None:
    """As behind nginx without `burst`: five such texts ended the run, and each run after it. Two servers must not take turns."""
    for hosts, at_fault, count in ((("one",), 5, 40), (("one", "two"), 1, 1)):
        servers = {host: FakeEmbeddingServer(dimension=8) for host in hosts}
        for server in servers.values():
            server.longest_text = 100
        wanted = [f"text {number}" + " that is too long" * (10 if number < at_fault else 0) for number in range(count)]
        transport, urls = Window(servers, seconds=seconds, honest=honest), [f"http://{host}" for host in hosts]
        report = run_virtually(embed_texts(wanted, urls=urls, model="test-model", transport=transport))
        assert [failure.position for failure in report.failures] == list(range(at_fault))
        assert sum(len(text) > 100 for server in servers.values() for text in server.texts) <= 3 * at_fault


def test_the_texts_of_our_own_that_follow_refused_texts_keep_the_decided_pace() -> None:
    async def answer(_: str, wanted: list[str]) -> httpx.Response | None:
        return None if wanted == [CANARY] else httpx.Response(400, json={"error": "bad text"})

    report = run(transport := Answers(answer), list("abcdefgh"), batch_items=1, max_items_per_second=1.0)
    assert len(report.failures) == 8
    assert len(transport.sent) <= report.seconds + 2


def test_a_server_that_dies_after_a_refusal_ends_the_run_and_gives_no_text_up() -> None:
    async def answer(_: str, wanted: list[str]) -> httpx.Response | None:
        if asyncio.get_running_loop().time() > 20.0:
            raise httpx.ConnectError("refused")
        return refusal(1.0) if any(len(text) > 3000 for text in wanted) else None

    with pytest.raises(EndpointUnavailable, match="cannot be reached"):
        run(Answers(answer), ["a", "x" * 4000, "b"])


@pytest.mark.parametrize("name", ["X-RateLimit-{}-Requests", "RateLimit-{}"])
@pytest.mark.parametrize(("limit", "length"), [(5, 1.0), (60, 60.0)])
def test_a_window_that_a_server_announces_is_never_overrun(limit: int, length: float, name: str) -> None:
    ends_at, left, refused = 0.0, 0, 0

    async def answer(_: str, wanted: list[str]) -> httpx.Response:
        nonlocal ends_at, left, refused
        await asyncio.sleep(0.02)
        now = asyncio.get_running_loop().time()
        if now >= ends_at:
            ends_at, left = (now // length + 1.0) * length, limit
        if left == 0:
            refused += 1
            return refusal(None)
        left -= 1
        said = {"Limit": str(limit), "Remaining": str(left), "Reset": f"{ends_at - now:.3f}s"}
        return vectors(wanted, **{name.format(part): value for part, value in said.items()})

    report = run(Answers(answer), [f"text {number}" for number in range(8 * limit)], batch_items=2)
    assert report.failures == ()
    assert refused == 0
    assert report.seconds < 5.0 * length


def test_what_a_server_announces_to_give_in_a_day_is_no_pace_for_work_of_seconds() -> None:
    left = 10_000

    async def answer(_: str, wanted: list[str]) -> httpx.Response:
        nonlocal left
        left -= 1
        said = {"limit": "10000", "remaining": str(left), "reset": str(86_400 - asyncio.get_running_loop().time())}
        await asyncio.sleep(0.05 + 0.002 * len(wanted))
        return vectors(wanted, **{f"ratelimit-{part}": value for part, value in said.items()})

    report = run(Answers(answer), [f"text {number}" for number in range(20_000)])
    assert report.failures == ()
    assert report.seconds < 30.0


class BehindGateway:
    """Five requests a second, or a hundred texts; a gateway before it tells of so many requests a day."""

    def __init__(self, status: int, *, counts_texts: bool, daily: int) -> None:
        self._status, self._counts_texts, self._daily = status, counts_texts, daily
        self._rate = self._level = 100.0 if counts_texts else 5.0
        self._at = 0.0
        self._received = 0

    async def __call__(self, _: str, wanted: list[str]) -> httpx.Response:
        now = asyncio.get_running_loop().time()
        self._received += 1
        self._level, self._at = min(self._rate, self._level + self._rate * (now - self._at)), now
        units = len(wanted) if self._counts_texts else 1
        fits = units <= self._level
        self._level -= units if fits else 0
        await asyncio.sleep(0.05 + 0.002 * len(wanted) if fits else 0.003)
        response = vectors(wanted) if fits else httpx.Response(self._status, content=b"busy")
        left, reset = self._daily - self._received, math.ceil(86_400.0 - now)
        response.headers["RateLimit"] = f"limit={self._daily}, remaining={left}, reset={reset}"
        return response


def test_a_rate_that_a_server_calls_503_is_no_chance_because_a_gateway_tells_of_a_slow_allowance_for_the_day() -> None:
    server = BehindGateway(503, counts_texts=False, daily=100_000)
    report = run(Answers(server), [f"text {number}" for number in range(10_000)])
    assert report.failures == ()
    assert report.seconds < 60.0


def test_requests_do_not_become_larger_than_a_server_takes_because_a_gateway_tells_of_few_for_the_day() -> None:
    server = BehindGateway(429, counts_texts=True, daily=1000)
    report = run(Answers(server), [f"text {number}" for number in range(5000)])
    assert report.failures == ()
    assert report.seconds < 150.0


def test_requests_that_are_larger_than_a_bucket_of_texts_are_not_tried_over_and_over() -> None:
    """Before, they were by turns as large as fits and twice as large, and the slowest pace of requests was never left."""
    level, at = 50.0, 0.0

    async def answer(_: str, wanted: list[str]) -> httpx.Response | None:
        nonlocal level, at
        now = asyncio.get_running_loop().time()
        level, at = min(50.0, level + 10.0 * (now - at)), now
        fits = len(wanted) <= level
        level -= len(wanted) if fits else 0
        await asyncio.sleep(0.05 + 0.002 * len(wanted) if fits else 0.003)
        return None if fits else refusal(None)

    report = run(Answers(answer), [f"text {number}" for number in range(1200)])
    assert report.failures == ()
    assert report.seconds < 1.5 * (1200 - 50) / 10.0
