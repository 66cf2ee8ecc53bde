"""What a simulated server reads and writes: the bodies of Ollama's `/api/embed` and of OpenAI's `/v1/embeddings`.

Pure: bytes in, an `Ask` or a `Reply` out. The words of the errors are Ollama's own, for clients judge by them. When an
answer is due is `simulation.physics`, which connection it goes to `simulation.server`.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from era_dagster.simulation.spec import Garbage
from era_dagster.simulation.vectors import VectorPool, cut, pool_of

Dialect = Literal["ollama", "openai"]

NOT_A_NUMBER = "embedding contains NaN or Inf values"
POISONED = "failed to tokenize the input"
CHARACTERS_A_TOKEN = 4
_DURATION = re.compile(r"[-+]?(0|((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+)")
# Go's names of what JSON holds, and of the fields of each request with what they are read into.
_GO_VALUES = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}
_GO_MAP = "map[string]interface {}"
_GO_FIELDS: Mapping[Dialect, Mapping[str, tuple[type, str]]] = {
    "ollama": {
        "model": (str, "string"),
        "truncate": (bool, "bool"),
        "dimensions": (int, "int"),
        "options": (dict, _GO_MAP),
    },
    "openai": {"model": (str, "string"), "dimensions": (int, "int"), "encoding_format": (str, "string")},
}
_GO_UNREADABLE_DURATIONS = {bool: "bool", list: "[]interface {}", dict: _GO_MAP}
_KINDS = {400: "invalid_request_error", 401: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One HTTP answer. `cut`: only so many bytes of the body are sent, then the connection is broken off."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    content_type: str = "application/json; charset=utf-8"
    cut: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request for vectors. `tokens` holds each text's tokens, at four characters a token and at least 1."""

    dialect: Dialect
    texts: Sequence[str]
    tokens: Sequence[int]
    truncate: bool
    dimensions: int | None
    base64: bool


def json_reply(status: int, content: Any) -> Reply:
    """A JSON answer."""
    return Reply(status=status, body=orjson.dumps(content))


