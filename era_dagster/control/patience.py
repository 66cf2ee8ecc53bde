"""How long an endpoint may give nothing before it counts as given up. Pure: the caller passes its clock."""

import math

HUNGRY_FACTOR = 2.0
"""So many times the patience may pass without a text taken where only texts of our own are: a text's own retries end before."""


class Patience:
    """Counts from the first failure after the last answer; from the first failure of a text where none is taken since.

    `well_at`: when it answered last, or work came after a rest: the time nobody tried is not the endpoint's failure.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.well_at = -math.inf
        self._failing_since: float | None = None
        self._hungry_since: float | None = None

    def failed(self, *, sent_at: float, hungry: bool) -> None:
        """A request sent at `sent_at` failed; `hungry`: it was a text, and no rate limit. Others may be answered since then."""
        if self._failing_since is None:
            self._failing_since = max(sent_at, self.well_at)
        if self._hungry_since is None and hungry:
            self._hungry_since = self._failing_since

    def answered(self, now: float, *, text: bool) -> None:
        """It answered; `text`: not a text of our own."""
        self._failing_since, self.well_at = None, now
        if text:
            self._hungry_since = None

    def woken(self, now: float) -> None:
        """Work came after a rest."""
        self.well_at = now
        if self._failing_since is not None:
            self._failing_since = now
        if self._hungry_since is not None:
            self._hungry_since = now

    def ends_at(self, announced_until: float) -> float:
        """When it ends; minus infinite if the server announced a longer pause, infinite while it answers."""
        hungry = math.inf if self._hungry_since is None else self._hungry_since + HUNGRY_FACTOR * self.seconds
        if self._failing_since is None:
            return hungry
        end = self._failing_since + self.seconds
        return -math.inf if announced_until > end else min(end, hungry)
