"""Servers that answer nonsense, for seconds or for good, and texts that are at fault themselves: told apart."""

import asyncio
import math
import threading
from collections.abc import Mapping, Sequence
from random import Random
from typing import Literal

import httpx
import numpy as np
import pytest

from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import BadVectors, ConfigurationError, EndpointRefused, EndpointUnavailable
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embed_texts import embed_texts
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.observer import RequestRecord
from era_dagster.embedding.provider import CANARY
from era_dagster.embedding.report import EmbedReport
from era_dagster_tests.fakes.embedding_server import NOT_A_NUMBER, FakeEmbeddingServer, FakeTransport, Fault, serving
from era_dagster_tests.fakes.virtual_time import run_virtually

URL = "http://server"

GARBAGE = {
    "an error as a good answer": Fault(status=200, message="upstream overloaded"),
    "no vectors": Fault(answer="empty"),
    "one vector too few": Fault(answer="wrong_count"),
    "vectors that are not finite": Fault(answer="nan"),
    "vectors that are zero": Fault(answer="zero"),
    "vectors of another model": Fault(answer="wrong_dimension"),
    "a page": Fault(answer="not_json"),
    "400 about numbers": Fault(status=400, message=NOT_A_NUMBER),
    "400 of a proxy": Fault(status=400, message="no healthy upstream"),
    "422": Fault(status=422, message="hm"),
    "413 of a proxy": Fault(status=413, message="Request Entity Too Large"),
    "a context that is full": Fault(status=500, message="Context size has been exceeded."),
    "500": Fault(status=500),
}
each_garbage = pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())


def texts(count: int) -> list[str]:
    return [f"text number {number}" for number in range(count)]


def quick_server() -> FakeEmbeddingServer:
    server = FakeEmbeddingServer(dimension=8)
    server.seconds_per_text, server.slots = 0.005, 8
    return server


async def embed_with_garbage(
    server: FakeEmbeddingServer, garbage: Fault, count: int, start: float, end: float
) -> EmbedReport:
    loop = asyncio.get_running_loop()
    loop.call_at(start, setattr, server, "always", garbage)
    loop.call_at(end, setattr, server, "always", None)
    return await embed_texts(texts(count), urls=URL, model=server.model, transport=FakeTransport(server))


def assert_all_but(report: EmbedReport, without: list[int]) -> None:
    assert [failure.position for failure in report.failures] == without
    assert [position for position, vector in enumerate(report.vectors) if vector is None] == without


# --- the server fails --------------------------------------------------------------------------------------------------


@each_garbage
def test_three_seconds_of_garbage_at_full_speed_lose_nothing(garbage: Fault) -> None:
    report = run_virtually(embed_with_garbage(quick_server(), garbage, 4000, 1.0, 4.0))
    assert_all_but(report, [])
    assert report.seconds < 12.0


@each_garbage
def test_a_server_of_two_that_answers_garbage_for_good_leaves_the_work_to_the_other(garbage: Fault) -> None:
    servers = {"good": quick_server(), "bad": quick_server()}

    async def main() -> EmbedReport:
        asyncio.get_running_loop().call_at(1.0, setattr, servers["bad"], "always", garbage)
        urls = ("http://good", "http://bad")
        return await embed_texts(texts(3000), urls=urls, model="test-model", transport=FakeTransport(servers))

    report = run_virtually(main())
    assert_all_but(report, [])
    assert report.seconds < 8.0
    assert sum(at > 3.0 for at in servers["bad"].times) < 10, "probes only"


@each_garbage
def test_garbage_for_good_ends_the_run_when_its_patience_ends_and_loses_no_text(garbage: Fault) -> None:
    server = quick_server()

    async def main() -> float:
        config = EmbedderConfig(urls=(URL,), model=server.model, retry_budget_seconds=60.0)
        async with Embedder(config, transport=FakeTransport(server)) as embedder:
            asyncio.get_running_loop().call_at(1.0, setattr, server, "always", garbage)
            with pytest.raises(EndpointUnavailable, match=f"No embedding server took a text for 60 s.*{URL}"):
                await embedder.embed(texts(4000))
            assert embedder.stats().failed == 0
            return asyncio.get_running_loop().time()

    assert 60.0 <= run_virtually(main()) <= 63.0
    assert sum(at > 10.0 for at in server.times) < 20, "probes only"


