"""Servers that refuse because they are full, proxies that call a rate 503, and those behind which one of several is down."""

import asyncio
import math
from collections.abc import Callable

import httpx
import orjson
import pytest

from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embed_texts import embed_texts
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.provider import CANARY
from era_dagster.embedding.report import EmbedReport
from era_dagster.embedding.work import Batch, BatchSize, Item, WorkQueue
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport
from era_dagster_tests.fakes.virtual_time import run_virtually

URL = "http://server"
SECONDS_PER_TEXT = 0.01
# Word for word what Infinity 0.0.78 and text-embeddings-inference 1.x answer, and nginx.
INFINITY = httpx.Response(429, json={"error": {"message": "model m is currently overloaded", "code": 429}})
TEI = httpx.Response(429, json={"error": "Model is overloaded", "error_type": "overloaded"})
NGINX = httpx.Response(503, text="<html><head><title>503 Service Temporarily Unavailable</title></head></html>")


class Proxied(httpx.AsyncBaseTransport):
    """A server whose texts take their time in four places; `refuses` is asked with the texts inside and those that come."""

    def __init__(self, refuses: Callable[[int, int], bool], response: httpx.Response) -> None:
        self._refuses = refuses
        self._response = response
        self._places = asyncio.Semaphore(4)
        self._inside = 0
        self.refused = 0
        self.sizes: list[int] = []
        self.answered_at: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"version": "1", "models": []})
        wanted = orjson.loads(request.content)["input"]
        if self._refuses(self._inside, len(wanted)):
            self.refused += 1
            await asyncio.sleep(0.001)
            return httpx.Response(self._response.status_code, content=self._response.content)
        self.sizes.append(len(wanted))
        self._inside += len(wanted)
        async with self._places:
            await asyncio.sleep(SECONDS_PER_TEXT * len(wanted))
        self._inside -= len(wanted)
        self.answered_at += [asyncio.get_running_loop().time()] * len(wanted)
        return httpx.Response(200, json={"embeddings": [[0.1, 0.2, 0.3] for _ in wanted]})


def embedded(server: Proxied, count: int) -> tuple[EmbedReport, float]:
    """What comes of so many texts, and in how many seconds."""

    async def main() -> tuple[EmbedReport, float]:
        began = asyncio.get_running_loop().time()
        async with Embedder(EmbedderConfig(urls=(URL,), model="m"), transport=server) as embedder:
            report = await embedder.embed([f"text {number}" for number in range(count)])
        return report, asyncio.get_running_loop().time() - began

    return run_virtually(main())


@pytest.mark.parametrize("response", [INFINITY, TEI, NGINX], ids=["infinity", "tei", "503"])
def test_a_server_that_is_full_is_filled_nearly_and_hardly_refuses_anything(response: httpx.Response) -> None:
    server = Proxied(lambda inside, more: inside + more > 40, response)
    report, seconds = embedded(server, 8000)
    assert not report.failures
    assert seconds < 1.25 * 8000 * SECONDS_PER_TEXT / 4
    assert server.refused < 0.05 * len(server.sizes)


@pytest.mark.parametrize("response", [INFINITY, NGINX], ids=["429", "503"])
def test_room_that_becomes_less_by_a_third_is_followed(response: httpx.Response) -> None:
    server = Proxied(lambda inside, more: inside + more > (60 if len(server.answered_at) < 6000 else 40), response)
    report, seconds = embedded(server, 12_000)
    assert not report.failures
    assert seconds < 1.25 * 12_000 * SECONDS_PER_TEXT / 4


def test_a_moment_in_which_everything_is_refused_is_over_when_it_is_over() -> None:
    server = Proxied(lambda _inside, _more: 5.0 < asyncio.get_running_loop().time() < 5.3, NGINX)
    report, seconds = embedded(server, 16_000)
    assert not report.failures
    assert seconds < 1.1 * 16_000 * SECONDS_PER_TEXT / 4


