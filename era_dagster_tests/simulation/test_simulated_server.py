"""The simulated server over real HTTP: what it answers, how it refuses, and what it says of itself."""

import base64
import email.utils
import math
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import orjson
import pytest

from era_dagster.simulation.vectors import pool_of, vector_of
from era_dagster_tests.simulation.conftest import Simulation


def test_each_text_gets_its_own_vector_of_length_1(simulation: Simulation) -> None:
    texts = [f"text {n}" for n in range(50)]
    rows = np.array(simulation.embed(texts).json()["embeddings"], dtype=np.float32)
    assert rows.shape == (50, 768)
    np.testing.assert_allclose(np.linalg.norm(rows.astype(float), axis=1), 1.0, atol=1e-7)
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_array_equal(row, np.frombuffer(vector_of(text), dtype=np.float32))
    assert len(np.unique(rows, axis=0)) == 50


@pytest.mark.parametrize("dimension", [64, 100, 384, 1024])
def test_any_size_from_64_on_has_length_1(dimension: int) -> None:
    row = np.array(orjson.loads(pool_of(dimension).encoded("a")), dtype=np.float32)
    assert len(row) == dimension
    assert np.linalg.norm(row) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_array_equal(row, np.frombuffer(vector_of("a", dimension), dtype=np.float32))


@pytest.mark.parametrize("dimension", [1, 32, 256, 767])
def test_fewer_dimensions_are_the_first_numbers_of_the_vector_with_length_1(
    simulation: Simulation, dimension: int
) -> None:
    whole = np.frombuffer(vector_of("b"), dtype=np.float32).astype(float)
    first = whole[:dimension] / np.linalg.norm(whole[:dimension])
    rows = simulation.embed(["a", "b"], dimensions=dimension).json()["embeddings"]
    assert [len(row) for row in rows] == [dimension, dimension]
    np.testing.assert_allclose(rows[1], first, atol=1e-6)
    assert [each["embedding"] for each in simulation.openai(["a", "b"], dimensions=dimension).json()["data"]] == rows
    packed = simulation.openai("b", dimensions=dimension, encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), np.float32), np.float32(rows[1]))


@pytest.mark.parametrize("dimension", [768, 1024, 10**9, 0, -1])
def test_as_many_dimensions_as_the_model_has_or_more_or_none_leave_the_vector_as_it_is(
    simulation: Simulation, dimension: int
) -> None:
    assert (
        simulation.embed("a", dimensions=dimension).json()["embeddings"] == simulation.embed("a").json()["embeddings"]
    )
    assert simulation.openai("a", dimensions=dimension).json()["data"] == simulation.openai("a").json()["data"]


def test_both_dialects_give_the_same_vectors(simulation: Simulation) -> None:
    texts = ["one", "two"]
    data = simulation.openai(texts).json()["data"]
    assert [each["index"] for each in data] == [0, 1]
    assert [each["embedding"] for each in data] == simulation.embed(texts).json()["embeddings"]
    packed = simulation.openai(texts, encoding_format="base64").json()["data"][1]["embedding"]
    assert base64.b64decode(packed) == vector_of("two").tobytes()


def test_a_single_string_is_a_list_of_one(simulation: Simulation) -> None:
    assert simulation.embed("one").json()["embeddings"] == simulation.embed(["one"]).json()["embeddings"]


@pytest.mark.parametrize("nothing", [None, "", []])
def test_no_input_is_well_and_loads_the_model(simulation: Simulation, nothing: object) -> None:
    answer = simulation.embed(nothing)
    assert (answer.status_code, answer.json()["embeddings"]) == (200, [])


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"model": "other"}, 404, 'model "other" not found, try pulling it first'),
        ({"model": ""}, 400, "model is required"),
        ({"input": [1]}, 400, "invalid input type"),
        ({"keep_alive": "-1"}, 400, 'time: missing unit in duration "-1"'),
        ({"keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
        ({"input": ["good", "POISON here"]}, 400, "failed to tokenize the input"),
        ({"input": ["good", "NOTANUMBER"]}, 400, "embedding contains NaN or Inf values"),
    ],
)
def test_a_refusal_has_the_words_of_its_dialect(
    simulation: Simulation, more: dict[str, object], status: int, words: str
) -> None:
    payload = {"model": "simulated", "input": ["good"], **more}
    ollama = simulation.client.post("/api/embed", json=payload)
    assert (ollama.status_code, ollama.json()) == (status, {"error": words})
    openai = simulation.client.post("/v1/embeddings", json=payload)
    assert (openai.status_code, openai.json()["error"]["message"]) == (status, words)