def error_reply(dialect: Dialect, status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    """An error in the form of its dialect."""
    content: dict[str, Any] = {"error": message}
    if dialect == "openai":
        kind = _KINDS.get(status, "api_error")
        content = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return Reply(status=status, body=orjson.dumps(content), headers=headers or {})


def read_ask(dialect: Dialect, body: bytes, model: str) -> Ask | Reply:
    """The request, or the refusal that needs no work: bad JSON, another model, wrong types."""
    if not body:
        return error_reply(dialect, 400, "missing request body")
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return error_reply(dialect, 400, f"invalid JSON: {error}")
    given = {} if given is None else given
    unreadable = _unreadable(dialect, given)
    if unreadable:
        return error_reply(dialect, 400, unreadable)
    asked = given.get("model")
    if not asked:
        return error_reply(dialect, 400, "model is required")
    if asked.removesuffix(":latest") != model.removesuffix(":latest"):
        return error_reply(dialect, 404, f'model "{asked}" not found, try pulling it first')
    texts = given.get("input")
    if dialect == "openai" and texts in (None, []):
        return error_reply(dialect, 400, "invalid input")
    if isinstance(texts, str):
        texts = [texts] if texts or dialect == "openai" else []
    texts = [] if texts is None else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return error_reply(dialect, 400, "invalid input type")
    dimensions, encoding = given.get("dimensions"), given.get("encoding_format") or "float"
    if dialect == "openai" and encoding.lower() not in ("float", "base64"):
        words = f"Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64']."
        return error_reply(dialect, 400, words)
    return Ask(
        dialect=dialect,
        texts=texts,
        tokens=[-(-len(text) // CHARACTERS_A_TOKEN) or 1 for text in texts],
        # OpenAI's route never cuts a text: what is too long is refused.
        truncate=dialect == "ollama" and given.get("truncate", True) is not False,
        dimensions=dimensions if dimensions and dimensions > 0 else None,
        base64=dialect == "openai" and encoding.lower() == "base64",
    )


def _unreadable(dialect: Dialect, given: Any) -> str | None:
    """Why Go cannot read this JSON into its record, in Go's words; null is no value, and fields it does not know are left out.

    A duration reads itself, and its error comes before that of any other field.
    """
    if not isinstance(given, dict):
        package = "api" if dialect == "ollama" else "openai"
        return f"json: cannot unmarshal {_GO_VALUES[type(given)]} into Go value of type {package}.EmbedRequest"
    keep = given.get("keep_alive")
    if type(keep) in _GO_UNREADABLE_DURATIONS:
        return f"Unsupported type: '{_GO_UNREADABLE_DURATIONS[type(keep)]}'"
    if isinstance(keep, str) and not _DURATION.fullmatch(keep):
        bare = re.fullmatch(r"[-+]?\d+\.?\d*", keep)
        return f'time: {"missing unit in" if bare else "invalid"} duration "{keep}"'
    for name, value in given.items():
        kind, go_kind = _GO_FIELDS[dialect].get(name, (type(value), ""))
        if value is not None and type(value) is not kind:
            found = f"number {value}" if type(value) is float and kind is int else _GO_VALUES[type(value)]
            return f"json: cannot unmarshal {found} into Go struct field EmbedRequest.{name} of type {go_kind}"
    return None


def answer(ask: Ask, pool: VectorPool, *, model: str, tokens: int, seconds: float) -> Reply:
    """The vectors of all texts, cut to the dimensions asked for; `tokens` were read, in `seconds`."""
    most = ask.dimensions or pool.dimension
    if most >= pool.dimension and not ask.base64:
        rows = [pool.encoded(text) for text in ask.texts]
    else:
        vectors = [pool.vector(text) for text in ask.texts]
        if most < pool.dimension:
            vectors = [cut(vector, most) for vector in vectors]
        rows = [
            b'"%b"' % base64.b64encode(vector.tobytes()) if ask.base64 else orjson.dumps(list(vector))
            for vector in vectors
        ]
    return Reply(status=200, body=_body(ask.dialect, rows, model, tokens, seconds))


def _body(dialect: Dialect, rows: Sequence[bytes], model: str, tokens: int, seconds: float) -> bytes:
    name = orjson.dumps(model)
    if dialect == "openai":
        data = b",".join(
            [b'{"object":"embedding","embedding":%b,"index":%d}' % (row, index) for index, row in enumerate(rows)]
        )
        return b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
            data,
            name,
            tokens,
            tokens,
        )
    counts = b"" if not tokens else b',"prompt_eval_count":%d' % tokens
    return b'{"model":%b,"embeddings":[%b],"total_duration":%d,"load_duration":%d%b}' % (
        name,
        b",".join(rows),
        int(seconds * 1e9),
        1_000_000,
        counts,
    )


def spoilt(ask: Ask, pool: VectorPool, kind: Garbage, *, model: str, tokens: int) -> Reply:
    """A 200 that is no good: what broken servers and other people's pages answer."""
    if kind == "html":
        page = b"<!DOCTYPE html><html><body><h1>It works!</h1></body></html>"
        return Reply(status=200, body=page, content_type="text/html; charset=utf-8")
    if kind == "nothing":
        return Reply(status=200, body=b"")
    rows = [pool.encoded(text) for text in ask.texts]
    if kind == "wrong_count":
        # One missing of several, and one too many for a single text.
        rows = rows[:-1] if len(rows) > 1 else rows * 2
    elif kind == "wrong_dimension":
        rows = [pool_of(max(64, pool.dimension // 2)).encoded(text) for text in ask.texts]
    elif kind in ("nan", "null", "zero"):
        number = {"nan": b"NaN", "null": b"null", "zero": b"0"}[kind]
        rows[-1:] = [b"[" + b",".join([number] * pool.dimension) + b"]"]
    body = _body(ask.dialect, rows, model, tokens, 0.0)
    return Reply(status=200, body=body, cut=len(body) // 2 if kind == "broken_off" else None)
