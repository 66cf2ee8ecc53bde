"""The embedder against simulated servers, under virtual time."""

import asyncio
import json
import threading
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import Random

import httpx
import numpy as np
import pytest

from era_dagster.control.gate import EndpointController
from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import (
    BadVectors,
    ConfigurationError,
    DatabaseUnavailable,
    EndpointRefused,
    EndpointUnavailable,
)
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embed_texts import embed_texts
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.ollama import OllamaProvider
from era_dagster.embedding.provider import CANARY
from era_dagster.embedding.report import EmbedReport
from era_dagster.embedding.responses import Verdict
from era_dagster.embedding.vectors import ModelIdentity
from era_dagster_tests.fakes.embedding_server import (
    BUSY,
    NOT_A_NUMBER,
    RUNNER_DIED,
    FakeEmbeddingServer,
    FakeTransport,
    Fault,
    Reply,
    vector_of,
)
from era_dagster_tests.fakes.virtual_time import run_virtually

URL = "http://server"


def texts(count: int, start: int = 0) -> list[str]:
    return [f"text number {number}" for number in range(start, start + count)]


def embed(server: FakeEmbeddingServer, wanted: Sequence[str], **options) -> EmbedReport:
    options = {"urls": URL, "model": server.model, "transport": FakeTransport(server), **options}
    return run_virtually(embed_texts(wanted, **options))


def embedder(server: FakeEmbeddingServer, **options) -> Embedder:
    outside = {name: options.pop(name) for name in ("cache",) if name in options}
    config = EmbedderConfig(**{"urls": (URL,), "model": server.model, **options})
    return Embedder(config, transport=FakeTransport(server), **outside)


def test_only_the_endpoints_at_which_others_work_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(EndpointController, "told_of_others", lambda _, *, present: told.append(present))
    both = embedder(FakeEmbeddingServer(), urls=(URL, "http://key@other/"))
    assert both.urls == (URL, "http://other")
    both.told_of_others([both.urls[1], "http://elsewhere"])
    assert told == [False, True]


def assert_right(report: EmbedReport, wanted: Sequence[str], without: Sequence[int] = ()) -> None:
    """Every text has the vector of exactly that text, but those `without`, which have a reason."""
    assert len(report.vectors) == len(wanted)
    assert [failure.position for failure in report.failures] == list(without)
    for position, (vector, text) in enumerate(zip(report.vectors, wanted, strict=True)):
        if position in without:
            assert vector is None
        else:
            assert vector is not None
            assert vector.dtype == np.float32
            np.testing.assert_allclose(vector, vector_of(text), atol=1e-5)


class MemoryCache:
    """A cache as the protocol asks, with a record of the keys it was given."""

    def __init__(self) -> None:
        self.vectors: dict[bytes, np.ndarray] = {}
        self.puts: list[list[bytes]] = []
        self.thread_ids: set[int] = set()
        self.broken = False

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, np.ndarray]:
        self.thread_ids.add(threading.get_ident())
        return {key: self.vectors[key] for key in keys if key in self.vectors}

    def put_many(self, vectors: Mapping[bytes, np.ndarray]) -> None:
        self.thread_ids.add(threading.get_ident())
        if self.broken:
            raise DatabaseUnavailable("The database went away.")
        self.puts.append(list(vectors))
        self.vectors.update(vectors)


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_every_text_gets_its_own_vector_in_order(provider: str) -> None:
    server = FakeEmbeddingServer()
    server.faults.append(Fault(answer="shuffled"))
    report = embed(server, texts(50), provider=provider, concurrency=1)
    assert_right(report, texts(50))
    assert report.requests == server.requests < 20
    assert report.texts_sent == len(server.texts) == 50
    assert (report.retries, report.refusals, report.from_cache) == (0, 0, 0)


def test_no_texts_are_no_requests() -> None:
    server = FakeEmbeddingServer()
    assert embed(server, []).vectors == ()
    assert server.requests == 0


def test_a_report_is_printed_without_its_vectors() -> None:
    assert len(repr(embed(FakeEmbeddingServer(), texts(20)))) < 400


def test_the_report_tells_the_latency_in_the_loop_s_own_time() -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.5
    report = embed(server, texts(2), concurrency=1)
    assert report.latency.p50_seconds == report.latency.p99_seconds == 0.5
    assert report.seconds == 1.0


def test_requests_to_ollama_never_truncate_and_keep_the_model_with_a_number() -> None:
    server = FakeEmbeddingServer()
    embed(server, texts(1))
    payload = server.payloads[0]
    assert payload["truncate"] is False
    assert isinstance(payload["keep_alive"], int)
    assert set(payload) == {"model", "input", "truncate", "keep_alive"}


