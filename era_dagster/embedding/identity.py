"""Finds out which model a set of endpoints holds, and that it is one and the same.

Two questions to each endpoint, since one wrong answer must not decide for a run; texts, queues and caches are elsewhere.
"""

import asyncio
from collections.abc import Sequence
from random import Random

from era_dagster.control.retry import RetryPolicy
from era_dagster.domain.errors import BadVectors, ConfigurationError, EndpointBusy, EndpointRefused, TransientError
from era_dagster.embedding.canary import not_by_its_text, of_the_canary
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.endpoint import Endpoint
from era_dagster.embedding.provider import CANARY, Answer, Identified
from era_dagster.embedding.responses import Verdict
from era_dagster.embedding.vectors import ModelIdentity, Vector, of_one_model

# One broken connection is no reason to give up; somebody who named a wrong URL wants to hear it soon.
_TRIES_WHEN_AWAY = 4
_PATIENCE_WHEN_AWAY_SECONDS = 5.0


async def ask_identity(
    config: EmbedderConfig, endpoints: Sequence[Endpoint], policy: RetryPolicy, random: Random
) -> tuple[ModelIdentity, Vector]:
    """The identity all reachable endpoints agree on, and the vector of our own text; one that is away is only probed.

    Raises the error of the first endpoint that refuses, or of the first one when none can be reached;
    `ConfigurationError` when two of them hold different models.
    """
    answers = await asyncio.gather(*(_ask(config, endpoint, policy, random) for endpoint in endpoints))
    known: list[tuple[str, Identified, Vector]] = []
    verdicts: list[tuple[Endpoint, Verdict]] = []
    for endpoint, answer in zip(endpoints, answers, strict=True):
        if isinstance(answer, Verdict):
            verdicts.append((endpoint, answer))
        else:
            known.append((endpoint.provider.url, *answer))
    for endpoint, verdict in verdicts:
        if not known or not isinstance(verdict.error, TransientError):
            raise verdict.error
        if not isinstance(verdict.error, EndpointBusy):
            endpoint.is_away(asyncio.get_running_loop().time(), verdict)
    url, first, own = known[0]
    for other_url, other, vector in known[1:]:
        same = of_one_model(own, vector)
        if not same or other.digest != first.digest:
            raise ConfigurationError(
                f"{url} and {other_url} hold different models under the name {config.model}:"
                f" digest {first.digest} with {first.dimension} dimensions,"
                f" digest {other.digest} with {other.dimension}"
                f"{'' if same else ', and other vectors for one text'}.",
                hint="Pull the same model on both, or leave one out of ERA_EMBEDDING_URLS.",
            )
    profile = config.profile
    identity = ModelIdentity(
        provider=config.provider,
        model=config.model,
        digest=first.digest,
        dimension=first.dimension,
        document_prefix=profile.document_prefix,
        query_prefix=profile.query_prefix,
        server_version=first.server_version,
        uncased=profile.uncased,
    )
    return identity, own


def of_another_model(url: str, what: str) -> BadVectors:
    """The error that ends the run when the endpoint at `url` answers `what` only another model makes."""
    return BadVectors(f"{url} answers {what}.", hint="Check which model that server holds.")


async def _ask(
    config: EmbedderConfig, endpoint: Endpoint, policy: RetryPolicy, random: Random
) -> tuple[Identified, Vector] | Verdict:
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
                endpoint.delivered = True
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
