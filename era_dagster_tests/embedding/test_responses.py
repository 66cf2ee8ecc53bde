"""What servers answer, word for word as they were read or seen, and which error of the tree each one is."""

import itertools
import math
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import orjson
import pytest

from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import (
    BadVectors,
    EndpointBusy,
    EndpointRefused,
    EndpointUnavailable,
    TextsRejected,
    TextsTooLarge,
)
from era_dagster.embedding.responses import (
    Asked,
    classify,
    excerpt,
    json_object,
    retry_after_seconds,
    said_in,
    said_of,
    unreachable,
    unreadable,
)

ASKED = Asked(url="http://host:11434", model="m", missing_model_hint="Run: ollama pull m")

SEEN = [
    (404, "model 'm' not found", EndpointRefused),
    (404, 'model "m" not found, try pulling it first', EndpointRefused),
    (404, "The model `m` does not exist.", EndpointRefused),
    (404, "404 page not found", EndpointRefused),
    (401, "Unauthorized", EndpointRefused),
    (403, "", EndpointRefused),
    (405, "", EndpointRefused),
    (302, "", EndpointRefused),
    (400, "invalid input type", EndpointRefused),
    (400, "missing request body", EndpointRefused),
    (400, '"m" does not support embeddings', EndpointRefused),
    (501, "This server does not support embeddings. Start it with `--embeddings`", EndpointRefused),
    (400, "the input length exceeds the context length", TextsTooLarge),
    (400, "input length exceeds maximum context length", TextsTooLarge),
    (400, "input exceeds maximum context length", TextsTooLarge),
    (400, "input after truncation exceeds maximum context length", TextsTooLarge),
    (400, "This model's maximum context length is 512 tokens. However, you requested 600 tokens", TextsTooLarge),
    (413, "", TextsTooLarge),
    (422, "batch size 64 > maximum allowed batch size 32", TextsTooLarge),
    (422, "List should have at most 2048 items after validation, not 2049", TextsTooLarge),
    (413, "Input validation error: `inputs` must have less than 512 tokens. Given: 600", TextsTooLarge),
    (500, "input is too large to process. increase the physical batch size", TextsTooLarge),
    (400, 'do embedding request: Post "http://127.0.0.1:40001/embedding": EOF', EndpointUnavailable),
    (400, "dial tcp 127.0.0.1:40001: connect: connection refused", EndpointUnavailable),
    (400, "unexpected server status", EndpointUnavailable),
    (400, "no slots available after 10 retries", EndpointUnavailable),
    (499, "request canceled", EndpointUnavailable),
    (500, "llama runner process has terminated", EndpointUnavailable),
    (500, "", EndpointUnavailable),
    (502, "<html>Bad Gateway</html>", EndpointUnavailable),
    (424, "Inference failed", EndpointUnavailable),
    (400, "embedding contains NaN or Inf values", BadVectors),
    (500, "failed to encode response: json: unsupported value: NaN", BadVectors),
    (503, "server busy, please try again.  maximum pending requests exceeded", EndpointBusy),
    (400, 'model "m" not found, try pulling it first', EndpointRefused),
    (400, "The model `m` does not exist.", EndpointRefused),
    (400, "Model m is not supported. Supported models are ['n'].", EndpointRefused),
    (400, "litellm.BadRequestError: OpenAIException - The model `m` does not exist", EndpointRefused),
    (400, "model not found", EndpointRefused),
    (400, "Invalid model: m", EndpointRefused),
    (400, "unknown model m", EndpointRefused),
    (400, "API key not valid. Please pass a valid API key.", EndpointRefused),
    (400, "Missing or invalid API key", EndpointRefused),
    (400, "this model does not support embeddings", EndpointRefused),
    (400, "model is required", EndpointRefused),
    (400, "model runner has unexpectedly stopped, this may be due to resource limitations", EndpointUnavailable),
    (500, "Requested tokens (600) exceed context window of 512", TextsTooLarge),
    (500, "input (600 tokens) is too large to process. increase the physical batch size", TextsTooLarge),
    (500, "Out of range float values are not JSON compliant: nan", BadVectors),
    (500, "Internal error: token budget too large", EndpointUnavailable),
    (429, "model all-minilm is currently overloaded", EndpointBusy),
    (
        429,
        "You exceeded your current quota, please check your plan and billing details. * Quota exceeded",
        EndpointBusy,
    ),
    (429, "You have not yet added your payment method in the billing page: reduced rate limits of 3 RPM", EndpointBusy),
    (500, "context size has been exceeded.", TextsTooLarge),
    (500, "This model's maximum context length is 512 tokens. However, you requested 600 tokens", TextsTooLarge),
    (500, "You passed 8193 input tokens. However, the model's context length is only 8192 tokens", TextsTooLarge),
    (500, "The prompt (total length 600) is too long to fit into the model (context length 512).", TextsTooLarge),
    (400, "the text offends the tokenizer", TextsRejected),
    (422, "Input should be a valid string", TextsRejected),
]