def test_prefix_and_case_follow_the_model_and_the_role() -> None:
    server = FakeEmbeddingServer(model="nomic-embed-text")
    embed(server, ["Élan"])
    embed(server, ["Élan"], role="query")
    embed(server, ["Élan"], document_prefix="p: ")
    assert server.texts == ["search_document: elan", "search_query: elan", "p: elan"]


def test_blank_texts_and_half_surrogates_are_failures_that_are_never_sent() -> None:
    server = FakeEmbeddingServer()
    report = embed(server, ["a", " \n", "\ud800", "b"])
    assert [failure.error_class for failure in report.failures] == ["TextsRejected"] * 2
    assert report.vectors[1] is report.vectors[2] is None
    assert sorted(server.texts) == ["a", "b"]


def test_a_configuration_that_cannot_work_says_so() -> None:
    for options in ({"urls": ()}, {"urls": ("host:11434",)}, {"provider": "magic"}, {"concurrency": 0}):
        with pytest.raises(ConfigurationError):
            run_virtually(embed_texts(["a"], **{"urls": (URL,), "model": "m", **options}))


def test_what_a_server_says_of_its_model_can_be_stored() -> None:
    server = FakeEmbeddingServer(version="0.32.0\x00\x1b[2J")
    server.digest = "sha256:abc\x00"

    async def main() -> ModelIdentity:
        async with embedder(server) as one:
            return await one.identify()

    identity = run_virtually(main())
    assert (identity.server_version, identity.digest) == ("0.32.0 [2J", "sha256:abc")


@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_the_api_key_is_sent_as_a_bearer_and_shown_nowhere(provider: str) -> None:
    server = FakeEmbeddingServer()
    server.api_key = "sk-secret"
    assert_right(embed(server, texts(1), provider=provider, api_key="sk-secret"), texts(1))
    assert "sk-secret" not in repr(EmbedderConfig(urls=(URL,), model="m", api_key="sk-secret"))
    with pytest.raises(EndpointRefused) as caught:
        embed(server, texts(1), provider=provider, api_key="sk-wrong")
    assert "sk-wrong" not in str(caught.value)
    server.always = Fault(status=400, message="Incorrect API key provided: sk-secret")
    with pytest.raises(EndpointRefused, match=r"provided: \*\*\*") as caught:
        embed(server, texts(1), provider=provider, api_key="sk-secret")
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(EndpointRefused) as caught:
        embed(server, texts(1), urls="http://user:sk-pass@server")
    assert "sk-pass" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-s3cret\nline", "sk-s3cret\n", "schlüssel-s3cret", "s3cret\x00", " s3cret"])
@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_a_key_that_no_header_can_carry_is_named_at_once_and_not_shown(provider: str, key: str) -> None:
    server = FakeEmbeddingServer()
    with pytest.raises(ConfigurationError, match="ERA_EMBEDDING_API_KEY") as caught:
        embed(server, texts(1), provider=provider, api_key=key)
    assert "s3cret" not in str(caught.value)
    assert server.requests == 0


def test_an_empty_key_is_none() -> None:
    assert_right(embed(FakeEmbeddingServer(), texts(1), provider="openai", api_key=""), texts(1))


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret@host:notaport",
        "user:s3cret@127.0.0.1:11434",
        "http://user:s3cret@[::1",
        "http://user:s3@s3cret@host:notaport",
        "http://user:pa#s3cret@host:1",
        "http://user:s3cret@127.0.0.1:70000",
        "http://127.0.0.1:1/?key=s3cret",
        "http://user:s3cret@127.0.0.1:1/v1?key=s3cret#s3cret",
        "ftp://user:s3cret@host",
    ],
)
def test_a_url_that_cannot_be_used_is_named_at_once_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1|host|::1") as caught:
        run_virtually(embed_texts(["a"], urls=url, model="m"))
    assert "s3" not in "".join(traceback.format_exception(caught.value))
    assert "s3" not in str(caught.value)
    assert "s3" not in repr(EmbedderConfig(urls=(url,), model="m"))


# --- errors that pass ------------------------------------------------------------------------------------------------

PASSING = [
    Fault(status=429, message="slow down"),
    Fault(status=503, message=BUSY),
    Fault(status=500, message="llama runner process has terminated"),
    Fault(status=502),
    Fault(status=400, message=RUNNER_DIED),
    Fault(status=400, message="no slots available after 10 retries"),
    Fault(status=400, message=NOT_A_NUMBER),
    Fault(reset=True),
    Fault(stall=True),
    Fault(answer="not_json"),
    Fault(answer="wrong_count"),
    Fault(answer="empty"),
    Fault(answer="nan"),
    Fault(answer="zero"),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.status}{fault.message[:12]}{fault.answer or ''}")
