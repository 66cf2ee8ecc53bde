"""Turns what an embedding server answered into an error of the project's tree, by status AND body.

Pure: status, headers and body go in, a `Verdict` comes out. The tables follow what Ollama's source says and what TEI,
vLLM, Infinity, llama.cpp and hosted services were seen to answer; "4xx is permanent" holds for none of them.
"""

import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from era_dagster.control.allowances import LONGEST_RESET_SECONDS, seconds_until
from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import (
    BadVectors,
    EndpointBusy,
    EndpointRefused,
    EndpointUnavailable,
    EraError,
    TextsRejected,
    TextsTooLarge,
)
from era_dagster.settings import without_secrets

LONGEST_EXCERPT_CHARACTERS = 200
"""Some servers echo the whole input in their error (Infinity: 260 kB): what is remembered is cut here."""

LONGEST_READ_CHARACTERS = 16_384
"""So much of an error's words is read, to tell its class."""

SHORTEST_SECRET_KEY = 8
"""Servers without keys are given one like "none" or "ollama": shorter keys are not looked for in what a server says."""

# A text that was sent may come back in an error, quoted or not, and must not decide its class. What is quoted is taken out
# first; words that end a run or give a text up must be known phrases, at the start where texts might hold them.
_QUOTED = re.compile(r"""(?<!\w)(["'`])(?:\\.|[^\\])*?(?:\1(?!\w)|\\?$)""", re.DOTALL)
# LiteLLM puts the names of its own errors before the server's words, or before the whole body: as JSON or as Python shows it.
_NAME = r"(?:[\w.]+(?:(?<=error)|(?<=exception))[^\w.{\[]+(?:code: \d+ - )?)"
_START = f"^{_NAME}*"
_WRAPPING = re.compile(rf"^{_NAME}+(?:b')?(?=[{{\[])", re.IGNORECASE)
_MOST_WRAPPINGS = 4
# One string after the other, so that what stands inside a string is taken for no field.
_STRING_OR_FIELD = re.compile(
    r"""(["'])(?P<name>\w+)\1\s*:\s*(["'])(?P<value>(?:\\.|(?!\3)[^\\])*)(?:\3|\\?$)|(["'])(?:\\.|(?!\5)[^\\])*(?:\5|\\?$)""",
    re.DOTALL,
)
_WORDS_FIELDS = frozenset({"msg", "message", "error", "detail"})
_CODE_FIELDS = ("code", "type", "status")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)

_TOO_LONG = re.compile(
    r"context (length|size|window)|input after truncation exceeds|cannot be truncated further|too large|too long"
    r"|must have less than \d+ tokens|maximum (allowed )?batch size|larger than the max|exceeds? the (maximum|limit)"
    r"|max(imum)?[_ ](input|sequence|model)[_ ]len|too many (inputs|tokens in)|at most \d+ (items|characters)",
    re.IGNORECASE,
)
# Of one text, whatever the status: TEI says so with 413, llama.cpp with 500 and words of its "physical batch size".
_ONE_TOO_LONG = re.compile(
    r"must have less than \d+ tokens|too large to process|exceeds? (\w+ ){0,3}context (length|size|window)"
    r"|cannot be truncated further|context (length|size|window) (has been |was |is )?exceeded"
    r"|context length is (only )?\d|too long to fit into the model",
    re.IGNORECASE,
)
_TOO_MANY = re.compile(r"batch size|too many inputs|at most \d+ items", re.IGNORECASE)
_NOT_A_NUMBER = re.compile(
    r"\b(contains?|unsupported value:) [+-]?(nan|inf)\b|\bnan (or inf )?values?\b|\binf values\b|not JSON compliant",
    re.IGNORECASE,
)
# Ollama since 0.13.3 wraps every fault of its runner into a 400; the runner restarts and the request then succeeds.
_RUNNER_FAULT = re.compile(
    r"(: |unexpected )EOF\b|connection refused|connection reset|dial tcp|broken pipe|unexpected server status"
    r"|no slots available|runner (process )?(has )?(unexpectedly )?(terminated|stopped|is no longer)|wsarecv"
    r"|forcibly closed|context canceled|request canceled|i/o timeout|server busy|loading model",
    re.IGNORECASE,
)
_MODEL_MISSING = re.compile(
    _START + r"((the )?(requested )?model:? (\S+ )?(is |was )?(not found|does not exist|not supported)"
    r"|(no such|unknown|invalid) model\b)",
    re.IGNORECASE,
)
_OUR_FAULT = re.compile(
    _START + r"(invalid input type|missing request body|(th(e|is) )?(model |server )?(\S+ )?does not support embed"
    r"|((no|an?|the|your|or|missing|invalid|incorrect|expired) )*api[_ ]key\b"
    r"|model is required)",
    re.IGNORECASE,
)
_MISSING_CODE = "model_not_found"
_PROXY_HINT = " Where the proxy fails, correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or name the host in NO_PROXY."
_REFUSING_CODES = frozenset({_MISSING_CODE, "invalid_api_key"})

