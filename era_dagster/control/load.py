"""What a request may carry where only their number is held back. Pure: no clock, no I/O."""

import math

FURTHER = 8.0
"""A request tells nothing of one that is larger by more than this."""
WEIGHT = 0.25
SPREAD_WEIGHT = 0.0625
"""Weights of an answer in the mean of what fits, which must follow the server, and in how far it is missed."""
SHORTFALLS = 5.0
"""The 95th percentile is four mean shortfalls below the mean, and the mean itself is off by a part of one."""
LARGEST_SHORTFALL = 0.125
"""Of what fits: a stall is no shortfall."""


class Load:
    """What a request may carry so that the latency target is kept, where only their number is held back.

    Every answer says what would have fitted: its tokens times the target over its latency. Some of them are slower than
    others, so that the 95th percentile asks for less than the mean of that. Where the rate is about what the server can work
    on, requests wait for each other, and those that are small by then would show what is past: no more is under way than the
    server works off in the target. By Little's law that is what was under way with a request, over the time it took.
    """

    def __init__(self) -> None:
        self._fits: float | None = None
        self._short = 0.0
        self.most_under_way = math.inf
        """The tokens that the server works off in the latency target, as the last answers tell."""

    @property
    def tokens(self) -> float | None:
        """The tokens of one request; None before anything was answered."""
        return (
            None if self._fits is None else self._fits - SHORTFALLS * min(self._short, LARGEST_SHORTFALL * self._fits)
        )

    def answered(self, *, tokens: float, under_way: float, seconds: float, target_seconds: float) -> None:
        """A request was answered after `seconds`; a stall is no shortfall of more than an eighth.

        `under_way`: the tokens in flight when it was sent, its own among them.
        """
        worked_off = under_way * target_seconds / max(seconds, 1e-9)
        if self._fits is None:
            self.most_under_way = worked_off
        self.most_under_way += WEIGHT * (worked_off - self.most_under_way)
        fits = tokens * min(FURTHER, target_seconds / max(seconds, 1e-9))
        if self._fits is None:
            self._fits = fits
        short = max(0.0, self._fits - fits)
        self._fits += WEIGHT * (fits - self._fits)
        self._short += SPREAD_WEIGHT * (min(short, LARGEST_SHORTFALL * self._fits) - self._short)