GO_MAP = "map[string]interface {}"


@pytest.mark.parametrize(
    ("more", "found", "field"),
    [
        ({"truncate": "false"}, "string", "truncate of type bool"),
        ({"truncate": 0}, "number", "truncate of type bool"),
        ({"options": [1]}, "array", f"options of type {GO_MAP}"),
        ({"options": "x", "truncate": 1}, "string", f"options of type {GO_MAP}"),
        ({"model": 1}, "number", "model of type string"),
        ({"model": {"name": "simulated"}}, "object", "model of type string"),
        ({"dimensions": "64"}, "string", "dimensions of type int"),
        ({"dimensions": 64.5}, "number 64.5", "dimensions of type int"),
        ({"dimensions": True}, "bool", "dimensions of type int"),
    ],
)
def test_a_field_of_another_type_is_refused_in_the_words_of_go(
    simulation: Simulation, more: dict[str, object], found: str, field: str
) -> None:
    answer = simulation.client.post("/api/embed", json={"model": "simulated", "input": "a", **more})
    words = f"json: cannot unmarshal {found} into Go struct field EmbedRequest.{field}"
    assert (answer.status_code, answer.json()) == (400, {"error": words})


@pytest.mark.parametrize(("keep", "kind"), [(True, "bool"), ([1], "[]interface {}"), ({"s": 1}, GO_MAP)])
def test_a_keep_alive_that_is_no_duration_is_refused_before_any_other_field(
    simulation: Simulation, keep: object, kind: str
) -> None:
    answer = simulation.embed("a", truncate="no", keep_alive=keep)
    assert (answer.status_code, answer.json()) == (400, {"error": f"Unsupported type: '{kind}'"})


def test_what_is_no_object_is_refused_in_the_words_of_go(simulation: Simulation) -> None:
    for path, record in (("/api/embed", "api.EmbedRequest"), ("/v1/embeddings", "openai.EmbedRequest")):
        answer = simulation.client.post(path, json=["a"])
        assert answer.status_code == 400
        assert f"json: cannot unmarshal array into Go value of type {record}" in answer.text


def test_null_is_no_value_and_a_field_that_openai_does_not_know_is_left_out(simulation: Simulation) -> None:
    nothing = dict.fromkeys(("truncate", "options", "keep_alive", "dimensions"))
    assert simulation.embed("a", **nothing).status_code == 200
    assert simulation.openai("a", truncate="no", options=7, dimensions=None).status_code == 200


@pytest.mark.parametrize(("texts", "status"), [([], 400), (None, 400), ("", 200), ([""], 200)])
def test_openai_s_route_refuses_a_request_without_input(simulation: Simulation, texts: object, status: int) -> None:
    answer = simulation.openai(texts)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["message"] == "invalid input"
    else:
        assert len(answer.json()["data"]) == 1


def test_openai_s_route_knows_two_encodings(simulation: Simulation) -> None:
    assert simulation.openai("a", encoding_format="FLOAT").status_code == 200
    refused = simulation.openai("a", encoding_format="hex")
    assert refused.status_code == 400
    assert "Supported values: ['float', 'base64']" in refused.json()["error"]["message"]


@pytest.mark.parametrize("good", [-1, 300, "5m", "1h30m", "-1s", "0"])
def test_a_duration_that_ollama_reads_is_taken(simulation: Simulation, good: object) -> None:
    assert simulation.embed("a", keep_alive=good).status_code == 200


def test_a_broken_body_is_named(simulation: Simulation) -> None:
    assert simulation.client.post("/api/embed", content=b"").json() == {"error": "missing request body"}
    assert simulation.client.post("/api/embed", content=b'{"model').status_code == 400


def test_a_text_too_long_is_cut_in_silence_unless_told_not_to(simulation: Simulation) -> None:
    simulation.becomes(seconds_per_text=0, context_tokens=10)
    cut = simulation.embed(["long " * 100, "short"])
    assert (cut.status_code, cut.json()["prompt_eval_count"]) == (200, 10 + 2)
    whole = simulation.embed(["long " * 100], truncate=False)
    assert (whole.status_code, whole.json()) == (400, {"error": "the input length exceeds the context length"})
    assert "maximum context length is 10 tokens" in simulation.openai("long " * 100).json()["error"]["message"]