def test_two_faults_and_then_an_answer_lose_nothing(fault: Fault) -> None:
    server = FakeEmbeddingServer()
    server.faults.extend([None, fault, fault])
    report = embed(server, texts(24))
    assert_right(report, texts(24))
    assert report.retries > 0


def test_one_wrong_dimension_among_right_ones_is_asked_again() -> None:
    server = FakeEmbeddingServer()
    server.faults.extend([None, Fault(answer="wrong_dimension")])
    assert_right(embed(server, texts(16), concurrency=1), texts(16))


def test_five_percent_of_503_lose_nothing() -> None:
    server = FakeEmbeddingServer()
    server.faults.extend(Fault(status=503, message=BUSY) if number % 20 == 7 else None for number in range(400))
    report = embed(server, texts(2000))
    assert_right(report, texts(2000))
    assert report.refusals == len(range(7, report.requests, 20))


@pytest.mark.parametrize("header", [{"Retry-After": "30"}, {"retry-after-ms": "30000"}])
def test_nothing_is_sent_before_the_time_the_server_asked_for(header: dict[str, str]) -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.1
    server.slots = 100
    server.faults.extend([None, Fault(status=429, headers=header)])
    assert_right(embed(server, texts(200)), texts(200))
    refused_at = 0.1
    after = [at for at in server.times if at > refused_at]
    assert min(after) == pytest.approx(refused_at + 30.0)
    assert sum(at == pytest.approx(min(after)) for at in after) == 1, "the first request after a pause goes alone"


def test_rate_limited_texts_are_not_lost_however_often_they_are_refused() -> None:
    server = FakeEmbeddingServer()
    server.faults.extend(None if number % 4 == 0 else Fault(status=429) for number in range(200))
    assert_right(embed(server, texts(80)), texts(80))


# --- errors of single texts --------------------------------------------------------------------------------------------


def test_one_poisonous_text_in_twenty_costs_one_failure_and_few_requests() -> None:
    server = FakeEmbeddingServer()
    server.poison = {"number 13"}
    report = embed(server, texts(20), batch_items=20, concurrency=1)
    assert_right(report, texts(20), without=[13])
    failure = report.failures[0]
    assert (failure.error_class, failure.stage) == ("TextsRejected", "embeddings")
    assert "offends the tokenizer" in failure.message
    assert len(failure.text_hash) == 64
    assert server.requests <= 15


def test_failures_of_one_kind_share_a_fingerprint() -> None:
    server = FakeEmbeddingServer()
    server.poison, server.longest_text = {"number 3"}, 50
    report = embed(server, [*texts(6), "number 3 again", "x" * 51])
    kinds = [(failure.position, failure.error_class) for failure in report.failures]
    assert kinds == [(3, "TextsRejected"), (6, "TextsRejected"), (7, "TextsTooLarge")]
    one, two, three = (failure.fingerprint for failure in report.failures)
    assert one == two != three


def test_a_text_too_long_fails_alone_with_the_server_s_reason() -> None:
    server = FakeEmbeddingServer()
    server.longest_text = 100
    wanted = [*texts(7), "x" * 101]
    report = embed(server, wanted, concurrency=1)
    assert_right(report, wanted, without=[7])
    assert "exceeds the context length" in report.failures[0].message


def test_a_request_too_large_is_split_until_it_passes() -> None:
    server = FakeEmbeddingServer()
    server.most_texts = 3
    assert_right(embed(server, texts(200)), texts(200))
    too_large = [len(batch) for batch in server.batches if len(batch) > 3]
    assert 0 < len(too_large) <= 8, "once a size was refused, larger requests are not tried again"


@pytest.mark.parametrize("most", [10, 32])
def test_how_many_texts_a_request_may_hold_is_learnt_whatever_the_server_says_of_more(most: int) -> None:
    server = slow_server()
    server.most_texts, server.too_many = most, Fault(400, "Please pass fewer documents.")
    assert_right(embed(server, texts(6000)), texts(6000))
    rejected = sum(len(batch) > most for batch in server.batches)
    assert 0 < rejected <= 20, "once a size was rejected, larger requests are hardly tried again"
    assert sum(len(batch) == most for batch in server.batches) >= 20, "and as many go as are taken"


