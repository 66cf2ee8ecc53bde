"""What a server takes, seen while nothing more is sent to it. No clock, no I/O."""

from era_dagster.control.measure import Measurement


class Drain:
    """Requests were late: nothing is sent until no more is under way than the server works off in the latency aimed at.

    How much that is it shows meanwhile. When the late request came back, as much had been worked off since it was sent as
    was under way, by Little's law; what comes back after it adds to that, and so does the time that passes.
    """

    def __init__(self, now: float, *, since: float, tokens: float, before: Measurement) -> None:
        """`since`: when the late request was sent; `tokens` were under way when it came back, at `now`. `before`: what had
        been measured until then."""
        self.before = before
        self.latency = now - since
        self._since = since
        self._tokens = tokens

    def answered(self, tokens: float) -> None:
        """A request came back."""
        self._tokens += tokens

    def seconds(self, now: float) -> float:
        """How long it has been since the late request was sent."""
        return now - self._since

    def throughput(self, now: float) -> float:
        """Tokens worked off in a second."""
        return self._tokens / max(self.seconds(now), 1e-9)
