"""Servers that are slow to begin, or never do: when they are given up, and that no text pays for it."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import httpx
import pytest

from era_dagster.domain.errors import BadVectors, ConfigurationError, EndpointRefused, EndpointUnavailable
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.provider import CANARY
from era_dagster.embedding.report import EmbedReport
from era_dagster.embedding.vectors import Vector
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport, Fault
from era_dagster_tests.fakes.virtual_time import VirtualTimeLoop, run_virtually

URL = "http://server"


class Forgets:
    """A cache without memory."""

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, Vector]:
        return {}

    def put_many(self, vectors: Mapping[bytes, Vector]) -> None:
        pass


def texts(count: int) -> list[str]:
    return [f"text number {number}" for number in range(count)]


# --- nobody answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("cache", [None, Forgets()])
@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_a_server_that_never_answers_is_given_up_when_the_patience_ends_and_no_text_with_it(
    provider: Literal["ollama", "openai"], cache: Forgets | None, count: int
) -> None:
    server = FakeEmbeddingServer()
    server.always = Fault(stall=True)

    async def main() -> float:
        config = EmbedderConfig(provider=provider, urls=(URL,), model=server.model)
        async with Embedder(config, transport=FakeTransport(server), cache=cache) as one:
            with pytest.raises(EndpointUnavailable, match=f"{URL}.*gave no answer within 120 s"):
                await one.embed(texts(count))
            assert one.stats().failed == 0
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == pytest.approx(120.0)


@pytest.mark.parametrize("moment", [0.02, 0.3])
def test_a_process_that_stood_still_does_not_take_its_server_for_dead_nor_a_text_for_tried_too_long(
    moment: float,
) -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.05

    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        async with Embedder(EmbedderConfig(urls=(URL,), model=server.model), transport=FakeTransport(server)) as one:
            call = asyncio.create_task(one.embed(texts(60)))
            await asyncio.sleep(moment)
            loop.stand_still(600.0)
            report = await call
        assert report.failures == ()
        return loop.time()

    assert run_virtually(main()) < 610.0


class AlwaysLate(httpx.AsyncBaseTransport):
    """A server that never answers, and a process that is always three seconds late."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        try:
            return await loop.create_future()
        finally:
            loop.stand_still(3.0)


class HangsOnOurOwn(httpx.AsyncBaseTransport):
    """Refuses each text after five seconds, and is silent to the text of our own that follows: two requests, neither late."""

    def __init__(self) -> None:
        self._probe = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if json.loads(request.content)["input"] != [CANARY]:
            self._probe = False
            await asyncio.sleep(5.0)
            return httpx.Response(400, json={"error": "no"})
        if not self._probe:
            self._probe = True
            await asyncio.get_running_loop().create_future()
        return httpx.Response(200, json={"embeddings": [[1.0, 2.0]]})


@pytest.mark.parametrize(
    ("transport", "timeout", "seconds"), [(AlwaysLate(), 10.0, 156.0), (HangsOnOurOwn(), 60.0, 125.0)]
)
def test_a_run_ends_within_its_patience_however_late_its_time_outs_come(
    transport: httpx.AsyncBaseTransport, timeout: float, seconds: float
) -> None:
    """Each of them was taken for a process that stood still: the patience began anew for ever."""

    async def main() -> float:
        config = EmbedderConfig(urls=(URL,), model="m", request_timeout_seconds=timeout)
        async with Embedder(config, transport=transport) as one:
            with pytest.raises(EndpointUnavailable):
                await asyncio.wait_for(one.embed(texts(1)), 1000.0)
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) <= seconds