def test_requests_that_are_rejected_by_chance_are_no_smaller_afterwards() -> None:
    server, chance = slow_server(), Random(1)
    server.faults = deque(Fault(400, "something went wrong") if chance.random() < 0.1 else None for _ in range(400))
    assert_right(embed(server, texts(4000)), texts(4000))
    assert max(map(len, server.batches[-50:])) > 32


def test_texts_that_spoil_their_company_say_nothing_of_how_many_go_together() -> None:
    server = slow_server()
    server.poison = {f"number {number}" for number in range(1000, 1500, 50)}
    assert_right(embed(server, texts(6000)), texts(6000), without=range(1000, 1500, 50))
    assert max(map(len, server.batches[-50:])) > 32


def slow_server() -> FakeEmbeddingServer:
    server = FakeEmbeddingServer()
    server.seconds_per_text, server.slots = 0.002, 4
    return server


@pytest.mark.parametrize("kind", ["nan", "zero"])
def test_a_text_whose_vector_is_none_fails_alone_after_a_second_try(kind: str) -> None:
    server = FakeEmbeddingServer()
    setattr(server, kind, {"number 5"})
    report = embed(server, texts(8), concurrency=1)
    assert_right(report, texts(8), without=[5])
    assert (report.failures[0].error_class, report.failures[0].attempts) == ("BadVectors", 2)
    callers = [text for text in server.texts if text != CANARY]
    assert sorted(callers) == sorted([*texts(8), "text number 5"]), "the good vectors of its first answer are kept"


class Literals(httpx.AsyncBaseTransport):
    """A server in front of which each null of a vector becomes a literal that is no JSON."""

    def __init__(self, server: FakeEmbeddingServer, literal: bytes) -> None:
        self._inner = FakeTransport(server)
        self._literal = literal

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        return httpx.Response(response.status_code, content=response.content.replace(b"null", self._literal))


@pytest.mark.parametrize("literal", [b"NaN", b"-Infinity", b"1e999"])
def test_a_number_that_json_does_not_know_spoils_one_vector_and_no_answer(literal: bytes) -> None:
    server = FakeEmbeddingServer()
    server.nan = {"number 5"}
    report = embed(server, texts(8), concurrency=1, transport=Literals(server, literal))
    assert_right(report, texts(8), without=[5])
    assert (report.failures[0].error_class, report.failures[0].attempts) == ("BadVectors", 2)
    assert "not finite" in report.failures[0].message


