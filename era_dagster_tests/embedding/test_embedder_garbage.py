"""Servers that answer nonsense, for seconds or for good."""

import asyncio

import pytest

from era_dagster.domain.errors import EndpointUnavailable
from era_dagster.embedding.embed_texts import embed_texts
from era_dagster.embedding.report import EmbedReport
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport, Fault
from era_dagster_tests.fakes.virtual_time import run_virtually

URL = "http://server"

GARBAGE = {
    "an error as a good answer": Fault(status=200, message="upstream overloaded"),
    "no vectors": Fault(answer="empty"),
    "one vector too few": Fault(answer="wrong_count"),
    "a page": Fault(answer="not_json"),
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


def test_what_a_server_says_in_an_error_that_comes_as_a_good_answer_is_told() -> None:
    server = FakeEmbeddingServer()
    server.always = Fault(status=200, message="upstream overloaded")
    with pytest.raises(EndpointUnavailable, match=r"no list of vectors for 1 texts\. It says: upstream overloaded\."):
        run_virtually(embed_texts(texts(1), urls=URL, model=server.model, transport=FakeTransport(server)))