def test_what_a_server_says_in_an_error_that_comes_as_a_good_answer_is_told() -> None:
    server = FakeEmbeddingServer()
    server.always = Fault(status=200, message="upstream overloaded")
    with pytest.raises(EndpointUnavailable, match=r"no list of vectors for 1 texts\. It says: upstream overloaded\."):
        run_virtually(embed_texts(texts(1), urls=URL, model=server.model, transport=FakeTransport(server)))


@pytest.mark.parametrize("garbage", ["an error as a good answer", "400 of a proxy"])
def test_a_second_of_garbage_over_http_loses_nothing(garbage: str) -> None:
    server = FakeEmbeddingServer(dimension=8)
    server.seconds_per_text, server.slots = 0.002, 4
    timers = [
        threading.Timer(at, setattr, (server, "always", now)) for at, now in ((0.3, GARBAGE[garbage]), (1.3, None))
    ]
    with serving(server) as url:
        for timer in timers:
            timer.start()
        report = asyncio.run(embed_texts(texts(2000), urls=url, model=server.model))
    assert_all_but(report, [])
    assert report.seconds > 1.3


class OneForAll(FakeEmbeddingServer):
    """Does not read what it is sent (LocalAI 3.5)."""

    def _encoded_vector(self, text: str, dimension: int) -> bytes:
        return super()._encoded_vector("whatever", dimension)


@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_a_server_with_one_vector_for_all_texts_ends_the_run_before_one_is_stored(
    provider: Literal["ollama", "openai"],
) -> None:
    server = OneForAll()

    async def main() -> None:
        config = EmbedderConfig(provider=provider, urls=(URL,), model=server.model)
        async with Embedder(config, transport=FakeTransport(server)) as one:
            await one.identify()
            own = await one.embed([CANARY, f"{CANARY.capitalize()}!"])
            assert own.failures == ()  # the same letters may well have the same vector
            with pytest.raises(BadVectors, match=r"test-model\) answers one and the same vector for different texts"):
                await one.embed(texts(40))
            assert one.stats().embedded == 2

    run_virtually(main())


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_for_good_by_one_server_of_two_stops_the_run(status: int) -> None:
    servers = {"good": quick_server(), "bad": quick_server()}
    servers["bad"].always = Fault(status=status, message="model 'test-model' not found")
    urls = ("http://good", "http://bad")
    with pytest.raises(EndpointRefused, match=f"http://bad.*{status}"):
        run_virtually(embed_texts(texts(500), urls=urls, model="test-model", transport=FakeTransport(servers)))


# --- a text fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["poison", "nan", "zero"])
def test_a_few_texts_at_fault_are_missing_and_cost_a_few_requests_each(kind: str) -> None:
    without = [13, 700, 701, 1400]
    clean, server = quick_server(), quick_server()
    wanted = [f"a text number {number}." for number in range(1500)]
    setattr(server, kind, {f"number {number}." for number in without})
    reports = [
        run_virtually(embed_texts(wanted, urls=URL, model=each.model, transport=FakeTransport(each)))
        for each in (clean, server)
    ]
    assert_all_but(reports[1], without)
    assert reports[1].seconds < 1.3 * reports[0].seconds
    assert server.texts.count(CANARY) == len(without) * (2 if kind == "poison" else 1)


@pytest.mark.parametrize("control", ["400 of a proxy", "500", "vectors that are zero", "429"])
def test_a_text_is_not_given_up_while_the_text_that_checks_the_server_fails_too(control: str) -> None:
    server = FakeEmbeddingServer()
    fault = Fault(status=429) if control == "429" else GARBAGE[control]
    server.faults.extend([GARBAGE["400 of a proxy"], fault] * 4)
    report = run_virtually(embed_texts(["a"], urls=URL, model=server.model, transport=FakeTransport(server)))
    assert_all_but(report, [])
    assert server.texts[:2] == ["a", CANARY]


