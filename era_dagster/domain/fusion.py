"""Reciprocal rank fusion: one order out of several, from ranks alone.

Scores of different searches (a cosine, a sum of word weights) have no common scale; ranks have one.
"""

from collections.abc import Hashable, Sequence
from typing import TypeVar

RANK_CONSTANT = 60
"""How little the first places weigh against the next ones; the value of the paper, which found it uncritical.

G. V. Cormack, C. L. A. Clarke and S. Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods", SIGIR 2009.
"""

T = TypeVar("T", bound=Hashable)


def fuse_rankings(rankings: Sequence[Sequence[T]]) -> list[T]:
    """All members of `rankings` (each best first, without repetition), by the sum of 1 / (RANK_CONSTANT + rank).

    Ranks count from 1; a ranking adds nothing to what it does not hold. Members with equal sums keep the order in which
    they first appear, earlier rankings before later ones.
    """
    sums: dict[T, float] = {}
    for ranking in rankings:
        for rank, member in enumerate(ranking, start=1):
            sums[member] = sums.get(member, 0.0) + 1.0 / (RANK_CONSTANT + rank)
    return sorted(sums, key=lambda member: -sums[member])
