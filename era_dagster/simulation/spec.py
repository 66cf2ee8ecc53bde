"""What a simulated embedding server is like: its speed, its limits, its faults, and how they change with time.

Plain frozen records with their reading from JSON; how they act is `simulation.physics`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from era_dagster.domain.errors import ConfigurationError

Discipline = Literal["texts", "requests", "batching"]
RetryAfterForm = Literal["none", "seconds", "date", "milliseconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """One simulated server. Times in seconds, sizes in texts and tokens; a share is a probability from 0 to 1.

    Work: `discipline` says who takes a slot. `texts`: each text by itself, first come first served (Ollama, which has
    one slot for an embedding model). `requests`: a whole request. `batching`: one engine that takes everything waiting,
    up to `step_tokens`, in one step of `step_seconds` plus the work. A text takes `seconds_per_text` plus its tokens
    times `seconds_per_token`; a request `seconds_per_request` on top. `jitter` is the coefficient of variation of the
    service time (log-normal), `tail_share` of the requests take `tail_factor` times as long. With more than `knee`
    texts inside, all work takes `1 + inflation * (texts - knee) / knee` times as long.

    Refusals: more than `queue_limit` waiting requests: 503. A bucket per second of requests, texts or tokens that holds
    `burst_seconds` of its rate: 429, with `retry_after` in the given form, and `x-ratelimit-*` headers if `announce`.
    More than `most_texts` in a request: 413. A text over `context_tokens`: 400.

    Faults: shares of 500, 503, reset connections and stalls of `stall_seconds`. The first request waits
    `cold_start_seconds`. While `down`, connections are refused; while `frozen`, nothing is worked on.
    `rtt_seconds` is the way there and back.
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
    requests_per_second: float | None = None
    texts_per_second: float | None = None
    tokens_per_second: float | None = None
    burst_seconds: float = 1.0
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

    def __post_init__(self) -> None:
        if self.slots < 1 or self.step_tokens < 1:
            raise ConfigurationError("A simulated server needs at least one slot and one token a step.")
        if min(self.seconds_per_text, self.seconds_per_token, self.seconds_per_request, self.step_seconds) < 0:
            raise ConfigurationError("The times of a simulated server must not be negative.")

    def work_seconds(self, tokens: Sequence[int]) -> float:
        """Undisturbed work on the texts of one request, without what the request itself costs."""
        return len(tokens) * self.seconds_per_text + sum(tokens) * self.seconds_per_token

    def texts_per_second_limit(self, tokens: float, *, batch: int = 64) -> float:
        """The most texts of `tokens` tokens a second that it can give at all, asked in batches of `batch` texts."""
        if self.down or self.frozen:
            return 0.0
        batch = min(batch, self.most_texts or batch)
        each = self.seconds_per_text + tokens * self.seconds_per_token + self.seconds_per_request / batch
        each *= 1.0 + self.tail_share * (self.tail_factor - 1.0)
        if self.discipline == "batching":
            each += self.step_seconds * tokens / self.step_tokens
            limits = [1.0 / each]
        else:
            limits = [self.slots / each]
        if self.requests_per_second is not None:
            limits.append(self.requests_per_second * batch)
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
            total += max(0.0, stop - max(begin, start)) * spec.texts_per_second_limit(tokens)
        return total


def course_from(data: Mapping[str, Any]) -> Course:
    """Read {"slots": 4, ..., "changes": [[10, {"slots": 1}]]}. Raises `ConfigurationError` for an unknown field."""
    given = dict(data)
    changes = given.pop("changes", [])
    known = {field.name for field in fields(ServerSpec)}
    for names in (given, *(change for _, change in changes)):
        unknown = set(names) - known
        if unknown:
            raise ConfigurationError(f"A simulated server has no {', '.join(sorted(unknown))}.")
    return Course(spec=ServerSpec(**given), changes=tuple((float(at), change) for at, change in changes))
