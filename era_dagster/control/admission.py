"""What is said of one request: whether it may be sent, and how it is known while it is under way."""

from dataclasses import dataclass

from era_dagster.control.evidence import Sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Send now, at most this much. `probe`: send a short text of one's own instead, to see whether the server lives."""

    batch_items: int
    batch_tokens: int
    probe: bool = False


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Send nothing before `at` (the caller's clock); infinite: not before a request in flight ends."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One request in flight. `alone`: it was the only one allowed, because the one before was refused. `under_way`: the tokens
    in flight when it was sent, its own among them."""

    number: int
    sent_at: float
    items: int
    tokens: int
    probe: bool
    alone: bool
    sent: Sent
    under_way: int