_FOR_NOW_CODES = frozenset({"rate_limit_exceeded", "rate_limit_error", "too_many_requests", "RESOURCE_EXHAUSTED"})
"""A rate limit, in the words of OpenAI, Anthropic, gateways and Google. Some send it with 400 or 403."""

_NO_MONEY = "insufficient_quota"
"""OpenAI's code for an account without money. Words tell nothing: Gemini says "exceeded your current quota, please check your
plan and billing details" of a limit per minute, Voyage speaks of its "billing page" where it allows 3 requests a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a request gave no vectors, for the caller (`error`) and for the controller (the rest)."""

    error: EraError
    outcome: Outcome
    retry_after_seconds: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whom we asked, for messages: the URL without credentials, the model, how the model is fetched (may be empty).

    `key` is ours, and is taken out of what the server says. `proxy`: the URL of one that stands between, without credentials.
    """

    url: str
    model: str
    missing_model_hint: str = ""
    key: str = field(default="", repr=False)
    proxy: str = ""

    def __str__(self) -> str:
        return f"{self.url} (model {self.model}{', through the proxy ' + self.proxy if self.proxy else ''})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What an error body says: `text` in at most 200 characters of one line, and the codes and types it names.

    `words` are the text without what it quotes: a class is told by them, never by a text that the server gives back.
    """

    text: str
    words: str = ""
    codes: frozenset[str] = frozenset()

    @property
    def names_a_missing_model(self) -> bool:
        """Whether it says, in a server's usual words or by code, that there is no such model."""
        return _MISSING_CODE in self.codes or _MODEL_MISSING.search(self.words) is not None


def classify(
    asked: Asked, status: int, headers: Mapping[str, str], body: bytes, received_at: datetime | None = None
) -> Verdict:
    """The verdict on an answer that is not 2xx. `headers` must compare names without case, as httpx's do.

    `received_at`, by the clock of this machine, is what a date is compared with where the answer has none of its own.
    """
    said = said_in(body, asked.key)
    location = excerpt(without_secrets(headers.get("location", "")), asked.key) if 300 <= status < 400 else ""
    words = f"it points to {location}" if location else said.text
    answer = f"{asked} answered {status}{': ' + words if words else ''}"
    wait = retry_after_seconds(headers, received_at)
    limited = _is_rate_limit(status, said, back="retry-after" in headers or "retry-after-ms" in headers)
    kind = EndpointBusy if limited else _kind(status, said)
    if kind is EndpointRefused:
        return Verdict(error=EndpointRefused(f"{answer}.", hint=_hint(asked, status, said)), outcome=Outcome.TEXTS)
    if kind is EndpointBusy:
        outcome = Outcome.RATE_LIMITED if limited else Outcome.OVERLOADED
        error = EndpointBusy(f"{answer}.", retry_after_seconds=wait)
        return Verdict(error=error, outcome=outcome, retry_after_seconds=wait, headers=headers)
    if kind is EndpointUnavailable:
        return Verdict(error=EndpointUnavailable(f"{answer}."), outcome=Outcome.FAILED, retry_after_seconds=wait)
    too_many = kind is TextsTooLarge and (status == 413 or _TOO_MANY.search(said.words) is not None)
    outcome = Outcome.TOO_LARGE if too_many and not _ONE_TOO_LONG.search(said.words) else Outcome.TEXTS
    return Verdict(error=kind(f"{answer}."), outcome=outcome)


def _is_rate_limit(status: int, said: Said, *, back: bool) -> bool:
    """`back`: it says when to come back, as no refusal for good does."""
    if status == 429:
        return back or _NO_MONEY not in said.codes
    return status in (400, 403) and (back or not _FOR_NOW_CODES.isdisjoint(said.codes))


def _kind(status: int, said: Said) -> type[EraError]:
    if status == 503:
        return EndpointBusy
    if status == 413:
        return TextsTooLarge
    if status in (408, 409, 424, 425, 499):
        return EndpointUnavailable
    if status in (400, 422) or status >= 500:
        return _kind_by_words(status, said)
    return EndpointRefused


