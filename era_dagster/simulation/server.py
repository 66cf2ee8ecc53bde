"""A simulated embedding server without its sockets: routes, counters, and the physics on the clock of the event loop.

`simulation.http` hands it requests and sends what it answers. Its own page, `/api/simulation`, tells what it has counted
and what it could have given at most, and takes a new course, with which everything starts anew.
"""

import asyncio
import hashlib
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from email.utils import formatdate
from random import Random
from typing import Any, Protocol
from urllib.parse import parse_qs

import orjson

from era_dagster.domain.errors import ConfigurationError
from era_dagster.simulation.dialects import (
    NOT_A_NUMBER,
    POISONED,
    Ask,
    Dialect,
    Reply,
    answer,
    error_reply,
    json_reply,
    read_ask,
    spoilt,
)
from era_dagster.simulation.physics import TOO_LONG, Finished, ServerPhysics
from era_dagster.simulation.spec import Course, course_from
from era_dagster.simulation.vectors import pool_of

VERSION = "0.32.15"
OWN_PAGE = "/api/simulation"
ANSWERS_KEPT = 100_000
_ROUTES: dict[str, Dialect] = {"/api/embed": "ollama", "/v1/embeddings": "openai"}


class Caller(Protocol):
    """The connection a request came on."""

    @property
    def is_open(self) -> bool:
        """Whether anybody still listens."""
        ...

    def send(self, reply: Reply) -> None:
        """Answer the request."""
        ...

    def reset(self) -> None:
        """Break the connection off."""
        ...


@dataclass(slots=True, kw_only=True)
class _Waiting:
    caller: Caller
    ask: Ask
    tokens: int
    arrived_at: float
    verdict: Reply | None = None


