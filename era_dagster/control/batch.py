"""How large the next request may be, and how many waiting texts fill it.

Sizes only, in items and estimated tokens; the texts themselves and the queue belong to `embedding.work`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from era_dagster.control.outcome import Sample

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English under WordPiece and BPE vocabularies; only the relation between requests matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSize:
    """Ceilings of one request."""

    items: int
    tokens: int


class BatchSizer(Protocol):
    """Says how large the next request may be."""

    def size(self, *, remaining: int, limit: int) -> BatchSize:
        """The ceilings, when `remaining` texts wait or are under way, in at most `limit` requests at a time."""
        ...

    def completed(self, sample: Sample) -> None:
        """Learn from a finished request."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedBatch:
    """A size that never moves, except that the last texts of a job are shared out among the free requests."""

    items: int
    tokens: int

    def size(self, *, remaining: int, limit: int) -> BatchSize:
        """At most `ceil(remaining / limit)` items, so that the end of a job does not wait for one full request."""
        return BatchSize(items=max(1, min(self.items, -(-remaining // limit))), tokens=self.tokens)

    def completed(self, sample: Sample) -> None:
        """Learn nothing: the size is somebody's decision."""


def estimated_tokens(characters: int) -> int:
    """Tokens of a text of `characters` characters, roughly; at least 1."""
    return max(1, characters // CHARACTERS_PER_TOKEN)


def fitting(tokens: Iterable[int], size: BatchSize) -> int:
    """How many of the leading texts fit into one request; the first always does, however long it is."""
    count = total = 0
    for each in tokens:
        total += each
        if count and (count == size.items or total > size.tokens):
            break
        count += 1
    return count
