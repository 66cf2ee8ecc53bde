"""How large the next request may be, and how many waiting texts fill it.

Sizes only, in items and estimated tokens; the texts themselves and the queue belong to `embedding.work`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English under WordPiece and BPE vocabularies; only the relation between requests matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSize:
    """Ceilings of one request."""

    items: int
    tokens: int


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