def test_a_rate_that_a_proxy_calls_503_is_learnt_and_costs_no_text() -> None:
    opens_at = 0.0

    def refuses(_inside: int, _more: int) -> bool:
        nonlocal opens_at
        now = asyncio.get_running_loop().time()
        if now < opens_at:
            return True
        opens_at = now + 0.1
        return False

    server = Proxied(refuses, NGINX)
    report, seconds = embedded(server, 6000)
    assert not report.failures
    assert server.refused < 0.5 * len(server.sizes)
    assert seconds < 60, "ten requests a second of a tenth of a second each: two minutes if they held a few texts"


def test_a_rate_that_is_called_503_is_not_forgotten_over_an_outage_that_is_called_503_too() -> None:
    level, at = 10.0, 0.0

    def refuses(_inside: int, _more: int) -> bool:
        nonlocal level, at
        now = asyncio.get_running_loop().time()
        if 40 < now < 100:
            return True
        level, at = min(10.0, level + 10.0 * (now - at)), now
        if level < 1.0:
            return True
        level -= 1.0
        return False

    server = Proxied(refuses, NGINX)
    report, took = embedded(server, 40_000)
    assert not report.failures
    assert server.refused < 150
    assert took < 240, (
        "forty seconds before the outage, a minute of it, and a minute and a half after it if nothing were lost"
    )


def test_where_one_of_three_servers_behind_an_address_is_down_the_others_are_used_in_full() -> None:
    turn = 0

    def refuses(_inside: int, _more: int) -> bool:
        nonlocal turn
        turn += 1
        return turn % 3 == 0

    server = Proxied(refuses, NGINX)
    report, _ = embedded(server, 20_000)
    assert not report.failures
    assert server.answered_at[18_000] < 1.3 * 18_000 * SECONDS_PER_TEXT / 4, "the last ones wait for their turn"


class Spoilt(Proxied):
    """A server that gives some texts the vector zero, and refuses the first requests with such texts."""

    def __init__(self, response: httpx.Response, *, refused_first: float) -> None:
        super().__init__(lambda _inside, _more: False, response)
        self._refused_first = refused_first

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        wanted = orjson.loads(request.content)["input"] if request.method == "POST" else []
        spoilt = [text.startswith("spoilt") for text in wanted]
        if any(spoilt) and self.refused < self._refused_first:
            self.refused += 1
            return httpx.Response(self._response.status_code)
        answer = await super().handle_async_request(request)
        if any(spoilt):
            return httpx.Response(200, json={"embeddings": [[0.0 if bad else 0.1] * 3 for bad in spoilt]})
        return answer


def spoilt_among_good(server: Spoilt, spoilt: int) -> EmbedReport:
    """What comes of these among six hundred others; an endless run ends after half an hour."""
    texts = [f"text {number}" for number in range(600)] + [f"spoilt {number}" for number in range(spoilt)]

    async def main() -> EmbedReport:
        async with (
            Embedder(EmbedderConfig(urls=(URL,), model="m"), transport=server) as embedder,
            asyncio.timeout(1800),
        ):
            return await embedder.embed(texts)

    return run_virtually(main())


@pytest.mark.parametrize(("response", "refused_first"), [(NGINX, 3), (TEI, 1)], ids=["503", "429"])
def test_texts_that_have_no_vector_are_told_one_by_one_also_when_they_were_refused_together_before(
    response: httpx.Response, refused_first: int
) -> None:
    report = spoilt_among_good(Spoilt(response, refused_first=refused_first), 100)
    assert [failure.position for failure in report.failures] == list(range(600, 700))


def test_many_texts_that_are_refused_with_503_whatever_is_beside_them_are_given_up_and_no_others() -> None:
    report = spoilt_among_good(Spoilt(NGINX, refused_first=math.inf), 40)
    assert [failure.position for failure in report.failures] == list(range(600, 640))


