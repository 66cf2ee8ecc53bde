"""How many requests one endpoint may have in flight.

`Limit` is the interface; numbers go in through `completed`, the limit comes out of `value`. No clock, no asyncio, no
counting of requests (that is `control.gate`).
"""

from dataclasses import dataclass
from typing import Protocol

from era_dagster.control.outcome import Sample


class Limit(Protocol):
    """The most requests in flight, at this moment; always at least 1."""

    @property
    def value(self) -> int: ...

    def completed(self, sample: Sample) -> None:
        """Learn from a finished request."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLimit:
    """A limit that never moves."""

    value: int

    def completed(self, sample: Sample) -> None:
        """Learn nothing: the limit is somebody's decision."""