def test_a_text_refused_once_while_the_server_is_well_gets_its_vector() -> None:
    server = FakeEmbeddingServer()
    server.faults.append(GARBAGE["400 of a proxy"])
    report = run_virtually(embed_texts(["a"], urls=URL, model=server.model, transport=FakeTransport(server)))
    assert_all_but(report, [])
    assert server.texts == ["a", CANARY, "a"]


def test_the_text_that_checks_the_server_is_told_as_a_probe_and_counted_for_no_caller() -> None:
    server, told = FakeEmbeddingServer(), list[RequestRecord]()
    server.poison, server.seconds_per_text = {"poison"}, 0.5
    report = run_virtually(
        embed_texts(["poison"], urls=URL, model=server.model, transport=FakeTransport(server), on_request=told.append)
    )
    assert_all_but(report, [0])
    assert report.failures[0].attempts == report.requests == report.texts_sent == 2
    assert [(record.probe, record.outcome) for record in told] == 2 * [(False, Outcome.TEXTS), (True, Outcome.SUCCESS)]
    assert [record.seconds for record in told] == [0.5] * 4
    assert [record.texts for record in told] == [1] * 4


class ByChance(FakeTransport):
    """Half of all requests for vectors get the fault, whatever is in them."""

    def __init__(self, server: FakeEmbeddingServer, fault: Fault, seed: int) -> None:
        super().__init__(server)
        self._server, self._fault, self._random = server, fault, Random(seed)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/embed":
            self._server.faults.append(self._fault if self._random.random() < 0.5 else None)
        return await super().handle_async_request(request)


@pytest.mark.parametrize("garbage", ["vectors that are not finite", "400 about numbers", "400 of a proxy"])
def test_a_server_that_fails_every_other_request_by_chance_costs_hardly_a_text(garbage: str) -> None:
    lost = 0
    for seed in range(4):
        server = quick_server()
        transport = ByChance(server, GARBAGE[garbage], seed)
        report = run_virtually(embed_texts(texts(300), urls=URL, model=server.model, transport=transport))
        lost += len(report.failures)
    assert lost <= 1


def test_texts_at_fault_are_told_from_a_server_that_fails_by_chance_within_the_attempts_of_any_other() -> None:
    server, clean = quick_server(), quick_server()
    server.poison = {f"number {number}0." for number in range(1, 10)}
    for each in (server, clean):
        wanted = [f"a text number {number}." for number in range(100)]
        transport = ByChance(each, GARBAGE["400 about numbers"], 1)
        report = run_virtually(embed_texts(wanted, urls=URL, model=each.model, transport=transport))
        assert_all_but(report, [number for number in range(100) if any(part in wanted[number] for part in each.poison)])
    assert server.requests - clean.requests < 9 * 2 * 10 * 3


def test_a_server_that_refuses_the_check_for_good_stops_the_run() -> None:
    server = FakeEmbeddingServer()
    server.faults.extend([GARBAGE["400 of a proxy"], Fault(status=401)])
    with pytest.raises(EndpointRefused, match="401"):
        run_virtually(embed_texts(["a"], urls=URL, model=server.model, transport=FakeTransport(server)))


def test_a_check_under_way_ends_with_the_run_and_is_told() -> None:
    server, told = FakeEmbeddingServer(), list[RequestRecord]()
    server.poison = {"poison"}

    async def main() -> None:
        config = EmbedderConfig(urls=(URL,), model=server.model)
        async with Embedder(config, transport=FakeTransport(server), on_request=told.append) as embedder:
            server.faults.extend([None, Fault(stall=True)])
            call = asyncio.create_task(embedder.embed(["poison"]))
            await asyncio.sleep(1.0)
            assert embedder.stats().endpoints[0].in_flight == server.in_flight == 1
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert embedder.stats().endpoints[0].in_flight == server.in_flight == 0

    run_virtually(main())
    assert [(record.probe, record.outcome) for record in told] == [(False, Outcome.TEXTS), (True, None)]


# --- who answers -------------------------------------------------------------------------------------------------------


