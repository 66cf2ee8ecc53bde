"""When the next request may be sent: a fixed pace, and the pause a 429 asks for.

Pure: the caller passes its clock. How many requests may run at a time is `control.limit`, whether the endpoint lives at
all is `control.breaker`.
"""

import math

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 16.0


class Pacer:
    """Spaces requests so that at most `items_per_second` texts are sent on average; None means no pace.

    A request is never larger than one second's worth: a server that counts by the second would refuse it for ever.
    """

    def __init__(self, items_per_second: float | None) -> None:
        self._seconds_per_item = 0.0 if items_per_second is None else 1.0 / items_per_second
        self.most_items: float = math.inf if items_per_second is None else max(1, math.floor(items_per_second))
        self.ready_at = -math.inf

    def sent(self, now: float, items: int) -> None:
        """Charge `items` texts sent at `now`."""
        self.ready_at = max(self.ready_at, now) + items * self._seconds_per_item


class Throttle:
    """The pause after a refusal, and one request at a time after it until one succeeds.

    The pause is what the server says (Retry-After), else 0.5 s doubled up to 16 s for each refusal in a row. Requests
    that were already under way when the pause began don't lengthen it. `announced_until` is the server's word alone.
    """

    def __init__(self) -> None:
        self.closed_until = -math.inf
        self.announced_until = -math.inf
        self.half_open = False
        self._refusals = 0

    def refused(self, now: float, *, sent_at: float, retry_after_seconds: float | None) -> None:
        """A request sent at `sent_at` was refused at `now`."""
        known = self.half_open and sent_at < self.closed_until
        if not known:
            self._refusals += 1
        if retry_after_seconds is not None:
            self.announced_until = now + retry_after_seconds
            self.closed_until = max(self.closed_until, self.announced_until)
        elif not known:
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self._refusals - 1, 10))
            self.closed_until = max(self.closed_until, now + pause)
        self.half_open = True

    def succeeded(self, *, sent_at: float) -> None:
        """A request was answered; one that was sent before the refusal proves nothing."""
        if sent_at >= self.closed_until:
            self.half_open = False
            self._refusals = 0