class SimulatedServer:
    """One model behind Ollama's routes and OpenAI's. Must be made inside a running event loop.

    A text that spoils its request does so when its turn comes: the texts before it have been worked on by then.
    """

    def __init__(
        self,
        course: Course,
        *,
        model: str = "simulated",
        dimension: int = 768,
        api_key: str | None = None,
        seed: int = 0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._model = model
        self._pool = pool_of(dimension)
        self._authorization = None if api_key is None else f"Bearer {api_key}"
        self._seed = seed
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._start(course)

    def _start(self, course: Course) -> None:
        cut_off, self._waiting = self._waiting, {}
        self._course = course
        self._random = Random(self._seed)
        self._physics = ServerPhysics(course, random=Random(self._seed + 1))
        self._started_at = self._loop.time()
        self._cpu_at_start = time.process_time()
        self._number = 0
        self._statuses: Counter[int] = Counter()
        self._batches: Counter[int] = Counter()
        self._answers: deque[tuple[float, float, int]] = deque(maxlen=ANSWERS_KEPT)
        self._most_in_flight = 0
        self._texts_asked = self._texts_answered = self._tokens_asked = self._tokens_answered = 0
        for waiting in cut_off.values():
            waiting.caller.reset()
        self._set_timer()

    def handle(self, caller: Caller, method: str, target: str, authorization: str | None, body: bytes) -> None:
        """One request; its answer goes to `caller`, now or later."""
        path, _, query = target.partition("?")
        if path == OWN_PAGE:
            caller.send(self._own_page(method, query, body))
            return
        self._move()
        if self._physics.spec.down:
            caller.reset()
            return
        dialect = _ROUTES.get(path)
        if self._authorization is not None and authorization != self._authorization:
            caller.send(error_reply(dialect or "ollama", 401, "unauthorized"))
        elif dialect is None:
            caller.send(self._other_page(method, path, body))
        elif method != "POST":
            caller.send(Reply(status=405, body=b"405 method not allowed", content_type="text/plain"))
        else:
            self._embed(caller, dialect, body)

    # --- embedding --------------------------------------------------------------------------------------------------

    def _embed(self, caller: Caller, dialect: Dialect, body: bytes) -> None:
        ask = read_ask(dialect, body, self._model)
        if isinstance(ask, Reply):
            self._statuses[ask.status] += 1
            caller.send(ask)
            return
        spec, tokens = self._physics.spec, list(ask.tokens)
        if spec.context_tokens is not None and ask.truncate:
            tokens = [min(each, spec.context_tokens) for each in tokens]
        now = self._now()
        self._number += 1
        self._batches[len(ask.texts)] += 1
        self._texts_asked += len(ask.texts)
        self._tokens_asked += sum(tokens)
        verdict = None
        place = self._spoiling(ask, spec.poison_marker)
        nan_place = self._spoiling(ask, spec.nan_marker)
        if place is not None and (nan_place is None or place <= nan_place):
            verdict = error_reply(dialect, 400, POISONED)
        elif nan_place is not None:
            place, verdict = nan_place, error_reply(dialect, 400, NOT_A_NUMBER)
        self._waiting[self._number] = _Waiting(
            caller=caller, ask=ask, tokens=sum(tokens), arrived_at=now, verdict=verdict
        )
        self._most_in_flight = max(self._most_in_flight, len(self._waiting))
        too_long = spec.context_tokens is not None and max(tokens, default=0) > spec.context_tokens
        self._physics.arrive(now, self._number, tokens if place is None or too_long else tokens[: place + 1])
        self._move()

    @staticmethod
    def _spoiling(ask: Ask, marker: str) -> int | None:
        if marker:
            for place, text in enumerate(ask.texts):
                if marker in text:
                    return place
        return None

    def _now(self) -> float:
        return self._loop.time() - self._started_at

    def _move(self) -> None:
        """Let the physics catch up with the clock, and answer what is due."""
        for finished in self._physics.advance(self._now()):
            waiting = self._waiting.pop(finished.request)
            self._finish(waiting, finished)
        self._set_timer()

    def _set_timer(self) -> None:
        due = self._started_at + self._physics.next_event_at
        if self._timer is not None:
            if self._timer.when() == due:
                return
            self._timer.cancel()
        self._timer = None if due == float("inf") else self._loop.call_at(due, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._move()

    def _finish(self, waiting: _Waiting, finished: Finished) -> None:
        if finished.status == 0:
            self._statuses[0] += 1
            waiting.caller.reset()
            return
        reply = self._reply(waiting, finished)
        self._statuses[reply.status] += 1
        if waiting.caller.is_open:
            waiting.caller.send(reply)

    def _reply(self, waiting: _Waiting, finished: Finished) -> Reply:
        ask, spec = waiting.ask, self._physics.spec
        if finished.status != 200:
            message = finished.message
            if message == TOO_LONG and ask.dialect == "openai":
                message = f"This model's maximum context length is {spec.context_tokens} tokens; {message}."
            return error_reply(ask.dialect, finished.status, message, _sent_headers(finished.headers))
        if waiting.verdict is not None:
            return waiting.verdict
        if not waiting.caller.is_open:
            return Reply(status=200, body=b"")  # nobody reads it: spare the encoding
        if spec.share_garbage and ask.texts and self._random.random() < spec.share_garbage:
            kind = self._random.choice(spec.garbage)
            return spoilt(ask, self._pool, kind, model=self._model, tokens=waiting.tokens)
        self._texts_answered += len(ask.texts)
        self._tokens_answered += waiting.tokens
        now = self._now()
        self._answers.append((waiting.arrived_at, now, len(ask.texts)))
        seconds = now - waiting.arrived_at
        good = answer(ask, self._pool, model=self._model, tokens=waiting.tokens, seconds=seconds)
        if not finished.headers:
            return good
        return Reply(status=good.status, body=good.body, headers=_sent_headers(finished.headers))

    # --- other pages ------------------------------------------------------------------------------------------------

    def _other_page(self, method: str, path: str, body: bytes) -> Reply:
        name = self._model if ":" in self._model else f"{self._model}:latest"
        digest = hashlib.sha256(f"{self._model} {self._pool.dimension}".encode()).hexdigest()
        details = {"family": "simulated", "format": "none", "parameter_size": "0", "quantization_level": "F32"}
        listed = {"name": name, "model": name, "digest": digest, "size": 0, "details": details}
        if (method, path) == ("POST", "/api/show"):
            return self._show(body, details)
        if method not in ("GET", "HEAD"):
            return Reply(status=404, body=b"404 page not found", content_type="text/plain")
        if path == "/":
            return Reply(status=200, body=b"Ollama is running", content_type="text/plain; charset=utf-8")
        if path == "/api/version":
            return json_reply(200, {"version": VERSION})
        if path == "/api/tags":
            return json_reply(200, {"models": [{**listed, "modified_at": "2026-01-01T00:00:00Z"}]})
        if path == "/api/ps":
            loaded = {**listed, "expires_at": "2099-01-01T00:00:00Z", "size_vram": 0}
            return json_reply(200, {"models": [loaded] if self._number else []})
        if path == "/v1/models":
            return json_reply(200, {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "library"}]})
        return Reply(status=404, body=b"404 page not found", content_type="text/plain")

    def _show(self, body: bytes, details: Mapping[str, str]) -> Reply:
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError:
            return error_reply("ollama", 400, "missing request body")
        asked = given.get("model", given.get("name")) if isinstance(given, dict) else None
        if str(asked).removesuffix(":latest") != self._model.removesuffix(":latest"):
            return error_reply("ollama", 404, f"model '{asked}' not found")
        info = {
            "general.architecture": "simulated",
            "simulated.embedding_length": self._pool.dimension,
            "simulated.context_length": self._physics.spec.context_tokens or 1_000_000,
        }
        return json_reply(200, {"details": details, "model_info": info, "capabilities": ["embedding"]})

    def _own_page(self, method: str, query: str, body: bytes) -> Reply:
        if method == "POST":
            try:
                given = orjson.loads(body)
                if not isinstance(given, dict):
                    raise ConfigurationError("A course is a JSON object.")
                self._start(course_from(given))
            except orjson.JSONDecodeError as error:
                return error_reply("ollama", 400, f"This is no JSON: {error}.")
            except ConfigurationError as error:
                return error_reply("ollama", 400, str(error))
        self._move()
        now = self._now()
        try:
            asked = {name: float(values[0]) for name, values in parse_qs(query).items()}
        except ValueError:
            return error_reply("ollama", 400, "start, end and tokens are numbers.")
        return json_reply(200, self._account(now, asked))

    def _account(self, now: float, asked: Mapping[str, float]) -> dict[str, Any]:
        """The page's content; `asked` may name `start`, `end` (seconds) and `tokens` (of a text) for the window."""
        answered, sent = self._texts_answered, self._texts_asked
        mean = self._tokens_answered / answered if answered else self._tokens_asked / sent if sent else 1.0
        tokens = max(asked.get("tokens", mean), 1.0)
        start, end = max(asked.get("start", 0.0), 0.0), asked.get("end", now)
        return {
            "model": self._model,
            "dimension": self._pool.dimension,
            "spec": asdict(self._physics.spec),
            "changes": [[at, dict(change)] for at, change in self._course.changes],
            "elapsed_seconds": now,
            "cpu_seconds": time.process_time() - self._cpu_at_start,
            "requests": self._statuses.total() + len(self._waiting),
            "requests_by_status": {str(status): count for status, count in sorted(self._statuses.items())},
            "requests_in_flight": len(self._waiting),
            "most_requests_in_flight": self._most_in_flight,
            "texts_asked": sent,
            "texts_answered": answered,
            "batch_sizes": {str(size): count for size, count in sorted(self._batches.items())},
            "mean_tokens": mean,
            "limit_texts_per_second": self._physics.spec.texts_per_second_limit(tokens),
            "window": {
                "start_seconds": start,
                "end_seconds": end,
                "texts_limit": self._course.texts_limit(start, end, tokens),
                "texts_delivered": self._delivered(start, end),
            },
        }

    def _delivered(self, start: float, end: float) -> float:
        """Texts answered between two times; of a request on the edge the share of its time that lies inside.

        Counted whole, the edge would make 512 texts in step an error of 4 % in 8 s. Of the last 100,000 requests.
        """
        texts = 0.0
        for arrived, answered, count in self._answers:
            inside = min(answered, end) - max(arrived, start)
            if answered > arrived:
                texts += count * max(0.0, inside) / (answered - arrived)
            elif start < answered <= end:
                texts += count
        return texts


def _sent_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The physics' headers as they travel: an HTTP date is made of the seconds it names."""
    wait = headers.get("Retry-After", "")
    if not wait.startswith("date:"):
        return headers
    return {**headers, "Retry-After": formatdate(int(time.time()) + int(wait.removeprefix("date:")), usegmt=True)}