# --- the queue ---


class Busy(httpx.AsyncBaseTransport):
    """A server that rejects what is too long, and for five seconds answers every text of ours with `response`."""

    def __init__(self, response: httpx.Response) -> None:
        self._inner = FakeTransport(FakeEmbeddingServer(dimension=8))
        self._response = response
        self.ours: list[float] = []
        self.at_fault = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        now, wanted = asyncio.get_running_loop().time(), orjson.loads(request.content)["input"]
        await asyncio.sleep(0.01)
        if wanted == ["at fault"]:
            self.at_fault += 1
            return httpx.Response(400, json={"error": "bad text"})
        if wanted == [CANARY] and now < 5.0:
            self.ours.append(now)
            return httpx.Response(self._response.status_code, content=self._response.content)
        return await self._inner.handle_async_request(request)


@pytest.mark.parametrize("response", [INFINITY, NGINX], ids=["429", "503"])
def test_a_text_of_our_own_that_is_refused_is_no_attempt_of_the_text_it_checks_and_is_not_sent_again_at_once(
    response: httpx.Response,
) -> None:
    """A text that was sent twice was told to have been sent twenty times, and after each 503 ours went again at once."""
    server = Busy(response)
    wanted = ["at fault", *(f"text {number}" for number in range(20))]
    report = run_virtually(embed_texts(wanted, urls=URL, model="test-model", transport=server))
    assert [failure.attempts for failure in report.failures] == [server.at_fault] == [2]
    assert (report.texts_sent, report.retries) == (len(wanted) + 1, 1)
    assert server.ours[1] - server.ours[0] > 0.05


def refused(*texts: str, **history: object) -> Batch:
    return Batch(items=[Item(text, 1, None) for text in texts], may_join=True, **history)  # type: ignore[arg-type]


def taken(*batches: Batch, now: float = 1.0, items: int = 8) -> list[str]:
    """The texts of the next request, where these batches wait, each since the moment of its place."""
    queue = WorkQueue()
    for at, batch in enumerate(batches):
        queue.again(batch, at / 10)
    before = queue.pending
    batch = queue.take(now, BatchSize(items=items, tokens=1000), url=URL, open_at=frozenset())
    assert batch is not None
    assert queue.pending == before - len(batch.items)
    return [item.text for item in batch.items]


def test_texts_that_were_only_refused_travel_together() -> None:
    assert taken(refused("a"), refused("b", "c"), refused("d")) == ["a", "b", "c", "d"]


def test_no_more_travel_together_than_a_request_may_hold_nor_before_their_time() -> None:
    assert taken(refused("a"), refused("b", "c"), refused("d"), items=3) == ["a", "b", "c"]
    assert taken(refused("a"), refused("b", "c"), items=2) == ["a"]
    assert taken(refused("a"), refused("b"), now=0.05) == ["a"]


def test_texts_that_may_be_what_fails_keep_their_company() -> None:
    assert taken(refused("a"), Batch(items=[Item("b", 1, None)])) == ["a"]
    assert taken(Batch(items=[Item("a", 1, None)]), refused("b")) == ["a"]
    assert taken(refused("a"), refused("b", failures=1)) == ["a"], "and none is given up for the failures of another"


def test_texts_that_travel_together_keep_the_longest_history_and_leave_out_what_is_settled() -> None:
    queue, other = WorkQueue(), refused("b", "c", attempts=5, first_sent_at=1.0)
    other.items[0].settled = True
    queue.again(refused("a", attempts=2, first_sent_at=3.0), 0.0)
    queue.again(other, 0.1)
    batch = queue.take(4.0, BatchSize(items=8, tokens=1000), url=URL, open_at=frozenset())
    assert batch is not None
    assert [item.text for item in batch.items] == ["a", "c"]
    assert (batch.attempts, batch.first_sent_at, queue.pending) == (5, 1.0, 0)