@pytest.mark.parametrize(("status", "message", "expected"), SEEN)
def test_an_answer_is_classified_by_status_and_words(status: int, message: str, expected: type) -> None:
    for body in ({"error": message}, {"error": {"message": message, "code": status}}, {"detail": message}):
        verdict = classify(ASKED, status, httpx.Headers(), orjson.dumps(body))
        assert type(verdict.error) is expected, body
        assert str(status) in verdict.error.message


ECHOED = [
    "A model citizen is not found by law.",
    "model citizens not found",
    "the model does not exist",
    "unknown model of thinking",
    "your api_key is shown",
    "a sermon that does not support embedding",
    'he said: EOF and "the model does not exist" too',
    "an embedding contains NaN values",
    "connection refused by the saint's own door",
    "exceeds the context length, batch size and all",
]


@pytest.mark.parametrize("text", ECHOED)
@pytest.mark.parametrize(
    "quoted", [repr, lambda text: f'"{text}"', lambda text: orjson.dumps(text).decode(), "`{}`".format]
)
def test_a_text_that_a_server_quotes_does_not_tell_the_class_of_its_error(text: str, quoted: Callable) -> None:
    for message in (
        f"cannot tokenize {quoted(text)}",
        f"cannot tokenize {quoted(text)[:-1]}",
        f"bad: {quoted(text)}: sorry",
    ):
        body = orjson.dumps({"error": message})
        assert type(classify(ASKED, 400, httpx.Headers(), body).error) is TextsRejected, message
        assert type(classify(ASKED, 500, httpx.Headers(), body).error) is EndpointUnavailable, message


@pytest.mark.parametrize("text", ECHOED[:6])
def test_a_text_given_back_without_quotation_marks_ends_no_run(text: str) -> None:
    for message in (f"cannot tokenize this: {text}", f"cannot tokenize {text}"):
        verdict = classify(ASKED, 400, httpx.Headers(), orjson.dumps({"error": message}))
        assert type(verdict.error) is TextsRejected, message


WRAPPINGS: list[Callable[[str], str]] = [
    lambda words: f"Error code: 400 - { ({'error': {'message': words, 'type': 'x', 'code': None}}) }",
    lambda words: f"Error code: 400 - { ({'object': 'error', 'message': words}) }",
    lambda words: f"OllamaException - {orjson.dumps({'error': words}).decode()}",
    lambda words: (
        f"GeminiException BadRequestError - b'{orjson.dumps([{'error': {'code': 400, 'message': words}}]).decode()}'"
    ),
    lambda words: f"OpenAIException - {orjson.dumps({'error': words + '. ' + 'and more ' * 3000}).decode()[:9000]}",
]

WRAPPED = [
    ('do embedding request: Post "http://127.0.0.1:1/embedding": EOF', EndpointUnavailable, EndpointUnavailable),
    ("embedding contains NaN or Inf values", BadVectors, BadVectors),
    ("the input length exceeds the context length", TextsTooLarge, TextsTooLarge),
    ("This model's maximum context length is 8192 tokens, however you requested 9000", TextsTooLarge, TextsTooLarge),
    ("The model `m` does not exist", EndpointRefused, EndpointRefused),
    ("cannot tokenize 'the model does not exist'", TextsRejected, EndpointUnavailable),
    ('cannot tokenize "he said: EOF"', TextsRejected, EndpointUnavailable),
    ("cannot tokenize {'error': 'no such model'}", TextsRejected, EndpointUnavailable),
]


@pytest.mark.parametrize("wrap", WRAPPINGS)
@pytest.mark.parametrize(("words", "at_400", "at_500"), WRAPPED)
def test_an_error_that_a_proxy_wraps_into_its_own_keeps_its_class(
    wrap: Callable[[str], str], words: str, at_400: type, at_500: type
) -> None:
    once = f"litellm.BadRequestError: {wrap(words)}"
    twice = f"litellm.APIConnectionError: OpenAIException - Error code: 400 - { ({'error': {'message': once}}) }"
    for message in (once, twice, once + ". Received Model Group=emb\nAvailable Model Group Fallbacks=None"):
        body = orjson.dumps({"error": {"message": message, "type": None, "code": "400"}})
        assert type(classify(ASKED, 400, httpx.Headers(), body).error) is at_400, message
        assert type(classify(ASKED, 500, httpx.Headers(), body).error) is at_500, message


