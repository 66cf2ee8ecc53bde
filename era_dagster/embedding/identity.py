"""Finds out which model a set of endpoints holds, and that it is one and the same.

Two questions to each endpoint, since one wrong answer must not decide for a run; texts, queues and caches are elsewhere.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from era_dagster.control.outcome import Outcome
from era_dagster.control.retry import RetryPolicy
from era_dagster.domain.errors import (
    BadVectors,
    ConfigurationError,
    EndpointBusy,
    EndpointRefused,
    EraError,
    TransientError,
)
from era_dagster.embedding.cache_front import Remember
from era_dagster.embedding.canary import not_by_its_text, of_the_canary
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.endpoint import Endpoint
from era_dagster.embedding.provider import CANARY, Answer, Identified
from era_dagster.embedding.responses import Verdict
from era_dagster.embedding.vectors import ModelIdentity, Vector, canary_key, checked, of_one_model

# One broken connection is no reason to give up; somebody who named a wrong URL wants to hear it soon.
_TRIES_WHEN_AWAY = 4
_PATIENCE_WHEN_AWAY_SECONDS = 5.0
# So that two models under one name are found out before a text is embedded, where both are there.
_WAIT_FOR_OTHERS_SECONDS = 1.0

SAME_COSINE = 0.99999
"""Of one text at whatever precision, half floats included: no other text comes that close to our own."""

_Said = tuple[Identified, Vector]
_First = tuple[str, ModelIdentity]


class Identification:
    """Which model answers. One endpoint is enough to begin with: the others join when they have said the same.

    `own` is the vector of our own text, `asked` what must be cancelled when nobody wants to know any more. `start` runs what
    waits for an endpoint that comes later; `joined` is told when it has come, with the error that must end the run if there
    is one: then it stays out. `remember` keeps a vector under a key from run to run, and gives the one that was there first.
    """

    def __init__(
        self,
        config: EmbedderConfig,
        endpoints: Sequence[Endpoint],
        policy: RetryPolicy,
        random: Random,
        *,
        start: Callable[[Coroutine[Any, Any, None]], None],
        joined: Callable[[EraError | None], None],
        remember: Remember | None,
    ) -> None:
        self.own: Vector | None = None
        self.asked: set[asyncio.Task[_Said | Verdict]] = set()
        self._config = config
        self._endpoints = endpoints
        self._policy = policy
        self._random = random
        self._start = start
        self._joined = joined
        self._remember = remember
        self._lock = asyncio.Lock()
        self._first: _First | None = None

    async def ask(self) -> ModelIdentity:
        """The identity on which the first endpoint and all that answer within a second of it agree; asked once.

        Raises the error of an endpoint that refuses, or of the first one when none can be reached; `ConfigurationError` when
        two of them hold different models, `BadVectors` when it is another one than in earlier runs.
        """
        async with self._lock:
            if self._first is None:
                first = await self._ask_all()
                await self._know_again(first)
                self._first = first
        return self._first[1]

    def doubts(self, endpoint: Endpoint, now: float) -> bool:
        """Whether a text of our own must go there first: it was away or busy when all were asked and has not shown since that
        it holds their model, or has not shown it for a while."""
        return self.own is not None and endpoint.may_hold_another_model(now)

    def verified(self, endpoint: Endpoint, answer: Answer | Verdict) -> Answer | Verdict:
        """The answer to our own text, unless another model than at first made it: one that was loaded since, or always there."""
        if self.own is None:
            return answer
        now = asyncio.get_running_loop().time()
        if isinstance(answer, Verdict):
            endpoint.had_no_room_for_ours(now)
            return answer
        if of_one_model(self.own, answer.vectors[0]):
            endpoint.has_shown_its_model(now)
            return answer
        endpoint.holds_another_model()
        made = f"other vectors than {self._config.model} makes elsewhere, or made before"
        return Verdict(error=of_another_model(endpoint.provider.url, made), outcome=Outcome.FAILED)

    def gets_one_vector_for_all(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> bool:
        """Whether these texts got the vector of our own text, though other letters stand in one of them. `vectors`: their
        normalised rows. A server that answers so does not read what it is sent."""
        if self.own is None or vectors.shape[1] != len(self.own):
            return False
        own, _ = checked(self.own[None, :], None)
        return bool((vectors @ own[0] > SAME_COSINE).all()) and any(
            _letters(text) != _letters(CANARY) for text in texts
        )

    async def _know_again(self, first: _First) -> None:
        """Raises `BadVectors` where a model that tells no digest made another vector of our own text in an earlier run."""
        url, identity = first
        if self._remember is None or self.own is None or identity.digest is not None:
            return
        vectors, _ = checked(self.own[None, :], None)
        if not of_one_model(self.own, await self._remember(canary_key(identity), vectors[0])):
            raise of_another_model(
                url,
                f"other vectors than {self._config.model} made in earlier runs",
            )

    async def _ask_all(self) -> _First:
        asked: dict[Endpoint, asyncio.Task[_Said | Verdict]] = {}
        try:
            for endpoint in self._endpoints:
                endpoint.unknown = True
                asked[endpoint] = task = asyncio.create_task(_ask(self._config, endpoint, self._policy, self._random))
                self.asked.add(task)
                task.add_done_callback(self.asked.discard)
            waiting = set(asked.values())
            while waiting and not any(_decides(task.result()) for task in asked.values() if task.done()):
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting:
                _, waiting = await asyncio.wait(waiting, timeout=_WAIT_FOR_OTHERS_SECONDS)
            answers = [(endpoint, task.result()) for endpoint, task in asked.items() if task.done()]
            known = [(endpoint, answer) for endpoint, answer in answers if not isinstance(answer, Verdict)]
            for _, answer in answers:
                if isinstance(answer, Verdict) and (not known or _decides(answer)):
                    raise answer.error
            endpoint, (identified, self.own) = known[0]
            first = (endpoint.provider.url, _identity(self._config, identified))
            for endpoint, answer in answers:
                self._take_in(endpoint, answer, first)
        except BaseException:
            for endpoint, task in asked.items():
                endpoint.unknown = False
                task.cancel()
            await asyncio.gather(*asked.values(), return_exceptions=True)
            raise
        for endpoint, task in asked.items():
            if endpoint.unknown:
                self._start(self._join(endpoint, task, first))
        return first

    async def _join(self, endpoint: Endpoint, asked: asyncio.Task[_Said | Verdict], first: _First) -> None:
        try:
            self._take_in(endpoint, await asked, first)
        except EraError as error:
            self._joined(error)
        else:
            self._joined(None)

    def _take_in(self, endpoint: Endpoint, answer: _Said | Verdict, first: _First) -> None:
        """Let work go to an endpoint of the same model; one that is away is only probed."""
        if isinstance(answer, Verdict):
            if _decides(answer):
                raise answer.error
            endpoint.is_away(asyncio.get_running_loop().time(), answer)
        else:
            self._compare(endpoint.provider.url, *answer, first)
        endpoint.unknown = False

    def _compare(self, other_url: str, other: Identified, vector: Vector, first: _First) -> None:
        url, one = first
        same = self.own is not None and of_one_model(self.own, vector)
        if not same or other.digest != one.digest:
            raise ConfigurationError(
                f"{url} and {other_url} hold different models under the name {self._config.model}:"
                f" digest {one.digest} with {one.dimension} dimensions,"
                f" digest {other.digest} with {other.dimension}"
                f"{'' if same else ', and other vectors for one text'}.",
                hint="Pull the same model on both, or leave one out of ERA_EMBEDDING_URLS.",
            )


def _decides(answer: _Said | Verdict) -> bool:
    """Whether there is nothing to wait for: it said who it is, or refuses for good."""
    return not isinstance(answer, Verdict) or not isinstance(answer.error, TransientError)


def _identity(config: EmbedderConfig, found: Identified) -> ModelIdentity:
    profile = config.profile
    return ModelIdentity(
        provider=config.provider,
        model=config.recorded_as or config.model,
        digest=found.digest,
        dimension=found.dimension,
        document_prefix=profile.document_prefix,
        query_prefix=profile.query_prefix,
        server_version=found.server_version,
        uncased=profile.uncased,
    )


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def of_one_vector(url: str, model: str) -> BadVectors:
    """The error that ends the run when the endpoint at `url` answers one vector whatever it is asked."""
    return BadVectors(
        f"{url} (model {model}) answers one and the same vector for different texts, by which nothing could be found.",
        hint="Start that server again or update it, and see that what it serves is an embedding model.",
    )


def of_another_model(url: str, what: str) -> BadVectors:
    """The error that ends the run when the endpoint at `url` answers `what` only another model makes."""
    return BadVectors(
        f"{url} answers {what}.",
        hint="Let that server hold the model of before; or give the new one a name of its own, and `era spaces build"
        " --model NAME` makes its vectors beside the live ones.",
    )


async def _ask(config: EmbedderConfig, endpoint: Endpoint, policy: RetryPolicy, random: Random) -> _Said | Verdict:
    """Its identity and its vector of our own text, believed when a second answer has the same dimension.

    A busy server is asked again within the retry bounds; one that is away, or answers no vector, a few times in a few
    seconds.
    """
    loop = asyncio.get_running_loop()
    started, failures = loop.time(), 0
    asked = f"{endpoint.provider.url} (model {config.model})"
    found: Identified | None = None
    while True:
        if found is None:
            answer = await endpoint.provider.identify(config.request_timeout_seconds, config.loading_timeout_seconds)
            if isinstance(answer, Identified):
                found = answer
                continue
            verdict = not_by_its_text(answer)
        else:
            second = await endpoint.provider.embed([CANARY], config.request_timeout_seconds)
            verdict = of_the_canary(asked, second, found.dimension)
            if isinstance(verdict, Answer):
                endpoint.loading = False
                endpoint.has_shown_its_model(loop.time())
                return found, verdict.vectors[0]
        failures += 1
        if isinstance(verdict.error, EndpointRefused):
            return verdict
        if not isinstance(verdict.error, EndpointBusy):
            found = None
            if failures >= _TRIES_WHEN_AWAY or loop.time() - started >= _PATIENCE_WHEN_AWAY_SECONDS:
                return verdict
        wait = verdict.retry_after_seconds
        if wait is None:
            wait = policy.delay_seconds(failures, random.random())
        if policy.is_exhausted(failures=failures, seconds=loop.time() - started + wait):
            return verdict
        await asyncio.sleep(wait)