class OnlyOurOwn(FakeTransport):
    """500 for every text but the one that embedders check their servers with."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.02)
        response = await super().handle_async_request(request)
        body = await request.aread()
        return response if not body or CANARY.encode() in body else httpx.Response(500, json={"error": "boom"})


async def embed_where_no_text_is_taken(count: int) -> tuple[EmbedReport | EndpointUnavailable, int, float]:
    """What came of it, how many texts were given up, and when it ended."""
    server = FakeEmbeddingServer()
    config = EmbedderConfig(urls=(URL,), model=server.model)
    async with Embedder(config, transport=OnlyOurOwn(server), cache=Forgets()) as one:
        try:
            found = await one.embed(texts(count))
        except EndpointUnavailable as error:
            found = error
        return found, one.stats().failed, asyncio.get_running_loop().time()


def test_a_server_that_takes_no_text_but_our_own_ends_the_run_after_twice_the_patience() -> None:
    found, failed, seconds = run_virtually(embed_where_no_text_is_taken(4000))
    assert isinstance(found, EndpointUnavailable)
    assert f"{URL} (model test-model) answered 500: boom." in found.message
    assert seconds == pytest.approx(240.0, abs=1.0)
    assert failed < 800


def test_a_few_texts_that_a_server_fails_at_end_in_the_dead_letters_before_that() -> None:
    found, failed, seconds = run_virtually(embed_where_no_text_is_taken(50))
    assert isinstance(found, EmbedReport)
    assert len(found.failures) == failed == 50
    assert {failure.message for failure in found.failures} == {f"{URL} (model test-model) answered 500: boom."}
    assert seconds < 120.0


# --- one of two is slow to say who it is --------------------------------------------------------------------------------


class Late(FakeTransport):
    """Host `two` answers nothing before `ready_at`."""

    def __init__(self, servers: Mapping[str, FakeEmbeddingServer], *, ready_at: float) -> None:
        super().__init__(servers)
        self._ready_at = ready_at

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        now = asyncio.get_running_loop().time()
        if request.url.host == "two" and now < self._ready_at:
            await asyncio.sleep(self._ready_at - now)
        return await super().handle_async_request(request)


def two_servers() -> dict[str, FakeEmbeddingServer]:
    servers = {"one": FakeEmbeddingServer(), "two": FakeEmbeddingServer()}
    for server in servers.values():
        server.seconds_per_text = 0.1
    return servers


class OtherModel(FakeEmbeddingServer):
    """Vectors as wide as the others' that mean something else, from the time `loaded` on."""

    loaded = True

    def _encoded_vector(self, text: str, dimension: int) -> bytes:
        return super()._encoded_vector(f"otherwise {text}" if self.loaded else text, dimension)


def began(server: FakeEmbeddingServer) -> float:
    """When its first text came that is not our own."""
    return next(at for at, batch in zip(server.times, server.batches, strict=True) if batch != (CANARY,))


TWO = EmbedderConfig(urls=("http://one", "http://two"), model="test-model")


def test_work_begins_with_the_first_server_that_says_who_it_is_and_the_other_joins() -> None:
    servers = two_servers()

    async def main() -> EmbedReport:
        async with Embedder(TWO, transport=Late(servers, ready_at=20.0), cache=Forgets()) as one:
            return await one.embed(texts(400))

    report = run_virtually(main())
    assert report.failures == ()
    begun = [began(server) for server in servers.values()]
    assert begun[0] < 2.0
    assert 20.0 < begun[1] < 21.0
    assert len(servers["two"].texts) > 80


@pytest.mark.parametrize("what", ["digest", "vectors", "key"])
def test_a_late_server_that_must_not_take_part_ends_the_run_and_never_gets_a_text(what: str) -> None:
    servers = two_servers()
    if what == "digest":
        servers["two"].digest = "another"
    elif what == "vectors":
        servers["two"] = OtherModel()
    else:
        servers["two"].api_key = "secret"

    async def main() -> float:
        async with Embedder(TWO, transport=Late(servers, ready_at=20.0), cache=Forgets()) as one:
            with pytest.raises(EndpointRefused if what == "key" else ConfigurationError, match="http://two"):
                await one.embed(texts(400))
            ended_at = asyncio.get_running_loop().time()
            assert (await one.embed(texts(30))).failures == ()
            return ended_at

    assert run_virtually(main()) == pytest.approx(20.0, abs=1.0)
    assert set(servers["two"].texts) <= {CANARY}


def test_the_end_of_a_run_does_not_wait_for_a_server_that_has_not_said_who_it_is() -> None:
    async def main() -> float:
        async with Embedder(TWO, transport=Late(two_servers(), ready_at=100.0), cache=Forgets()) as one:
            assert (await one.embed(texts(20))).failures == ()
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) < 5.0


def test_who_leaves_as_soon_as_one_server_has_said_who_it_is_leaves_nothing_running() -> None:
    async def main() -> float:
        async with Embedder(TWO, transport=Late(two_servers(), ready_at=100.0)) as one:
            await one.identify()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) < 5.0


def test_who_leaves_while_no_server_has_said_who_it_is_ends_that_question_too() -> None:
    async def main() -> float:
        servers = two_servers()
        servers["one"].stalled = True
        async with Embedder(TWO, transport=Late(servers, ready_at=100.0)) as one:
            asked = asyncio.create_task(one.identify())
            await asyncio.sleep(1.0)
        await asyncio.wait([asked])
        assert asked.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) < 5.0