def test_the_codes_of_a_wrapped_error_count_and_those_in_a_text_that_it_gives_back_do_not() -> None:
    money = f"litellm.RateLimitError: OpenAIException - Error code: 429 - { ({'error': NO_MONEY}) }"
    said = said_of({"error": money})
    assert said.codes == {"insufficient_quota"}
    assert type(classify(ASKED, 429, httpx.Headers(), orjson.dumps({"error": money})).error) is EndpointRefused
    given_back = {"error": {"message": "bad text: {\"code\": \"model_not_found\"} 'code': 'invalid_api_key'"}}
    assert said_of({"error": f"XError: {given_back}"}).codes == frozenset()


def test_an_error_in_json_is_not_taken_for_wrapped_where_no_error_is_named_before_it() -> None:
    body = orjson.dumps({"error": "cannot tokenize this: {'error': 'no such model'}"})
    assert type(classify(ASKED, 400, httpx.Headers(), body).error) is TextsRejected


PARTS = [
    "error",
    "error.",
    "error..",
    "errorexception ",
    "Error: ",
    "code: 4 - ",
    "model ",
    "the ",
    "no api ",
    "_",
    "a",
    "\\",
]
PARTS += ['"', "'", "`", "\"'", "\\'", "'error': ", '"message": "', "{", "exceeds w w ", "contains nan ", "x" * 9 + " "]


def test_no_error_of_the_longest_that_are_read_takes_longer_the_more_ways_there_are_to_read_it() -> None:
    for one, two in itertools.product(PARTS, PARTS):
        for start in ("", "XError: {'error': '"):
            words = (start + (one + two) * 200)[:400]
            for body in (orjson.dumps({"error": words}), orjson.dumps({"error": {"message": words[:193]}})[:-2]):
                assert classify(ASKED, 400, httpx.Headers(), body).error.message
    assert type(classify(ASKED, 400, httpx.Headers(), orjson.dumps({"error": "error.." * 28})).error) is TextsRejected


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":%b1%b}' % (b"[" * 300, b"]" * 300),
        b'{"error":%b1%b}' % (b"[" * 1000, b"]" * 1000),
        b'{"error":%b1%b}' % (b'{"message":' * 1000, b"}" * 1000),
        b'{"error":{"message":%b1%b}}' % (b'{"a":' * 1000, b"}" * 1000),
        b'{"error":%b' % (b"[" * 100_000),
        b'{"error":{"code":123456789012345678901234567890}}',
        b'{"error":%b}' % (b"1" * 5000),
        b'{"error":[NaN,1e999,"\\ud800"]}',
        b'{"error":"\\ud800 text"}',
    ],
)
def test_an_error_in_whatever_json_is_read(body: bytes) -> None:
    assert type(classify(ASKED, 400, httpx.Headers(), body).error) is TextsRejected
    said = said_in(body).text
    assert 0 < len(said) <= 200
    assert said.encode().isascii()


@pytest.mark.parametrize("code", ["model_not_found", "invalid_api_key"])
def test_a_400_whose_code_refuses_every_request_ends_the_run(code: str) -> None:
    body = orjson.dumps({"error": {"message": "Failed to load.", "code": code}})
    assert type(classify(ASKED, 400, httpx.Headers(), body).error) is EndpointRefused


@pytest.mark.parametrize(
    ("status", "message", "outcome"),
    [
        (413, "Input validation error: `inputs` must have less than 512 tokens. Given: 516", Outcome.TEXTS),
        (500, "input (992 tokens) is too large to process. increase the physical batch size", Outcome.TEXTS),
        (413, "batch size 64 > maximum allowed batch size 32", Outcome.TOO_LARGE),
        (413, "<title>413 Request Entity Too Large</title>", Outcome.TOO_LARGE),
        (400, "Too many inputs. The max number of inputs is 16.", Outcome.TOO_LARGE),
    ],
)
def test_one_text_that_is_too_long_is_told_from_too_many_texts(status: int, message: str, outcome: Outcome) -> None:
    verdict = classify(ASKED, status, httpx.Headers(), orjson.dumps({"error": message}))
    assert (type(verdict.error), verdict.outcome) == (TextsTooLarge, outcome)


