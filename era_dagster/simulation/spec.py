"""What a simulated embedding server is like: its speed, its limits, its faults, and how they change with time.

Plain frozen records with their reading from JSON; how they act is `simulation.physics`.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from era_dagster.domain.errors import ConfigurationError

Discipline = Literal["texts", "requests", "batching"]
RetryAfterForm = Literal["none", "seconds", "date", "milliseconds"]
RefusalStatus = Literal[503, 429]
Garbage = Literal["html", "nothing", "broken_off", "wrong_count", "wrong_dimension", "nan", "null", "zero"]
EVERY_GARBAGE: tuple[Garbage, ...] = get_args(Garbage)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """One simulated server. Times in seconds, sizes in texts and tokens; a share is a probability from 0 to 1.

    Work: `discipline` says who takes a slot. `texts`: each text by itself, first come first served (Ollama, which has
    one slot for an embedding model). `requests`: a whole request. `batching`: one engine that takes everything waiting,
    up to `step_tokens`, in one step of `step_seconds` plus the work. A text takes `seconds_per_text` plus its tokens
    times `seconds_per_token`; a request `seconds_per_request` on top. `jitter` is the coefficient of variation of the
    service time (log-normal), `tail_share` of the requests take `tail_factor` times as long. With more than `knee`
    texts inside, all work takes `1 + inflation * (texts - knee) / knee` times as long.

    Refusals: more than `queue_limit` waiting requests, or more than `most_inside` texts waiting and being worked on:
    `full_status`, which is 503, or 429 as from Infinity and TEI. A bucket per second of requests, texts or tokens that holds
    `burst_seconds` of its rate, or one that is filled at the beginning of every `window_seconds` with what they give:
    `rate_status`, which is 429, or 503 as from nginx, with `retry_after` in the given form, and `x-ratelimit-*` headers if
    `announce`. More than `most_texts` in a request: 413. A text over `context_tokens`: 400.

    Faults: shares of 500, 503, reset connections and stalls of `stall_seconds`. The first request waits
    `cold_start_seconds`. When it goes `down`, requests inside break off and new ones are refused, and it comes back
    cold. While `frozen`, nothing is begun: a text, a whole request or a step that is being worked on ends in its time, and
    what waits is worked on afterwards, in its order. `rtt_seconds` is the way there and back.

    Changes: new speed and `slots` are for what arrives from then on. What waits then keeps the slot and the time it was
    given on arrival, unless it is `frozen`; `batching` works with the new speed from its next step on.

    Contents, which only a front that sees texts can spoil: a text that contains `poison_marker` fails its request with
    400, one that contains `nan_marker` with 400 for a NaN (an empty marker hits nothing); `share_garbage` of the good
    answers come as one of the kinds in `garbage`.
    """

    discipline: Discipline = "texts"
    slots: int = 1
    seconds_per_text: float = 0.02
    seconds_per_token: float = 0.0
    seconds_per_request: float = 0.0
    step_seconds: float = 0.0
    step_tokens: int = 16384
    jitter: float = 0.0
    tail_share: float = 0.0
    tail_factor: float = 10.0
    knee: int | None = None
    inflation: float = 0.0
    rtt_seconds: float = 0.0
    cold_start_seconds: float = 0.0
    queue_limit: int | None = None
    most_inside: int | None = None
    full_status: RefusalStatus = 503
    requests_per_second: float | None = None
    texts_per_second: float | None = None
    tokens_per_second: float | None = None
    burst_seconds: float = 1.0
    window_seconds: float | None = None
    rate_status: RefusalStatus = 429
    retry_after: RetryAfterForm = "none"
    announce: bool = False
    most_texts: int | None = None
    context_tokens: int | None = None
    share_500: float = 0.0
    share_503: float = 0.0
    share_reset: float = 0.0
    share_stall: float = 0.0
    stall_seconds: float = 8.0
    down: bool = False
    frozen: bool = False
    poison_marker: str = "POISON"
    nan_marker: str = "NOTANUMBER"
    share_garbage: float = 0.0
    garbage: tuple[Garbage, ...] = EVERY_GARBAGE

    def __post_init__(self) -> None:
        least = [self.slots, self.step_tokens, 1 if self.knee is None else self.knee]
        if min(*least, 1 if self.most_inside is None else self.most_inside) < 1:
            raise ConfigurationError("slots, step_tokens, knee and most_inside of a simulated server are at least 1.")
        for name, value in _values(self):
            if name.endswith(("_seconds", "_per_text", "_per_token", "_per_request")) and (value or 0.0) < 0:
                raise ConfigurationError(f"{name} of a simulated server must not be negative.")
            if (name.endswith("_per_second") or name == "window_seconds") and value is not None and value <= 0:
                raise ConfigurationError(f"{name} of a simulated server must be more than 0.")
            if value is not None and (name.startswith("share_") or name == "tail_share") and not 0.0 <= value <= 1.0:
                raise ConfigurationError(f"{name} of a simulated server is a share from 0 to 1.")

    def most_at_once(self, rate: float) -> float:
        """How much of a rate may be used up at once."""
        return max(1.0, rate * (self.burst_seconds if self.window_seconds is None else self.window_seconds))

    def work_seconds(self, tokens: Sequence[int]) -> float:
        """Undisturbed work on the texts of one request, without what the request itself costs."""
        return len(tokens) * self.seconds_per_text + sum(tokens) * self.seconds_per_token

    def texts_per_second_limit(self, tokens: float, *, batch: int = 64) -> float:
        """The most texts of `tokens` tokens a second that it can give at all, asked in batches of `batch` texts.

        Infinite where neither work nor a rate bounds it.
        """
        if self.down or self.frozen:
            return 0.0
        inside = self.most_inside or math.inf
        most = min(batch, self.most_texts or batch, inside)
        each = self.seconds_per_text + tokens * self.seconds_per_token + self.seconds_per_request / most
        each *= 1.0 + self.tail_share * (self.tail_factor - 1.0)
        if self.discipline == "batching":
            each += self.step_seconds * tokens / min(self.step_tokens, inside * tokens)
            limits = [1.0 / each if each else math.inf]
        else:
            limits = [min(self.slots, inside) / each if each else math.inf]
        if self.requests_per_second is not None:
            limits.append(self.requests_per_second * most)
        if self.texts_per_second is not None:
            limits.append(self.texts_per_second)
        if self.tokens_per_second is not None:
            limits.append(self.tokens_per_second / tokens)
        return min(limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A server whose spec changes: `changes` are (seconds since its start, fields) in order of time."""

    spec: ServerSpec
    changes: tuple[tuple[float, Mapping[str, Any]], ...] = ()

    def phases(self, until: float) -> list[tuple[float, float, ServerSpec]]:
        """(start, end, spec) of each stretch up to `until`."""
        found: list[tuple[float, float, ServerSpec]] = []
        start, spec = 0.0, self.spec
        for at, change in self.changes:
            if at >= until:
                break
            if at > start:
                found.append((start, at, spec))
            start, spec = at, replace(spec, **change)
        found.append((start, until, spec))
        return found

    def texts_limit(self, start: float, end: float, tokens: float) -> float:
        """The most texts of `tokens` tokens it can give between two times."""
        total = 0.0
        for begin, stop, spec in self.phases(end):
            if stop > max(begin, start):
                total += (stop - max(begin, start)) * spec.texts_per_second_limit(tokens)
        return total