class Unconnectable(httpx.AsyncBaseTransport):
    """A host behind which nothing answers."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("", request=request)


def test_a_host_that_takes_no_connection_is_not_excused_by_a_longer_time_out() -> None:
    provider = OllamaProvider(URL, "m", transport=Unconnectable())
    verdict = run_virtually(provider.embed(["a"], 60.0))
    assert isinstance(verdict, Verdict)
    assert verdict.outcome is Outcome.TIMED_OUT
    assert verdict.error.message == f"{URL} (model m) took no connection within 10 s."
    assert "ERA_REQUEST_TIMEOUT_SECONDS" not in verdict.error.hint


def test_a_text_that_crashes_the_server_does_not_take_its_company_along() -> None:
    server = FakeEmbeddingServer()
    server.crashing = {"number 11"}
    report = embed(server, texts(16), batch_items=16, concurrency=1)
    assert_right(report, texts(16), without=[11])
    assert report.failures[0].error_class == "EndpointUnavailable"
    assert report.failures[0].attempts == 10


def test_a_lone_text_that_is_always_answered_500_fails_without_ending_the_rest() -> None:
    server = FakeEmbeddingServer()
    server.crashing = {"poison"}
    assert_right(embed(server, ["poison"]), ["poison"], without=[0])


def test_an_answer_with_too_few_vectors_is_never_guessed_at() -> None:
    server = FakeEmbeddingServer()
    server.always = Fault(answer="wrong_count")
    with pytest.raises(EndpointUnavailable, match="answered 0 vectors for 1 texts"):
        embed(server, texts(3))


# --- errors that stop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_for_good_ends_every_call_without_hammering(status: int) -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 1.0
    server.always = Fault(status=status, message="model 'test-model' not found")

    async def main() -> list[object]:
        async with embedder(server, concurrency=3) as one:
            calls = [one.embed(texts(20, start)) for start in range(0, 200, 20)]
            return list(await asyncio.gather(*calls, return_exceptions=True))

    results = run_virtually(main())
    assert [type(result) for result in results] == [EndpointRefused] * 10
    assert server.requests == 3


def test_a_missing_model_names_the_command_that_fetches_it() -> None:
    server = FakeEmbeddingServer()
    with pytest.raises(EndpointRefused) as caught:
        embed(server, texts(1), model="nomic-embed-text")
    assert caught.value.hint == "Run: ollama pull nomic-embed-text"


@pytest.mark.parametrize("kind", ["down", "503", "429", "reset"])
def test_a_dead_server_ends_the_call_when_the_budget_ends_and_not_later(kind: str) -> None:
    server = FakeEmbeddingServer()
    server.down = kind == "down"
    server.always = {"reset": Fault(reset=True), "down": None}.get(kind) or Fault(status=503 if kind == "503" else 429)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(EndpointUnavailable, match=f"{URL}.*test-model"):
            await embed_texts(
                texts(500), urls=URL, model="test-model", transport=FakeTransport(server), retry_budget_seconds=90.0
            )
        return loop.time()

    assert run_virtually(main()) == pytest.approx(90.0)
    assert server.requests < 40


def test_a_server_that_hangs_is_named_with_url_model_and_seconds() -> None:
    server = FakeEmbeddingServer()
    server.stalled = True
    # the first request may have to wait for the model to load: three time-outs
    with pytest.raises(EndpointUnavailable, match=rf"{URL} \(model test-model\) gave no answer within 15 s"):
        embed(server, texts(3), request_timeout_seconds=5.0)


def test_a_pause_longer_than_the_budget_is_said_at_once() -> None:
    server = FakeEmbeddingServer()
    server.always = Fault(status=429, message="daily quota", headers={"Retry-After": "7200"})
    with pytest.raises(EndpointUnavailable, match="daily quota"):
        embed(server, texts(30))
    assert server.requests <= 6


def test_a_server_that_heals_within_the_budget_loses_nothing() -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.01

    async def main() -> tuple[EmbedReport, int]:
        loop = asyncio.get_running_loop()
        loop.call_at(0.5, setattr, server, "down", True)
        loop.call_at(80.0, setattr, server, "down", False)
        async with embedder(server) as one:
            return await one.embed(texts(200)), server.requests

    report, _ = run_virtually(main())
    assert_right(report, texts(200))
    assert 80.0 < report.seconds < 100.0


def test_a_stalled_server_is_probed_with_a_text_of_our_own_before_work_goes_on() -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.01

    async def main() -> EmbedReport:
        loop = asyncio.get_running_loop()
        loop.call_at(0.5, setattr, server, "stalled", True)
        loop.call_at(60.6, setattr, server, "stalled", False)
        return await embed_texts(texts(400), urls=URL, model=server.model, transport=FakeTransport(server))

    assert_right(run_virtually(main()), texts(400))
    assert any("quick brown fox" in text for text in server.texts)


def test_a_request_that_is_stuck_while_others_pass_it_travels_a_second_time() -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text, server.slots = 0.01, 8
    server.faults.extend([*[None] * 30, Fault(stall=True)])
    report = embed(server, texts(2000))
    assert_right(report, texts(2000))
    assert report.seconds < 10.0
    assert report.retries > 0


def test_an_endpoint_with_another_model_stops_the_run() -> None:
    servers = {"one": FakeEmbeddingServer(), "two": FakeEmbeddingServer(dimension=384)}
    servers["two"].seconds_per_text = 0.1
    with pytest.raises(BadVectors, match="http://two answers vectors of 384 dimensions"):
        embed(servers["one"], texts(64), urls=("http://one", "http://two"), transport=FakeTransport(servers))


def test_a_later_call_tries_anew() -> None:
    server = FakeEmbeddingServer()
    server.down = True

    async def main() -> EmbedReport:
        async with embedder(server, retry_budget_seconds=10.0) as one:
            with pytest.raises(EndpointUnavailable):
                await one.embed(texts(5))
            await asyncio.sleep(1000)
            server.down = False
            return await one.embed(texts(5))

    assert_right(run_virtually(main()), texts(5))


# --- several endpoints -------------------------------------------------------------------------------------------------


def test_two_endpoints_share_the_work_and_the_faster_one_takes_more() -> None:
    servers = {"one": FakeEmbeddingServer(), "two": FakeEmbeddingServer()}
    servers["one"].seconds_per_text, servers["two"].seconds_per_text = 0.01, 0.03
    wanted = texts(800)
    report = embed(servers["one"], wanted, urls=("http://one", "http://two"), transport=FakeTransport(servers))
    assert_right(report, wanted)
    one, two = len(servers["one"].texts), len(servers["two"].texts)
    assert two > 100
    assert 2.0 < one / two < 4.0


@pytest.mark.parametrize("how", ["down", "always"])
def test_a_dying_endpoint_hands_its_work_on(how: str) -> None:
    servers = {"one": FakeEmbeddingServer(), "two": FakeEmbeddingServer()}
    for server in servers.values():
        server.seconds_per_text = 0.02

    async def main() -> EmbedReport:
        loop = asyncio.get_running_loop()
        loop.call_at(1.0, setattr, servers["two"], how, True if how == "down" else Fault(status=503, message=BUSY))
        urls = ("http://one", "http://two")
        return await embed_texts(texts(600), urls=urls, model="test-model", transport=FakeTransport(servers))

    report = run_virtually(main())
    assert_right(report, texts(600))
    assert report.seconds < 15.0


@pytest.mark.parametrize("what", ["longest_text", "poison", "nan"])
def test_what_one_endpoint_rejects_another_takes(what: str) -> None:
    servers = {"one": FakeEmbeddingServer(), "two": FakeEmbeddingServer()}
    for server in servers.values():
        server.seconds_per_text = 0.01
    wanted = [text + " and more of it" * (number % 2) for number, text in enumerate(texts(300))]
    setattr(servers["one"], what, 20 if what == "longest_text" else {"and more"})
    report = embed(servers["one"], wanted, urls=("http://one", "http://two"), transport=FakeTransport(servers))
    assert_right(report, wanted)
    assert len(servers["one"].texts) > 50, "it makes the others meanwhile"


def test_a_text_that_every_endpoint_rejects_is_asked_once_of_each() -> None:
    servers = {"one": FakeEmbeddingServer(), "two": FakeEmbeddingServer()}
    for server in servers.values():
        server.poison, server.seconds_per_text = {"number 13"}, 0.01
    report = embed(servers["one"], texts(100), urls=("http://one", "http://two"), transport=FakeTransport(servers))
    assert_right(report, texts(100), without=[13])
    for server in servers.values():
        assert sum(len(batch) == 1 and "number 13" in batch[0] for batch in server.batches) == 1


def test_a_rejected_text_does_not_wait_for_an_endpoint_that_is_gone() -> None:
    servers = {"one": FakeEmbeddingServer(), "two": FakeEmbeddingServer()}
    servers["one"].poison = {"number 13"}

    async def main() -> EmbedReport:
        asyncio.get_running_loop().call_at(0.0, setattr, servers["two"], "down", True)
        urls = ("http://one", "http://two")
        return await embed_texts(texts(100), urls=urls, model="test-model", transport=FakeTransport(servers))

    report = run_virtually(main())
    assert_right(report, texts(100), without=[13])
    assert "http://one" in report.failures[0].message
    assert report.seconds < 10.0


# --- many callers ------------------------------------------------------------------------------------------------------


def test_requests_fill_across_callers() -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.01

    async def main() -> list[EmbedReport]:
        async with embedder(server, concurrency=1, batch_items=8) as one:
            return await asyncio.gather(*(one.embed(texts(2, start)) for start in range(0, 80, 2)))

    for number, report in enumerate(run_virtually(main())):
        assert_right(report, texts(2, 2 * number))
    assert max(map(len, server.batches)) > 2, "texts of several callers travel together"


def test_the_same_text_twice_in_flight_is_sent_once() -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 1.0

    async def main() -> list[EmbedReport]:
        async with embedder(server) as one:
            return await asyncio.gather(one.embed(["a", "b", "a"]), one.embed(["b", "c"]))

    first, second = run_virtually(main())
    assert_right(first, ["a", "b", "a"])
    assert_right(second, ["b", "c"])
    assert sorted(server.texts) == ["a", "b", "c"]


def test_a_full_queue_makes_callers_wait() -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.01
    most = 0

    async def main() -> list[EmbedReport]:
        nonlocal most
        async with embedder(server, queue_limit=50, concurrency=2) as one:
            calls = asyncio.gather(*(one.embed(texts(100, start)) for start in range(0, 1000, 100)))
            while not calls.done():
                most = max(most, one.stats().waiting)
                await asyncio.sleep(0.005)
            return await calls

    reports = run_virtually(main())
    assert all(not report.failures for report in reports)
    assert len(server.texts) == 1000
    assert most == 50


def test_the_ceilings_hold() -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text, server.slots = 0.01, 100
    embed(server, texts(500), concurrency=5, batch_items=7)
    assert server.most_in_flight == 5
    assert max(map(len, server.batches)) == 7


def test_a_pace_is_kept_over_all_endpoints() -> None:
    servers = {"one": FakeEmbeddingServer(), "two": FakeEmbeddingServer()}
    urls = ("http://one", "http://two")
    options = {"urls": urls, "transport": FakeTransport(servers), "max_items_per_second": 20.0}
    report = embed(servers["one"], texts(400), **options)
    assert 18.0 < report.seconds < 20.0


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.5, 3.0])
def test_cancelling_a_call_leaves_no_task_and_no_text_behind(moment: float) -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.1

    async def main() -> EmbedReport:
        async with embedder(server, queue_limit=20) as one:
            call = asyncio.create_task(one.embed(texts(100)))
            other = asyncio.create_task(one.embed(texts(4)))
            await asyncio.sleep(moment)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            report = await other
            assert one.stats().waiting == 0
            return report

    assert_right(run_virtually(main()), texts(4))
    assert len(set(server.texts)) < 60


def test_texts_nobody_waits_for_any_more_are_not_sent_again() -> None:
    server = FakeEmbeddingServer()
    server.faults.append(Fault(status=429, headers={"Retry-After": "10"}))

    async def main() -> None:
        async with embedder(server, concurrency=1) as one:
            call = asyncio.create_task(one.embed(texts(6)))
            other = asyncio.create_task(one.embed(["mine"]))
            await asyncio.sleep(5)
            call.cancel()
            await other

    run_virtually(main())
    assert [batch for batch in server.batches[1:] if "mine" not in batch] == []


def test_the_end_of_all_calls_ends_the_requests_under_way() -> None:
    server = FakeEmbeddingServer()
    server.faults.extend([Fault(stall=True), Fault(status=401)])

    async def main() -> None:
        async with embedder(server, concurrency=2) as one:
            with pytest.raises(EndpointRefused):
                await one.embed(texts(16))
            await asyncio.sleep(0.001)
            assert server.in_flight == 0
            assert one.stats().endpoints[0].in_flight == 0

    run_virtually(main())


def test_cancelling_embed_texts_leaves_nothing_running() -> None:
    server = FakeEmbeddingServer()
    server.stalled = True

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await embed_texts(texts(100), urls=URL, model=server.model, transport=FakeTransport(server))

    run_virtually(main())


def test_the_counters_can_be_read_while_work_goes_on() -> None:
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.1

    async def main() -> None:
        async with embedder(server, concurrency=2, batch_items=5) as one:
            call = asyncio.create_task(one.embed(texts(30)))
            await asyncio.sleep(1.25)
            half = one.stats()
            await call
            end = one.stats()
        assert half.embedded + half.waiting == 30
        assert 10 <= half.embedded <= 12
        assert half.endpoints[0].in_flight == half.endpoints[0].limit == 2
        assert (end.embedded, end.waiting, end.failed, end.endpoints[0].in_flight) == (30, 0, 0, 0)

    run_virtually(main())


def test_a_fault_of_our_own_ends_the_callers_instead_of_leaving_them_waiting() -> None:
    class Broken(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_virtually(embed_texts(texts(3), urls=URL, model="m", transport=Broken()))


def test_a_request_that_is_cancelled_before_it_began_gives_its_place_back() -> None:
    """A probe that did not left its endpoint alone for ever."""
    random = Random(3)
    share = 0.0

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/api/embed":
            return httpx.Response(200, json={"version": "1", "models": []})
        for _ in range(random.randint(0, 12)):
            await asyncio.sleep(0)
        if random.random() < share:
            return httpx.Response(401, json={"error": "no"})
        asked = json.loads(request.content)["input"]
        return httpx.Response(200, json={"embeddings": [vector_of(text, 8).tolist() for text in asked]})

    async def main() -> None:
        nonlocal share

        async def ask(text: str) -> None:
            for _ in range(random.randint(0, 30)):
                await asyncio.sleep(0)
            with suppress(EndpointRefused):
                await one.embed([text])

        config = EmbedderConfig(urls=(URL,), model="m")
        async with Embedder(config, transport=httpx.MockTransport(answer)) as one:
            await one.identify()
            share = 0.03
            for number in range(100):
                await asyncio.gather(*(ask(f"{number} {each}") for each in range(30)))
            await asyncio.sleep(1.0)
            assert [each.in_flight for each in one.stats().endpoints] == [0]

    run_virtually(main())


# --- identity and cache ------------------------------------------------------------------------------------------------


def test_ollama_tells_digest_version_and_dimension() -> None:
    server = FakeEmbeddingServer(model="nomic-embed-text")

    async def main() -> None:
        async with embedder(server) as one:
            identity = await one.identify()
            assert await one.identify() is identity
        assert identity.digest == server.digest
        assert (identity.dimension, identity.server_version) == (768, "0.32.0")
        assert (identity.document_prefix, identity.query_prefix) == ("search_document: ", "search_query: ")
        assert server.texts == [CANARY] * 2

    run_virtually(main())


def test_a_list_of_models_that_is_away_for_a_moment_hides_no_digest() -> None:
    """Without it the model would be another one than before, and every run after it refused."""

    class ListAwayOnce(FakeEmbeddingServer):
        lists = 0

        async def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
            self.lists += path == "/api/tags"
            if path == "/api/tags" and self.lists == 1:
                return Reply(502, b"bad gateway")
            return await super().handle(method, path, headers, body)

    server = ListAwayOnce(model="nomic-embed-text")

    async def main() -> None:
        async with embedder(server) as one:
            assert (await one.identify()).digest == server.digest

    run_virtually(main())


def test_an_openai_server_tells_its_dimension_only() -> None:
    server = FakeEmbeddingServer(dimension=384)

    async def main() -> None:
        async with embedder(server, provider="openai") as one:
            identity = await one.identify()
        assert (identity.dimension, identity.digest, identity.server_version) == (384, None, None)

    run_virtually(main())


def test_identity_fails_in_seconds_where_nobody_listens_and_waits_where_the_server_is_busy() -> None:
    server = FakeEmbeddingServer()

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with embedder(server) as one:
            server.down = True
            with pytest.raises(EndpointUnavailable, match=URL):
                await one.identify()
            gave_up_at = loop.time()
            assert gave_up_at < 5.0
            server.down = False
            server.faults.append(Fault(status=503, message=BUSY, headers={"Retry-After": "9"}))
            await one.identify()
            return loop.time() - gave_up_at

    assert run_virtually(main()) == pytest.approx(9.0)


def test_identity_survives_one_broken_connection() -> None:
    server = FakeEmbeddingServer()
    server.faults.append(Fault(reset=True))

    async def main() -> int:
        async with embedder(server) as one:
            return (await one.identify()).dimension

    assert run_virtually(main()) == server.dimension


def test_two_endpoints_with_different_models_under_one_name_are_refused() -> None:
    servers = {"one": FakeEmbeddingServer(), "two": FakeEmbeddingServer()}
    servers["two"].digest = "another"

    async def main() -> None:
        config = EmbedderConfig(urls=("http://one", "http://two"), model="test-model")
        async with Embedder(config, transport=FakeTransport(servers)) as one:
            with pytest.raises(ConfigurationError, match="different models"):
                await one.identify()

    run_virtually(main())


def test_what_the_cache_holds_is_not_asked_for_again() -> None:
    server, cache = FakeEmbeddingServer(), MemoryCache()
    first = embed(server, texts(40), cache=cache)
    assert_right(first, texts(40))
    assert first.from_cache == 0
    before = server.requests
    second = embed(server, texts(45), cache=cache)
    assert_right(second, texts(45))
    assert second.from_cache == 40
    assert server.requests - before == 2 + second.requests, "two canaries and the five new texts"
    assert second.texts_sent == 5
    assert all(keys == sorted(keys) for keys in cache.puts)
    assert threading.get_ident() not in cache.thread_ids


def test_a_vector_is_handed_out_only_when_it_is_remembered() -> None:
    server, cache = FakeEmbeddingServer(), MemoryCache()
    cache.broken = True

    async def main() -> None:
        async with embedder(server, cache=cache) as one:
            with pytest.raises(DatabaseUnavailable):
                await one.embed(texts(8))
            with pytest.raises(DatabaseUnavailable):
                await one.embed(texts(8))

    run_virtually(main())


def test_what_was_made_before_everything_died_is_remembered() -> None:
    server, cache = FakeEmbeddingServer(), MemoryCache()
    server.seconds_per_text = 0.01

    async def main() -> None:
        asyncio.get_running_loop().call_at(1.0, setattr, server, "down", True)
        async with embedder(server, cache=cache) as one:
            with pytest.raises(EndpointUnavailable, match="what was embedded is kept"):
                await one.embed(texts(500))

    run_virtually(main())
    assert 50 < len(cache.vectors) < 150


def test_two_callers_with_one_text_and_a_cache_make_one_call() -> None:
    server, cache = FakeEmbeddingServer(), MemoryCache()

    async def main() -> None:
        async with embedder(server, cache=cache) as one:
            await asyncio.gather(*(one.embed(texts(20)) for _ in range(5)))

    run_virtually(main())
    assert sorted(server.texts[2:]) == sorted(texts(20))
    assert sum(map(len, cache.puts)) == 20
