"""Whether a text failed or its server: what the answer to a single text proves, and the answer to a text of our own.

Pure functions on answers; whom to ask, and when, is `embedding.embedder` and `embedding.identity`.
"""

from typing import TypeGuard

from era_dagster.control.outcome import Outcome
from era_dagster.domain.errors import BadVectors, EndpointBusy, EndpointRefused, EndpointUnavailable, TransientError
from era_dagster.embedding.provider import Answer
from era_dagster.embedding.responses import Verdict
from era_dagster.embedding.vectors import checked


def of_one_text(asked: str, answer: Answer | Verdict, dimension: int | None) -> Answer | Verdict:
    """What `asked` (endpoint and model) answered to a single text; a vector that is none is a verdict."""
    if isinstance(answer, Verdict):
        return answer
    _, bad = checked(answer.vectors, dimension)
    if not bad:
        return answer
    return Verdict(error=BadVectors(f"{asked} answered no vector: {bad[0]}."), outcome=Outcome.TEXTS)


def not_by_its_text(verdict: Verdict) -> Verdict:
    """The verdict on a text with which nothing is wrong: the server failed, unless it was away, busy, or says no for good."""
    if isinstance(verdict.error, (TransientError, EndpointRefused)):
        return verdict
    return Verdict(error=EndpointUnavailable(verdict.error.message), outcome=Outcome.FAILED)


def of_the_canary(asked: str, answer: Answer | Verdict, dimension: int | None) -> Answer | Verdict:
    """What `asked` answered to a text of our own: its vector, or the server's failure."""
    answer = of_one_text(asked, answer, dimension)
    return answer if isinstance(answer, Answer) else not_by_its_text(answer)


def blames_the_text(answer: Answer | Verdict) -> TypeGuard[Verdict]:
    """Whether the text may be at fault, or as well a server that answers this to whatever it is asked."""
    return isinstance(answer, Verdict) and not isinstance(answer.error, (TransientError, EndpointRefused))


def tells_nothing(own: Answer | Verdict | None) -> bool:
    """Whether a text of our own was not sent, or refused as any other would have been: nothing is known of server and text."""
    return own is None or (isinstance(own, Verdict) and isinstance(own.error, EndpointBusy))
