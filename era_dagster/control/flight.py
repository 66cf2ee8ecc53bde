"""The requests under way at one endpoint, and the epoch in which their answers are measured. No clock, no I/O."""

from era_dagster.control.measure import Epoch, Measurement

FULL_SHARE = 0.5
"""An epoch in which less of the time was spent at the limit measures the sender."""


class Flight:
    """Requests are told by number; `tokens` are under way. `epoch` begins anew whenever the operating point changes."""

    def __init__(self) -> None:
        self.epoch = Epoch(0.0)
        self.tokens = 0.0
        self._under_way: dict[int, tuple[float, float]] = {}
        self._number = 0
        self._full_since: float | None = None
        self._settling = 0

    @property
    def count(self) -> int:
        """Requests sent so far."""
        return self._number

    def __len__(self) -> int:
        return len(self._under_way)

    def sent(self, now: float, tokens: float) -> int:
        """A request with `tokens` tokens goes out; returns the number under which it ends."""
        self._number += 1
        if not self._under_way and not self.epoch.latencies:
            self.epoch.began_at = now
        self._under_way[self._number] = (now, tokens)
        self.tokens += tokens
        return self._number

    def ended(self, number: int) -> tuple[float, float] | None:
        """When it was sent and how many tokens it had; None if it is not known any more."""
        known = self._under_way.pop(number, None)
        self.tokens -= known[1] if known else 0.0
        return known

    def sent_since(self, at: float) -> list[float]:
        """When each of those under way was sent, that went out at `at` or later."""
        return [sent_at for sent_at, _ in self._under_way.values() if sent_at >= at]

    def sent_before(self, at: float) -> bool:
        """Whether a request that was sent before `at` is still under way."""
        return any(sent_at < at for sent_at, _ in self._under_way.values())

    def reached(self, now: float) -> None:
        """As many are under way as may be, and more would go: this time measures the server, not the sender."""
        if self._full_since is None:
            self._full_since = now

    def freed(self, now: float) -> None:
        """A request ended: until `reached` again the sender may be what is slow."""
        if self._full_since is not None:
            self.epoch.full_seconds += now - max(self._full_since, self.epoch.began_at)
            self._full_since = None

    def was_full(self, now: float) -> bool:
        """Whether this epoch measures the server."""
        return self.epoch.full_seconds >= FULL_SHARE * (now - self.epoch.began_at)

    def begin(self, now: float, *, settling: int | None = None) -> None:
        """A new epoch. `settling`: so many answers don't count, because the server still works on what was sent before."""
        self.epoch = Epoch(now)
        if settling is not None:
            self._settling = settling

    def settled(self, now: float, *, at_once: bool = False) -> bool:
        """Whether an answer that came at `now` counts. `at_once`: from now on all do."""
        if at_once:
            self._settling = 0
        if self._settling == 0:
            return True
        self._settling -= 1
        if self._settling == 0:
            self.epoch = Epoch(now)
        return False

    def measured(self, now: float, concurrency: int) -> Measurement:
        """What the epoch shows by `now`."""
        return self.epoch.measurement(now, self._under_way.values(), concurrency)