def _kind_by_words(status: int, said: Said) -> type[EraError]:
    if _NOT_A_NUMBER.search(said.words):
        return BadVectors
    if _RUNNER_FAULT.search(said.words):
        return EndpointUnavailable
    if (_TOO_LONG if status < 500 else _ONE_TOO_LONG).search(said.words):
        return TextsTooLarge
    if status == 501 or said.names_a_missing_model:
        return EndpointRefused
    if status >= 500:
        return EndpointUnavailable
    return EndpointRefused if _REFUSING_CODES & said.codes or _OUR_FAULT.search(said.words) else TextsRejected


def _hint(asked: Asked, status: int, said: Said) -> str:
    if 300 <= status < 400:
        return "Redirects are not followed: set ERA_EMBEDDING_URLS to where it points, without /api/embed."
    if status == 407:
        return _PROXY_HINT.strip()
    if status in (401, 403):
        return "Set ERA_EMBEDDING_API_KEY to a key this server accepts." + (_PROXY_HINT if asked.proxy else "")
    if said.names_a_missing_model or (status == 404 and asked.missing_model_hint and "model" in said.text.lower()):
        return asked.missing_model_hint or "Correct ERA_EMBEDDING_MODEL."
    if status in (402, 429):
        return "Its account has no quota left."
    return "Check ERA_EMBEDDING_URLS, ERA_EMBEDDING_PROVIDER and ERA_EMBEDDING_MODEL."


def unreachable(asked: Asked, reason: str) -> Verdict:
    """The verdict on a connection that failed or broke off."""
    hint = "Start the server, or correct ERA_EMBEDDING_URLS." + (_PROXY_HINT if asked.proxy else "")
    if "[SSL: " in reason:
        hint = "Name certificates to trust in SSL_CERT_FILE, or http:// in ERA_EMBEDDING_URLS for a server without TLS."
    return _unavailable(f"{asked} cannot be reached: {excerpt(reason, asked.key)}.", hint)


def not_connected(asked: Asked, seconds: float) -> Verdict:
    """The verdict on a connection that was not made within `seconds`: a host that is off, or a firewall that is silent."""
    hint = "Check that the host in ERA_EMBEDDING_URLS is up and no firewall is between."
    return _unavailable(f"{asked} took no connection within {seconds:g} s.", hint, Outcome.TIMED_OUT)


def timed_out(asked: Asked, seconds: float) -> Verdict:
    """The verdict on a request without an answer within `seconds`."""
    hint = "Raise ERA_REQUEST_TIMEOUT_SECONDS if the server is only slow."
    return _unavailable(f"{asked} gave no answer within {seconds:g} s.", hint, Outcome.TIMED_OUT)


def _unavailable(message: str, hint: str = "", outcome: Outcome = Outcome.FAILED) -> Verdict:
    return Verdict(error=EndpointUnavailable(message, hint=hint), outcome=outcome)


def json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object of a 2xx answer, None where it is none.

    NaN, Infinity and 1e999 are no JSON but are read as numbers: which text's vector holds them is then told.
    """
    try:
        parsed = _json(body)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return json.loads(body)
        except RecursionError:
            raise ValueError("nested too deep") from None


def unreadable(asked: Asked, body: bytes) -> Verdict:
    """The verdict on a 2xx answer that is no JSON object: empty, broken off, or somebody else's page."""
    text = excerpt(body[:LONGEST_READ_CHARACTERS].decode("utf-8", "replace"), asked.key)
    return _unavailable(f"{asked} answered no JSON object: {text}." if text else f"{asked} answered nothing.")


def oversized(asked: Asked, most_bytes: int) -> Verdict:
    """The verdict on a 2xx answer that is longer than any right one."""
    message = f"{asked} answered more than {most_bytes} bytes, which no right answer needs."
    return _unavailable(message, "Check what answers at ERA_EMBEDDING_URLS.")


def said_in(body: bytes, key: str = "") -> Said:
    """What an error body says, without our key; the end of a long one is missing."""
    try:
        parsed = _json(body)
    except ValueError:
        text = body.decode("utf-8", "replace")
        words, codes = _fields(text) if text.lstrip().startswith(("{", "[")) else ("", frozenset[str]())
        return _said(words or text, codes, key)
    return said_of(parsed, key)