def test_the_other_pages_are_those_of_ollama(simulation: Simulation) -> None:
    get = simulation.client.get
    assert get("/").text == "Ollama is running"
    assert get("/api/version").json()["version"].startswith("0.")
    assert get("/api/tags").json()["models"][0]["name"] == "simulated:latest"
    assert get("/api/ps").json()["models"] == []
    simulation.embed("a")
    assert get("/api/ps").json()["models"][0]["model"] == "simulated:latest"
    shown = simulation.client.post("/api/show", json={"model": "simulated"}).json()
    assert shown["model_info"]["simulated.embedding_length"] == 768
    assert shown["capabilities"] == ["embedding"]
    assert simulation.client.post("/api/show", json={"model": "other"}).status_code == 404
    assert get("/nowhere").status_code == 404
    assert simulation.client.head("/").status_code == 200


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("wrong_count", [768]),
        ("wrong_dimension", [384, 384]),
        ("null", [768, 768]),
        ("zero", [768, 768]),
    ],
)
def test_garbage_comes_with_status_200(simulation: Simulation, kind: str, found: list[int]) -> None:
    simulation.becomes(seconds_per_text=0, share_garbage=1, garbage=kind)
    answer = simulation.embed(["a", "b"])
    assert answer.status_code == 200
    assert [len(row) for row in answer.json()["embeddings"]] == found
    assert simulation.account()["texts_answered"] == 0


def test_garbage_may_be_no_json_at_all(simulation: Simulation) -> None:
    simulation.becomes(seconds_per_text=0, share_garbage=1, garbage=["html"])
    assert simulation.embed("a").text.startswith("<!DOCTYPE html>")
    simulation.becomes(seconds_per_text=0, share_garbage=1, garbage=["nothing"])
    assert simulation.embed("a").content == b""
    simulation.becomes(seconds_per_text=0, share_garbage=1, garbage=["nan"])
    assert b"NaN" in simulation.embed("a").content
    simulation.becomes(seconds_per_text=0, share_garbage=1, garbage=["broken_off"])
    with pytest.raises(httpx.RemoteProtocolError):
        simulation.embed("a")


def test_resets_and_an_outage_break_the_connection(simulation: Simulation) -> None:
    for course in ({"share_reset": 1}, {"down": True}):
        simulation.becomes(seconds_per_text=0, **course)
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            simulation.embed("a")


def test_an_outage_breaks_off_what_is_inside_and_ends(simulation: Simulation) -> None:
    simulation.becomes(
        seconds_per_text=30, changes=[[0.2, {"down": True}], [0.4, {"down": False, "seconds_per_text": 0}]]
    )
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        simulation.embed("a")
    time.sleep(0.5)
    assert simulation.embed("a").status_code == 200


def test_what_waits_when_it_freezes_is_answered_after_the_thaw(simulation: Simulation) -> None:
    started = time.monotonic()
    simulation.becomes(seconds_per_text=0.2, changes=[[0.3, {"frozen": True}], [1.0, {"frozen": False}]])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(simulation.embed, "abcd"))
    assert time.monotonic() - started >= 1.0 + 2 * 0.2


def test_a_full_queue_is_503_in_ollamas_words(simulation: Simulation) -> None:
    simulation.becomes(seconds_per_text=0.3, queue_limit=1)
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(simulation.embed, ["a"] * 5))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503, 503]
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["error"] == "server busy, please try again.  maximum pending requests exceeded"


def test_a_429_says_how_long_in_the_form_asked_for(simulation: Simulation) -> None:
    headers: dict[str, httpx.Headers] = {}
    for form in ("none", "seconds", "date", "milliseconds"):
        simulation.becomes(seconds_per_text=0, texts_per_second=0.5, burst_seconds=2, retry_after=form)
        assert simulation.embed("a").status_code == 200
        refused = simulation.embed("a")
        assert refused.status_code == 429
        headers[form] = refused.headers
    assert "retry-after" not in headers["none"]
    assert headers["seconds"]["retry-after"] == "2"
    assert 1000 < int(headers["milliseconds"]["retry-after-ms"]) <= 2000
    until = email.utils.parsedate_to_datetime(headers["date"]["retry-after"])
    assert (until - email.utils.parsedate_to_datetime(headers["date"]["date"])).total_seconds() == 2


