"""What a 503 without `Retry-After` means that neither more requests nor more texts than before explain.

It may be a rate limit in other words, as from nginx; or chance, where of several servers behind one address one is down.
A pace tells: of the one it lets as much through as came through before, of the other ever less. No clock, no I/O.
"""

import math

MUCH_LESS = 4.0
CHANCE_SECONDS = 60.0
"""For so long chance is taken for what it is; then for twice as long, and so on."""


class Unavailable:
    """`is_rate`: a 503 is to be taken for a 429."""

    def __init__(self) -> None:
        self.is_rate = False
        self._items_per_second = 0.0
        self._chance_until = -math.inf
        self._chance_seconds = CHANCE_SECONDS

    def is_chance(self, now: float) -> bool:
        """Whether a 503 says nothing."""
        return now < self._chance_until

    def unexplained(self, items_per_second: float) -> None:
        """Many were refused, the server was not full, and so many texts a second were taken meanwhile."""
        self.is_rate = True
        self._items_per_second = items_per_second

    def went_down(self) -> bool:
        """It refuses one request at a time, again and again: that is no rate. Whether it was taken for one."""
        was_rate, self.is_rate = self.is_rate, False
        return was_rate

    def learnt(self, now: float, items_per_second: float | None) -> bool:
        """A pace was learnt; whether it is none."""
        if not self.is_rate or items_per_second is None or MUCH_LESS * items_per_second >= self._items_per_second:
            return False
        self.is_rate = False
        self._chance_until = now + self._chance_seconds
        self._chance_seconds *= 2.0
        return True