def test_an_error_too_long_to_be_read_to_its_end_is_told_by_its_words() -> None:
    detail = {"type": "too_long", "msg": "List should have at most 2048 items", "input": ["no such model"] * 3000}
    body = orjson.dumps({"detail": [detail]})[:16_384]
    assert said_in(body).text == "List should have at most 2048 items"
    assert type(classify(ASKED, 422, httpx.Headers(), body).error) is TextsTooLarge


def test_a_redirect_says_where_it_points_without_a_secret() -> None:
    headers = httpx.Headers({"Location": "https://user:secret@host/v1/embeddings?key=secret"})
    error = classify(ASKED, 308, headers, b"<html>Moved</html>").error
    assert str(error).startswith(
        "http://host:11434 (model m) answered 308: it points to https://host/v1/embeddings. Redirects"
    )
    assert error.hint.endswith(", without /api/embed.")  # with it, Ollama would be asked for /api/embed/api/embed


def test_what_may_be_the_proxys_fault_is_told_with_what_mends_the_proxy() -> None:
    asked = Asked(url="http://gpu-box", model="m", proxy="http://squid:3128")
    for verdict in (classify(asked, 403, {}, b"<html>"), classify(asked, 407, {}, b""), unreachable(asked, "gone")):
        assert "NO_PROXY" in verdict.error.hint
    alone = Asked(url="http://gpu-box", model="m")
    assert "NO_PROXY" not in classify(alone, 403, {}, b"").error.hint + unreachable(alone, "gone").error.hint


def test_a_missing_model_names_the_command_that_mends_it() -> None:
    verdict = classify(ASKED, 404, httpx.Headers(), b'{"error":"model \'m\' not found"}')
    assert verdict.error.hint == "Run: ollama pull m"


def test_busy_answers_tell_rate_limits_from_overload() -> None:
    assert classify(ASKED, 429, httpx.Headers({"Retry-After": "3"}), b"").outcome is Outcome.RATE_LIMITED
    verdict = classify(ASKED, 503, httpx.Headers({"Retry-After": "3"}), b"")
    assert (verdict.outcome, verdict.retry_after_seconds) == (Outcome.OVERLOADED, 3.0)


NO_MONEY = {
    "message": "You exceeded your current quota, please check your plan and billing details. For more information on this"
    " error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
    "type": "insufficient_quota",
    "param": None,
    "code": "insufficient_quota",
}


def test_an_account_without_money_ends_the_run_however_long_its_message_is() -> None:
    for error in (NO_MONEY, {**NO_MONEY, "code": None}):
        verdict = classify(ASKED, 429, httpx.Headers(), orjson.dumps({"error": error}))
        assert type(verdict.error) is EndpointRefused
        assert verdict.error.hint == "Its account has no quota left."


@pytest.mark.parametrize("header", [{"Retry-After": "20"}, {"retry-after-ms": "20000"}, {"Retry-After": "soon"}])
def test_a_429_that_says_when_to_come_back_is_a_rate_limit_whatever_else_it_says(header: dict[str, str]) -> None:
    verdict = classify(ASKED, 429, httpx.Headers(header), orjson.dumps({"error": NO_MONEY}))
    assert (type(verdict.error), verdict.outcome) == (EndpointBusy, Outcome.RATE_LIMITED)


LIMITED = [
    {"error": {"message": "Rate limit reached for requests", "type": "requests", "code": "rate_limit_exceeded"}},
    [{"error": {"code": 403, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}}],
    {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}},
    {
        "error": {
            "message": f"litellm.RateLimitError: XException - { ({'error': {'message': 'slow', 'code': 'too_many_requests'}}) }"
        }
    },
]


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("content", LIMITED)
def test_a_rate_limit_that_comes_with_400_or_403_is_told_by_its_code(status: int, content: object) -> None:
    verdict = classify(ASKED, status, httpx.Headers(), orjson.dumps(content))
    assert (type(verdict.error), verdict.outcome) == (EndpointBusy, Outcome.RATE_LIMITED)


@pytest.mark.parametrize("status", [400, 403])
def test_a_400_or_403_that_says_when_to_come_back_is_a_rate_limit(status: int) -> None:
    verdict = classify(ASKED, status, httpx.Headers({"Retry-After": "7"}), b'{"message":"a secondary rate limit"}')
    assert (type(verdict.error), verdict.outcome) == (EndpointBusy, Outcome.RATE_LIMITED)
    assert verdict.retry_after_seconds == 7.0