def course_from(data: Mapping[str, Any]) -> Course:
    """Read {"slots": 4, ..., "changes": [[10, {"slots": 1}]]}.

    Raises `ConfigurationError` for an unknown field, a value of the wrong kind, and changes out of order.
    """
    given = dict(data)
    changes = given.pop("changes", [])
    try:
        course = Course(
            spec=ServerSpec(**_typed(given)),
            changes=tuple((_seconds(at), _typed(change)) for at, change in changes),
        )
    except (TypeError, ValueError) as error:
        raise ConfigurationError("changes of a simulated server are a list of [seconds, {field: value}].") from error
    times = [at for at, _ in course.changes]
    if times != sorted(times):
        raise ConfigurationError("changes of a simulated server must be in order of time.")
    course.phases(math.inf)  # every stretch must be a possible server
    return course


def value_from_words(words: str) -> Any:
    """A field's value as typed on a command line: JSON where it is JSON (4, true, null), else the words themselves."""
    try:
        return json.loads(words)
    except json.JSONDecodeError:
        return words


def _typed(given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(given) - set(_hints())
    if unknown:
        raise ConfigurationError(
            f"A simulated server has no {', '.join(sorted(unknown))}.", hint=f"It has {', '.join(_hints())}."
        )
    return {name: _fitting(name, value) for name, value in given.items()}


def _fitting(name: str, value: Any) -> Any:
    """The value as its field wants it; raises `ConfigurationError` where it cannot be meant."""
    hint = _hints()[name]
    if name == "garbage":
        kinds = value.split(",") if isinstance(value, str) else value
        if isinstance(kinds, list | tuple) and kinds and all(kind in EVERY_GARBAGE for kind in kinds):
            return tuple(kinds)
        raise ConfigurationError(f"garbage of a simulated server is some of {', '.join(EVERY_GARBAGE)}, not {value!r}.")
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        if value in choices and type(value) is type(choices[0]):
            return value
        raise ConfigurationError(
            f"{name} of a simulated server is one of {', '.join(map(str, choices))}, not {value!r}."
        )
    if type(None) in choices and value is None:
        return None
    kind = choices[0] if choices else hint
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is kind and kind is not float:
        return value
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "words"}[kind]
    raise ConfigurationError(f"{name} of a simulated server is {words}, not {value!r}.")


def _seconds(at: Any) -> float:
    if type(at) in (int, float) and math.isfinite(at) and at >= 0:
        return float(at)
    raise ConfigurationError(f"A change of a simulated server comes at a number of seconds, not {at!r}.")


def _values(spec: ServerSpec) -> Iterator[tuple[str, Any]]:
    for name in _hints():
        yield name, getattr(spec, name)


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(ServerSpec)