def said_of(parsed: Any, key: str = "") -> Said:
    """What a parsed error says, in any of the shapes servers use; only its words where the shape is unknown."""
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]  # Gemini answers a list of one
    if not isinstance(parsed, dict):
        return _said(_text(parsed), (), key)
    named = [parsed[name] for name in ("error", "detail", "message") if name in parsed]
    found = next(filter(None, named), "" if named else parsed)
    if isinstance(found, list) and isinstance(found[0], dict):
        found = found[0].get("msg") or found[0]  # FastAPI's validation errors; the rest echoes the input
    holders = [each for each in (found, parsed) if isinstance(each, dict)]
    codes = [code for each in holders for name in _CODE_FIELDS if isinstance(code := each.get(name), str) and code]
    if isinstance(found, dict):
        shown = ", ".join(_text(found[name]) for name in ("message", "code") if found.get(name))
        found = shown or found
    return _said(_text(found), codes, key)


_BOUNDED = reprlib.Repr()  # as str, but neither as deep nor as long as a server likes
_BOUNDED.maxstring = LONGEST_READ_CHARACTERS


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return _BOUNDED.repr(value) if value else ""


def _said(text: str, codes: Iterable[str], key: str) -> Said:
    text = text[:LONGEST_READ_CHARACTERS]
    inner, inner_codes = _unwrapped(text)
    words = excerpt(_QUOTED.sub("_", inner))
    return Said(text=excerpt(text, key), words=words, codes=inner_codes.union(codes))


def _unwrapped(text: str) -> tuple[str, frozenset[str]]:
    """The words and codes of the error that others are wrapped around."""
    codes = frozenset[str]()
    for _ in range(_MOST_WRAPPINGS):
        wrapping = _WRAPPING.match(text)
        words, more = _fields(text[wrapping.end() :]) if wrapping else ("", codes)
        if not words:
            break
        text, codes = words, codes | more
    return text, codes


def _fields(text: str) -> tuple[str, frozenset[str]]:
    """The words and codes of an error that is written as JSON or Python, whole or broken off."""
    found = [(each["name"], each["value"]) for each in _STRING_OR_FIELD.finditer(text) if each["name"]]
    words = next((value for name, value in found if name in _WORDS_FIELDS and value), "")
    codes = frozenset(value for name, value in found if name in _CODE_FIELDS and value)
    return _ESCAPE.sub(_unescaped, words), codes


def _unescaped(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else " " if escape[2] in "nrt" else escape[2]


def excerpt(text: str, key: str = "") -> str:
    """The start of a text on one line, without a final full stop, and without our key: some servers name the one they refuse.

    What is no printable character becomes a blank: PostgreSQL stores no NUL, and a terminal obeys an escape sequence.
    """
    # A key that is quoted within a quotation has backslashes before, or instead of, some of its characters.
    letters = key.strip().replace("\\", "")
    if len(letters) >= SHORTEST_SECRET_KEY:
        text = re.sub(r"\\*".join(map(re.escape, letters)), "***", text)
    start = text[: 4 * LONGEST_EXCERPT_CHARACTERS]
    line = " ".join("".join(each if each.isprintable() else " " for each in start).split())
    if len(line) > LONGEST_EXCERPT_CHARACTERS:
        line = line[: LONGEST_EXCERPT_CHARACTERS - 3] + "..."
    return line.rstrip(".") if not line.endswith("...") else line


def retry_after_seconds(headers: Mapping[str, str], received_at: datetime | None = None) -> float | None:
    """How long the server asks to wait; None where it does not say, or not legibly.

    Read from `retry-after-ms`, or from `Retry-After` as seconds, an HTTP date, or seconds since 1970. A moment is taken
    relative to the answer's own `Date`, so that the two machines may have different clocks; to `received_at` where it has
    none. Of a header that came twice the first counts.
    """
    now = _date(headers.get("date", "")) or received_at
    value, milliseconds = headers.get("retry-after", "").strip(), _seconds(headers.get("retry-after-ms", ""))
    seconds = _seconds(value) if milliseconds is None else milliseconds / 1000.0
    if seconds is not None and seconds <= LONGEST_RESET_SECONDS:
        return seconds
    if now is None:
        return None
    until = _date(value)
    left = seconds_until(seconds, now) if seconds is not None else (until - now).total_seconds() if until else None
    return None if left is None else max(0.0, left)


def _seconds(value: str) -> float | None:
    try:
        number = float(value.partition(",")[0])
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _date(value: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return parsed if parsed.tzinfo is not None else None
