"""What a 503 without `Retry-After` means that neither more requests nor more texts than before explain.

It may be a rate limit in other words, as from nginx; or chance, where of several servers behind one address one is down.
A pace tells: of the one it lets as much through as came through before, of the other ever less, unless the bucket holds so
little that pauses fill it at once. Then what is refused tells: chance leaves more. A rate so low that probes use it up looks
like a server that is down. No clock, no I/O.
"""

import math

MUCH_LESS = 4.0
SURE = 8
"""From so many paces in a row on that were not much less, a small bucket may be looked for."""
RELAPSES = 3
"""So often in a row it answered a probe and then nothing but 503: the probe used up what it gives."""
STARVED_SECONDS = 7.0
"""Four pauses in a row are longer than this: if no text was taken meanwhile, it is not for the probes."""
MANY_PER_SECOND = 32
"""What accepts so many requests in a second has no rate that a probe uses up."""
CHANCE_SECONDS = 60.0
"""For so long chance is taken for what it is; then for twice as long, and so on. Where it was seen to be none it is not thought
of again for as long as the next time would last."""
MOSTLY, FEW, IN_A_ROW = 3, 8, 8
"""What refuses more than three times as many as it accepts, and more than a few, in each of so many seconds one after the
other, is no chance."""


class Unavailable:
    """`is_rate`: a 503 is to be taken for a 429."""

    def __init__(self) -> None:
        self.is_rate = False
        self._items_per_second = 0.0
        self._paces, self._relapses = 0, 0.0
        self._revived = self._uses_up_probes = False
        self._took_at = -math.inf
        self._chance_until = self._no_chance_until = -math.inf
        self._chance_seconds = CHANCE_SECONDS
        self._second_began = -math.inf
        self._accepted = self._refused = self._mostly_refused = 0

    def is_chance(self, now: float) -> bool:
        """Whether a 503 says nothing."""
        return now < self._chance_until

    @property
    def is_sure(self) -> bool:
        """Whether a small bucket may be behind a pace that is learnt now, as with 429."""
        return not self.is_rate or self._paces >= SURE

    def unexplained(self, items_per_second: float) -> None:
        """Many were refused, the server was not full, and so many texts a second were taken meanwhile."""
        self.is_rate = True
        self._items_per_second, self._paces, self._uses_up_probes = items_per_second, 0, False

    def went_down(self, now: float, *, refused: bool) -> bool | None:
        """Nothing but failures, the last one a 503 if `refused`: that is no rate, unless it answers probes in between, again and
        again, and then texts too, one at a time. Whether it is taken for one from now on; None: as before."""
        was_rate, self.is_rate = self.is_rate, False
        if was_rate and self._uses_up_probes:
            self.is_rate = now < self._took_at + STARVED_SECONDS
            self._relapses = -math.inf
        elif refused and self._revived:
            self._relapses += 1.0
        else:
            self._relapses = min(0.0, self._relapses)
        self._revived = False
        if self._relapses >= RELAPSES:
            self.unexplained(0.0)
            self._uses_up_probes, self._took_at = True, now
        return None if self.is_rate == was_rate else self.is_rate

    def learnt(self, now: float, items_per_second: float | None) -> bool:
        """A pace was learnt; whether it is none."""
        if not self.is_rate or items_per_second is None:
            return False
        self._paces += 1
        if MUCH_LESS * items_per_second >= self._items_per_second or now < self._no_chance_until:
            return False
        self.is_rate = False
        self._chance_until = now + self._chance_seconds
        self._chance_seconds *= 2.0
        self._second_began, self._accepted, self._refused, self._mostly_refused = now, 0, 0, 0
        return True

    def heard(self, now: float, *, refused: bool, probe: bool = False) -> None:
        """A request was answered, or refused with 503; `probe`: one with a text of our own."""
        if not refused:
            self._revived = probe
            if not probe:
                self._relapses, self._took_at = 0.0, now
        if now >= self._second_began + 1.0:
            self._judge_second(now)
        self._accepted += not (refused or probe)
        self._refused += refused

    def _judge_second(self, now: float) -> None:
        mostly = self._refused > max(FEW, MOSTLY * self._accepted) and now < self._second_began + 2.0
        self._mostly_refused = self._mostly_refused + 1 if mostly and self.is_chance(now) else 0
        if self._mostly_refused >= IN_A_ROW:
            self._chance_until, self._no_chance_until = -math.inf, now + self._chance_seconds
        if self.is_rate and self._uses_up_probes and self._accepted >= MANY_PER_SECOND:
            self.is_rate = False
        self._second_began, self._accepted, self._refused = now, 0, 0