def test_announced_limits_come_with_every_answer(simulation: Simulation) -> None:
    simulation.becomes(seconds_per_text=0, requests_per_second=2, announce=True)
    answers = [simulation.embed("a") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"


def test_a_request_of_too_many_texts_is_413(simulation: Simulation) -> None:
    simulation.becomes(seconds_per_text=0, most_texts=3)
    assert [simulation.embed(["a"] * count).status_code for count in (3, 4)] == [200, 413]


def test_one_slot_serves_texts_one_after_the_other(simulation: Simulation) -> None:
    simulation.becomes(seconds_per_text=0.05)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(simulation.embed, [["a", "b"]] * 4))
    assert time.monotonic() - started >= 8 * 0.05


def test_a_stall_and_a_cold_start_take_their_time(simulation: Simulation) -> None:
    for course in ({"share_stall": 1, "stall_seconds": 0.3}, {"cold_start_seconds": 0.3}):
        simulation.becomes(seconds_per_text=0, **course)
        started = time.monotonic()
        assert simulation.embed("a").status_code == 200
        assert time.monotonic() - started >= 0.3


def test_it_counts_and_knows_its_own_limit(simulation: Simulation) -> None:
    simulation.becomes(slots=4, seconds_per_text=0.01, changes=[[10, {"slots": 1}]])
    simulation.embed(["word"] * 3)
    simulation.embed(["word POISON"])
    account = simulation.account(start=9, end=11)
    assert account["requests_by_status"] == {"200": 1, "400": 1}
    assert (account["texts_asked"], account["texts_answered"]) == (4, 3)
    assert account["batch_sizes"] == {"1": 1, "3": 1}
    assert account["limit_texts_per_second"] == pytest.approx(400)
    assert account["window"]["texts_limit"] == pytest.approx(400 + 100)
    assert account["cpu_seconds"] < 1


def test_an_abandoned_request_is_worked_on_and_not_counted_as_answered(simulation: Simulation) -> None:
    simulation.becomes(seconds_per_text=0.3)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{simulation.url}/api/embed",
            json={"model": "simulated", "input": "a"},
            timeout=0.1,
            trust_env=False,
        )
    started = time.monotonic()
    assert simulation.embed("b").status_code == 200
    assert time.monotonic() - started >= 0.3
    assert simulation.account()["texts_answered"] == 1


def test_a_course_that_makes_no_sense_is_refused_and_the_old_one_goes_on(simulation: Simulation) -> None:
    for course, words in (
        ({"slot": 1}, "has no slot"),
        ({"slots": "many"}, "slots"),
        ({"slots": 0}, "at least 1"),
        ({"retry_after": "soon"}, "one of none, seconds"),
        ({"full_status": 500}, "one of 503, 429"),
        ({"most_inside": 0}, "at least 1"),
        ({"window_seconds": 0}, "more than 0"),
        ({"changes": [[2, {}], [1, {}]]}, "order of time"),
        ({"changes": [[2, {"slots": 0}]]}, "at least 1"),
        ({"changes": 7}, "changes"),
        ([], "object"),
    ):
        answer = simulation.client.post("/api/simulation", json=course)
        assert answer.status_code == 400
        assert words in answer.json()["error"]
    assert simulation.embed("a").status_code == 200


def test_requests_sent_in_one_go_are_answered_in_order(simulation: Simulation) -> None:
    host, port = simulation.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        body = b'{"model":"simulated","input":[]}'
        post = b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        get = b"GET /api/version HTTP/1.1\r\nConnection: close\r\n\r\n"
        raw.sendall(post + post[:30])
        time.sleep(0.05)
        raw.sendall(post[30:] + get)
        received = b"".join(iter(lambda: raw.recv(65536), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.endswith(b"}")
    assert b'"version"' in received.rpartition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("head", "status"),
    [(b"nonsense\r\n\r\n", b"400"), (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411")],
)
def test_what_is_no_http_is_refused(simulation: Simulation, head: bytes, status: bytes) -> None:
    host, port = simulation.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(head)
        received = b"".join(iter(lambda: raw.recv(65536), b""))
    assert received.split()[1] == status


def test_a_server_that_needs_no_time_has_no_limit(simulation: Simulation) -> None:
    account = simulation.account()
    assert account["limit_texts_per_second"] is None
    assert not math.isnan(account["elapsed_seconds"])