@pytest.mark.parametrize("noticed", ["when it is back", "when it rejects a text"])
def test_a_server_that_holds_another_model_all_of_a_sudden_ends_the_run_when_it_is_asked_for_our_own_text(
    noticed: str,
) -> None:
    server = OtherModel()
    server.loaded, server.seconds_per_text = False, 0.05

    def changes() -> None:
        server.loaded = True
        if noticed == "when it rejects a text":
            server.faults.append(Fault(status=400, message="hm"))
        else:
            server.down = True
            asyncio.get_running_loop().call_later(1.0, setattr, server, "down", False)

    async def main() -> float:
        asyncio.get_running_loop().call_at(3.0, changes)
        config = EmbedderConfig(urls=(URL,), model=server.model, batch_items=1)
        async with Embedder(config, transport=FakeTransport(server), cache=Forgets()) as one:
            with pytest.raises(BadVectors, match=f"{URL} answers other vectors"):
                await one.embed(texts(400))
            return asyncio.get_running_loop().time()

    assert run_virtually(main()) < 6.0


def test_a_model_that_is_exchanged_without_an_error_ends_a_long_run_within_minutes() -> None:
    """`ollama pull` breaks no connection: the vectors of two models were mixed until the end of the run."""
    server = OtherModel()
    server.loaded, server.seconds_per_text = False, 0.5

    async def main() -> float:
        asyncio.get_running_loop().call_at(130.0, setattr, server, "loaded", True)
        config = EmbedderConfig(urls=(URL,), model=server.model)
        async with Embedder(config, transport=FakeTransport(server), cache=Forgets()) as one:
            with pytest.raises(BadVectors, match=f"{URL} answers other vectors"):
                await one.embed(texts(1200))
            return asyncio.get_running_loop().time()

    assert 240.0 < run_virtually(main()) < 250.0
    assert server.texts.count(CANARY) == 4


def test_a_question_after_a_rest_is_not_asked_of_another_model_and_in_between_nothing_more_is_asked() -> None:
    server = OtherModel()
    server.loaded = False

    async def main() -> None:
        config = EmbedderConfig(urls=(URL,), model=server.model)
        async with Embedder(config, transport=FakeTransport(server)) as one:
            await one.identify()
            for number in range(50):
                await one.embed([f"question {number}"])
                await asyncio.sleep(2.0)
            assert server.texts.count(CANARY) == 2
            await asyncio.sleep(3600.0)
            server.loaded = True
            for _ in range(2):
                with pytest.raises(BadVectors, match=f"{URL} answers other vectors"):
                    await one.embed(["late"])
            assert "late" not in server.texts
            server.loaded = False
            assert (await one.embed(["late"])).failures == ()

    run_virtually(main())
    assert server.texts[-2:] == [CANARY, "late"]


def test_a_slow_server_is_asked_who_it_is_once_in_two_hundred_requests() -> None:
    """At three requests a minute a fifth to two thirds of the work were lost to a question every two minutes."""
    server = FakeEmbeddingServer()
    server.seconds_per_text = 3.0

    async def main() -> None:
        config = EmbedderConfig(urls=(URL,), model=server.model)
        async with Embedder(config, transport=FakeTransport(server), cache=Forgets()) as one:
            assert (await one.embed(texts(230))).failures == ()

    run_virtually(main())
    assert [number for number, batch in enumerate(server.batches) if batch == (CANARY,)] == [0, 1, 202]


def test_a_server_that_is_full_when_it_is_asked_who_it_is_goes_on_and_is_asked_again() -> None:
    server = OtherModel()
    server.loaded, server.seconds_per_text, server.slots = False, 0.5, 2

    class FullForUs(FakeTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if CANARY.encode() in request.content and 120.0 < asyncio.get_running_loop().time() < 125.0:
                return httpx.Response(503, json={"error": "hm"})
            return await super().handle_async_request(request)

    async def main() -> None:
        config = EmbedderConfig(urls=(URL,), model=server.model)
        async with Embedder(config, transport=FullForUs(server)) as one:
            await one.identify()
            assert (await one.embed(texts(600))).failures == ()

    run_virtually(main())
    own = [at for at, batch in zip(server.times, server.batches, strict=True) if batch == (CANARY,)]
    assert len(own) == 3 and 125.0 < own[-1] < 135.0
    assert 140.0 < server.times[-1] < 165.0


@pytest.mark.parametrize(
    "first", [Fault(stall=True), Fault(status=429, headers={"Retry-After": "9"}), Fault(status=503)]
)
def test_a_server_of_another_model_that_was_away_or_busy_at_first_never_gets_a_text_in_any_later_call(
    first: Fault,
) -> None:
    servers = two_servers()
    servers["two"] = OtherModel()
    servers["two"].always = first
    config = replace(TWO, request_timeout_seconds=2.0, retry_budget_seconds=8.0)

    async def main() -> None:
        asyncio.get_running_loop().call_at(15.0, setattr, servers["two"], "always", None)
        async with Embedder(config, transport=FakeTransport(servers), cache=Forgets()) as one:
            for _ in range(3):
                with pytest.raises(BadVectors, match="http://two answers other vectors"):
                    await one.embed(texts(400))

    run_virtually(main())
    assert set(servers["two"].texts) == {CANARY}
