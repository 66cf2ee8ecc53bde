"""Texts without end for a benchmark, and the account of what became of each: answered, poisoned, lost, or mixed up."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from era_dagster.simulation.vectors import vector_of

POISON = "POISON"
CHECKED_EVERY = 41
"""One vector of so many is compared with what the server must have answered; a mix-up hits whole requests."""

_TOLERANCE = 1e-5
_WORDS = (
    "the keeper wrote the level down every morning and said that a number without a date is a rumour while the water"
    " rose behind the gate and nobody asked how long the old timbers would hold against another winter of rain "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """One text and its number."""

    number: int
    text: str
    poison: bool


class Source:
    """Hands out numbered texts until it is closed, and takes vectors (float32, shape (dimension,)) or None back.

    `characters`: the shortest and the longest; every `poison_every`-th is poison, 0 for none. `simulated`: the vectors are
    those of the simulated server, and compared.
    """

    def __init__(self, characters: tuple[int, int], *, poison_every: int = 0, simulated: bool = True) -> None:
        self._poison_every, self._simulated = poison_every, simulated
        low, high = characters
        self._low, self._spread = low, high - low + 1
        self._words = _WORDS * (high // len(_WORDS) + 2)
        self.closed = False
        self.handed_out = 0
        self.poison_handed_out = 0
        self.delivered = 0
        self.poison_missing = 0
        self.failed = 0
        self.wrong_vectors = 0
        self.checked = 0

    def take(self, count: int) -> list[Numbered]:
        """The next texts, `count` of them; none once it is closed."""
        if self.closed:
            return []
        first = self.handed_out
        self.handed_out += count
        return [self._make(number) for number in range(first, first + count)]

    def _make(self, number: int) -> Numbered:
        every = self._poison_every
        poison = every > 0 and number % every == every // 2
        self.poison_handed_out += poison
        # A multiplicative hash: lengths and beginnings are scattered, and the same in every run.
        scattered = number * 2_654_435_761 & 0xFFFFFFFF
        head = f"{number} {POISON} " if poison else f"{number} "
        begin, length = scattered % len(_WORDS), self._low + (scattered >> 8) % self._spread
        return Numbered(
            number=number, text=head + self._words[begin : begin + max(1, length - len(head))], poison=poison
        )

    def give_back(self, asked: Sequence[Numbered], vectors: Sequence[NDArray[np.float32] | None]) -> None:
        """What became of some texts; None is a text that was given up."""
        for text, vector in zip(asked, vectors, strict=True):
            if vector is None:
                self.poison_missing += text.poison
                self.failed += not text.poison
                continue
            self.delivered += 1
            if self._simulated and text.number % CHECKED_EVERY == 0:
                self.checked += 1
                expected = np.frombuffer(vector_of(text.text, len(vector)), dtype=np.float32)
                self.wrong_vectors += not np.allclose(vector, expected, atol=_TOLERANCE)

    @property
    def lost(self) -> int:
        """Texts that should have a vector and have none; once it is closed and its client has ended."""
        return self.handed_out - self.delivered - self.poison_missing