@pytest.mark.parametrize("status", [401, 402, 404, 405])
def test_no_other_refusal_becomes_a_rate_limit_by_a_code_or_by_saying_when_to_come_back(status: int) -> None:
    for content in LIMITED:
        verdict = classify(ASKED, status, httpx.Headers({"Retry-After": "7"}), orjson.dumps(content))
        assert type(verdict.error) is EndpointRefused


def test_the_words_of_a_rate_limit_are_no_code() -> None:
    for status, kind in ((403, EndpointRefused), (400, TextsRejected)):
        body = orjson.dumps({"error": {"message": "rate_limit_exceeded RESOURCE_EXHAUSTED", "code": "other"}})
        assert type(classify(ASKED, status, httpx.Headers(), body).error) is kind


def test_an_error_in_a_list_is_read_like_one_alone() -> None:
    body = orjson.dumps([{"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}}])
    assert said_in(body).text == "Quota exceeded, 429"


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"error":""}', b'{"detail":[]}', b'{"message":null}'])
def test_an_error_that_says_nothing_adds_nothing_to_the_message(body: bytes) -> None:
    assert classify(ASKED, 429, httpx.Headers(), body).error.message == "http://host:11434 (model m) answered 429."


def test_what_a_server_says_is_remembered_without_characters_that_cannot_be_printed() -> None:
    body = orjson.dumps({"error": "bad \x00 token \x1b[31mred\x07\x9b2J \u202eright\u2028to left.\r\n"})
    said = said_in(body).text
    assert said == "bad token [31mred 2J right to left"
    assert said.isprintable()
    assert excerpt("\ud800 lone") == "lone"
    verdict = unreadable(ASKED, b"\x00\x1b[2J<html>")
    assert verdict.error.message == "http://host:11434 (model m) answered no JSON object: [2J<html>."


def test_an_answer_with_nothing_in_it_is_called_so() -> None:
    for body in (b"", b" \r\n", b"\x00"):
        assert unreadable(ASKED, body).error.message == "http://host:11434 (model m) answered nothing."


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_json_does_not_know_is_read_as_one_that_is_not_finite(literal: str) -> None:
    parsed = json_object(b'{"embeddings":[[0.5,%b]]}' % literal.encode())
    assert parsed is not None
    first, second = parsed["embeddings"][0]
    assert first == 0.5
    assert not math.isfinite(second)


@pytest.mark.parametrize("body", [b"", b"[1]", b"null", b'{"a":', b"<html>", b"\xff\xfe{", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_json_object_is_none(body: bytes) -> None:
    assert json_object(body) is None


def test_an_error_that_echoes_the_input_is_cut() -> None:
    body = orjson.dumps({"detail": [{"msg": "too short", "input": "secret " * 40_000}]})
    assert said_in(body).text == "too short"
    assert len(said_in(b"<html>" + b"x" * 300_000).text) == 200


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "Retry-After": "1"}, 0.25),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:10 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:27:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:10 GMT"}, None),
        # Seconds and milliseconds since 1970, as of a gateway that has one number for this and for its resets.
        ({"Retry-After": "1792567690", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"Retry-After": "1792567690000", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"retry-after-ms": "1792567690250", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.25),
        ({"Retry-After": "1792567679", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "1792567690"}, None),
        ({"Retry-After": "99999999", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"Retry-After": "86400", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 86400.0),
        ({"Retry-After": "-4"}, 0.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "5, 5"}, 5.0),
        (
            {"Retry-After": "Wed, 21 Oct 99999999999999999999 07:28:10 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"},
            None,
        ),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:10 +99999999999999", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"Retry-After": "Mon, 1 Jan 1 00:00:00 +2359", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.0),
    ],
)
def test_the_wait_a_server_asks_for_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(httpx.Headers(headers)) == seconds


@pytest.mark.parametrize("moment", ["Wed, 21 Oct 2026 07:28:10 GMT", "1792567690"])
@pytest.mark.parametrize(
    ("date", "seconds"),
    [({}, 10.0), ({"Date": "soon"}, 10.0), ({"Date": "Wed, 21 Oct 2026 07:28:07 GMT"}, 3.0)],
)
def test_a_moment_is_compared_with_our_clock_where_the_answer_has_none(
    moment: str, date: dict[str, str], seconds: float
) -> None:
    headers = httpx.Headers({"Retry-After": moment, **date})
    received_at = datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)
    assert classify(ASKED, 429, headers, b"", received_at).retry_after_seconds == seconds
