"""Which words of a question to look for in a full text index, and how much each weighs.

PostgreSQL ranks by what stands in a text alone; how rare a word is in all texts, half of any good ranking, is added here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_MOST_WORDS = 8
_SHARE_READ = 0.25
# Ranking costs 3 to 4 microseconds a text: in a large corpus a quarter of it would be read for tens of milliseconds.
_TEXTS_READ = 2_000


@dataclass(frozen=True, slots=True)
class AskedWord:
    """One word of a question: its stems in the languages of the books, what finding it weighs, and whether texts are
    looked for by it; by the others those that were found are only ranked."""

    stems: tuple[str, ...]
    weight: float
    sought: bool


def content_words(found: Mapping[str, Mapping[str, Sequence[int]]]) -> set[tuple[str, ...]]:
    """The words of a question that are no stop words, each as its stems.

    `found`: for each language of the books, the question's stems with their positions in it. A position that the
    language with most stop words here leaves out is a stop word: that is the question's language.
    """
    positions = [{place for places in stems.values() for place in places} for stems in found.values()]
    content = min(positions, key=len) if positions else set[int]()
    stems_at: dict[int, set[str]] = {}
    for stems in found.values():
        for stem, places in stems.items():
            for place in content.intersection(places):
                stems_at.setdefault(place, set()).add(stem)
    return {tuple(sorted(stems)) for stems in stems_at.values()}


def weighed_words(words: Iterable[tuple[str, ...]], shares: Mapping[str, float], texts: int) -> list[AskedWord]:
    """The words to look for, rarest first. `shares`: the share of all `texts` that hold a stem, 0 where none does.

    A word's weight is its inverse document frequency, ln(1 / share) (K. Spärck Jones, "A statistical interpretation of term
    specificity", 1972). Of the commonest words those are left out that would have the database read more than a quarter of
    all texts: their weight is small, their cost is not. At most 8 remain, and at least one of those that are found at all.
    Texts are sought by the rarest of them, as many as stand in 2,000 texts together (at least one).
    """
    ranked = sorted((share, stems) for stems in words if (share := sum(shares[stem] for stem in stems)) > 0.0)
    chosen: list[AskedWord] = []
    read = 0.0
    for share, stems in ranked[:_MOST_WORDS]:
        read += share
        if chosen and read > _SHARE_READ:
            break
        # A word that stands in every text still says something by how often it does.
        sought = not chosen or read * texts <= _TEXTS_READ
        chosen.append(AskedWord(stems, max(math.log(1.0 / share), 0.01), sought))
    return chosen
