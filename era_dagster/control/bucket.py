"""How much may be sent at a moment: a bucket that fills little by little, or a window. Pure: the caller passes its clock."""

EVEN_BURST_SECONDS = 0.25
"""What a window has left is spread, but for places that become free together."""
FREE_SHARE, FREE_SECONDS = 0.5, 60.0
"""So much of a window may go within about so long all the same: what is allowed in a day is no pace for minutes of work."""


class Bucket:
    """Lets through `rate` units a second on average and `size` at once; goes into debt rather than split a request."""

    def __init__(self, now: float, *, rate: float, size: float, level: float = 0.0) -> None:
        self.rate = rate
        self.size = size
        self._level = level
        self._at = now

    @property
    def pace(self) -> float:
        """How many units a second it lets through now."""
        return self.rate

    def level(self, now: float) -> float:
        """What may be sent at `now`; negative: a debt."""
        self._level = min(self.size, self._level + (now - self._at) * self.rate)
        self._at = now
        return self._level

    def take(self, now: float, units: float) -> None:
        """Send `units`."""
        self._level = self.level(now) - units

    def ready_at(self, now: float, units: float) -> float:
        """When `units` may be sent; more than its whole size counts as its size."""
        missing = min(units, self.size) - self.level(now)
        return now if missing <= 1e-9 else now + missing / self.rate


class Window(Bucket):
    """Lets through `size` units until `ends_at`, then as many again: what a server gives by the minute or by the second.

    `even` spreads what is left over the time that is left, but the first half over no more than minutes; without it all may
    go at once.
    """

    def __init__(
        self, now: float, *, seconds: float, size: float, level: float, ends_at: float, even: Bucket | None = None
    ) -> None:
        super().__init__(now, rate=size / seconds, size=size, level=level)
        self._seconds = seconds
        self._ends_at = ends_at
        self.even = even

    @property
    def pace(self) -> float:
        """How many units a second it lets through now: while much is left, more than over all of its time."""
        return self.rate if self.even is None else self.even.rate

    def level(self, now: float) -> float:
        """What may be sent at `now`; negative: a debt."""
        if now >= self._ends_at:
            self._level, self._ends_at = self.size, now + self._seconds
        return self._level

    def take(self, now: float, units: float) -> None:
        """Send `units`."""
        super().take(now, units)
        if self.even is not None:
            self.even.take(now, units)

    def ready_at(self, now: float, units: float) -> float:
        """When `units` may be sent; more than its whole size counts as its size."""
        units, level = min(units, self.size), self.level(now)
        if units > level + 1e-9:
            return self._ends_at
        if self.even is None:
            return now
        free = (level - (1.0 - FREE_SHARE) * self.size) / FREE_SECONDS
        self.even.rate = max(free, (level + units) / max(self._ends_at - now, 1e-9))
        self.even.size = max(units, self.even.rate * EVEN_BURST_SECONDS)
        return self.even.ready_at(now, units)
