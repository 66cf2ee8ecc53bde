"""Stops calling an endpoint that is down, and probes it with single requests at growing intervals.

Counts failures in a row, nothing else; what is sent as a probe, and when everything is given up, is decided elsewhere.
Pure: the caller passes its clock.
"""

FAILURES_TO_OPEN = 5
FIRST_PROBE_SECONDS = 0.25
GROWTH, COSTLY_GROWTH = 1.3, 1.5
"""An outage is noticed to be over after at most three tenths of its length again; half of it where a probe may be what keeps the
server down: it costs a part of a rate (503), or is worked on still after its time-out."""
LONGEST_PROBE_SECONDS = 15.0


class Breaker:
    """Closed: requests pass. Open: only a probe passes, at `probe_at` or later (None while closed)."""

    def __init__(self) -> None:
        self.probe_at: float | None = None
        self._failures = 0
        self._pause_seconds = FIRST_PROBE_SECONDS

    def failed(self, now: float, *, timed_out: bool) -> bool:
        """An ordinary request failed; whether that opens the breaker.

        A time-out opens at once: servers go on computing what the client gave up, so that sending on makes it worse.
        """
        self._failures += 1
        if self.probe_at is None and (timed_out or self._failures >= FAILURES_TO_OPEN):
            self._pause_seconds = FIRST_PROBE_SECONDS
            self.probe_at = now + self._pause_seconds
            return True
        return False

    def probe_failed(self, now: float, *, costly: bool) -> None:
        """A probe failed: the next one comes after a longer pause. `costly`: it may have cost the server something."""
        growth = COSTLY_GROWTH if costly else GROWTH
        self._pause_seconds = min(LONGEST_PROBE_SECONDS, growth * self._pause_seconds)
        self.probe_at = now + self._pause_seconds

    def succeeded(self) -> None:
        """The endpoint answered."""
        self.probe_at = None
        self._failures = 0