def identified_dimension(server: FakeEmbeddingServer) -> int:
    async def main() -> int:
        async with Embedder(
            EmbedderConfig(urls=(URL,), model=server.model), transport=FakeTransport(server)
        ) as embedder:
            return (await embedder.identify()).dimension

    return run_virtually(main())


@pytest.mark.parametrize("place", [0, 1])
@each_garbage
def test_one_garbage_answer_to_the_question_who_answers_is_not_believed(garbage: Fault, place: int) -> None:
    server = FakeEmbeddingServer()
    server.faults.extend([*[None] * place, garbage])
    assert identified_dimension(server) == server.dimension


@each_garbage
def test_nobody_is_identified_by_garbage_and_that_is_said_within_seconds(garbage: Fault) -> None:
    server = FakeEmbeddingServer()
    server.always = garbage
    if garbage.answer == "wrong_dimension":  # what answers the same every time is the model
        assert identified_dimension(server) == server.dimension // 2
        return
    with pytest.raises(EndpointUnavailable, match=URL):
        identified_dimension(server)
    assert server.requests <= 8


def test_a_server_with_one_request_a_minute_is_identified_by_two() -> None:
    server = FakeEmbeddingServer()
    server.faults.extend([None, Fault(status=429, headers={"Retry-After": "60"})])
    assert identified_dimension(server) == server.dimension
    assert server.times == [0.0, 0.0, 60.0]


# --- two servers under one name ------------------------------------------------------------------------------------------


class OtherModel(FakeEmbeddingServer):
    """Vectors as wide as the others' that mean something else: servers that serve whatever they hold under any name."""

    def _encoded_vector(self, text: str, dimension: int) -> bytes:
        return super()._encoded_vector(f"otherwise {text}", dimension)


class Forgets:
    """A cache without memory."""

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, np.ndarray]:
        return {}

    def put_many(self, vectors: Mapping[bytes, np.ndarray]) -> None:
        pass


def embed_with_two(two: FakeEmbeddingServer, *, heals_at: float) -> tuple[EmbedReport, FakeEmbeddingServer]:
    """A run by a good server that takes half a minute, beside one that answers nothing until `heals_at`."""
    one = FakeEmbeddingServer()
    one.seconds_per_text = 0.1
    two.stalled = True

    async def main() -> EmbedReport:
        asyncio.get_running_loop().call_at(heals_at, setattr, two, "stalled", False)
        urls, transport = ("http://one", "http://two"), FakeTransport({"one": one, "two": two})
        wanted = [f"text number {number}" for number in range(300)]
        return await embed_texts(
            wanted, urls=urls, model="test-model", transport=transport, cache=Forgets(), request_timeout_seconds=2.0
        )

    return run_virtually(main()), one


@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_two_servers_with_unrelated_vectors_of_one_width_are_refused(provider: Literal["ollama", "openai"]) -> None:
    transport = FakeTransport({"one": FakeEmbeddingServer(), "two": OtherModel()})
    config = EmbedderConfig(provider=provider, urls=("http://one", "http://two"), model="test-model")

    async def main() -> None:
        async with Embedder(config, transport=transport) as embedder:
            await embedder.identify()

    with pytest.raises(ConfigurationError, match="other vectors for one text"):
        run_virtually(main())


def test_no_text_waits_for_a_server_that_did_not_even_say_who_it_is() -> None:
    two = FakeEmbeddingServer()
    report, one = embed_with_two(two, heals_at=math.inf)
    assert report.failures == ()
    assert report.retries == 0
    assert two.texts == []
    assert len(one.texts) == 300 + 2


def test_a_server_that_comes_back_takes_its_part() -> None:
    two = FakeEmbeddingServer()
    report, _ = embed_with_two(two, heals_at=5.0)
    assert report.failures == ()
    assert len(two.texts) > 100


def test_a_server_that_comes_back_with_another_model_stops_the_run_before_a_text_gets_its_vector() -> None:
    two = OtherModel()
    with pytest.raises(BadVectors, match="http://two answers other vectors"):
        embed_with_two(two, heals_at=5.0)
    assert set(two.texts) == {CANARY}
