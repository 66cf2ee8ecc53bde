"""What a request may carry where only their number is held back. Pure: no clock, no I/O."""

import math

from era_dagster.control.target import ALMOST_UNLOADED

FURTHER = 8.0
"""A request tells nothing of one that is larger by more than this."""
WEIGHT = 0.25
SPREAD_WEIGHT = 0.0625
"""Weights of an answer in the mean of what fits, which must follow the server, and in how far it is missed and what it costs."""
SHORTFALLS = 5.0
"""The 95th percentile is four mean shortfalls below the mean, and the mean itself is off by a part of one."""
LARGEST_SHORTFALL = 0.125
"""Of what fits: a stall is no shortfall."""
STALL = 3.0
"""More than so many times what was expected costs no more than that."""
ALIKE = 0.25
"""Requests that differ in size by less, of their mean, do not tell what a token costs: all of what they take, it seems."""
WAITS = 2.0
"""Where a request takes so many times as long as under a light load, whatever is in it, it is waiting that takes so long."""
SMALL, RARE = 4.0, 20
"""Where they are hardly larger than the smallest, one of so many is, so that it shows: the 95th percentile does not mind."""


class Costs:
    """What a request takes whatever is in it, and what each token adds: the line through answers to requests of several sizes."""

    def __init__(self) -> None:
        self.answers = 0
        self.size: float = 0.0
        """The tokens of a request, on the mean."""
        self._seconds: float = 0.0
        self._varied: float = 0.0
        self._varied_together: float = 0.0
        self.light = math.inf
        """The lowest that the mean latency ever was, in seconds."""

    def seconds(self) -> tuple[float, float]:
        """Of a request whatever is in it, and of each token."""
        alike, all_of_it = (ALIKE * self.size) ** 2, self._seconds / self.size
        each = (self._varied_together + alike * all_of_it) / (self._varied + alike)
        each = max(0.0, min(all_of_it, each))
        return self._seconds - each * self.size, each

    def answered(self, tokens: float, seconds: float) -> None:
        """A request of so many tokens was answered after `seconds`."""
        if self.answers:
            fixed, each = self.seconds()
            seconds = min(seconds, STALL * (fixed + each * tokens))
        self.answers += 1
        weight = max(SPREAD_WEIGHT, 1.0 / self.answers)
        larger, longer = tokens - self.size, seconds - self._seconds
        self.size += weight * larger
        self._seconds += weight * longer
        self.light = min(self.light, self._seconds)
        if self._varied:
            # Requests of one size tell nothing new of what a token costs: what others told is not forgotten over them.
            weight *= min(1.0, larger**2 / self._varied)
        self._varied += weight * ((1.0 - weight) * larger**2 - self._varied)
        self._varied_together += weight * ((1.0 - weight) * larger * longer - self._varied_together)


class Load:
    """What a request may carry so that the latency target is kept, where only their number is held back.

    Every answer says what would have fitted: its tokens times the target over its latency. Some of them are slower than
    others, so that the 95th percentile asks for less than the mean of that. But no less than hardly shows beside what a request
    takes whatever is in it: a smaller one would be no quicker. Where the rate is about what the server can work on, requests
    wait for each other, and those that are small by then would show what is past: no more is under way than the server works
    off in the target. By Little's law that is what was under way with a request, over the time it took.
    """

    def __init__(self) -> None:
        self._fits: float | None = None
        self._short = 0.0
        self._costs = Costs()
        self._least = math.inf
        self.most_under_way = math.inf
        """The tokens that the server works off in the latency target, as the last answers tell."""

    @property
    def tokens(self) -> float | None:
        """The tokens of one request; None before anything was answered."""
        if self._fits is None:
            return None
        in_time = self._fits - SHORTFALLS * min(self._short, LARGEST_SHORTFALL * self._fits)
        fixed, each = self._costs.seconds()
        unnoticed = 0.0
        if fixed < WAITS * self._costs.light:
            unnoticed = (ALMOST_UNLOADED - 1.0) * min(fixed, self._costs.light) / max(each, 1e-12)
        tokens = max(in_time, min(FURTHER * self._costs.size, unnoticed))
        if tokens < SMALL * self._least and self._costs.answers % RARE == 0:
            return SMALL * self._least
        return tokens

    def answered(self, *, tokens: float, under_way: float, seconds: float, target_seconds: float) -> None:
        """A request was answered after `seconds`; a stall is no shortfall of more than an eighth.

        `under_way`: the tokens in flight when it was sent, its own among them.
        """
        self._least = min(self._least, tokens)
        self._costs.answered(tokens, seconds)
        # Where a light load takes longer than the target, as much may be under way as hardly makes it longer.
        worked_off = under_way * max(target_seconds, ALMOST_UNLOADED * self._costs.light) / max(seconds, 1e-9)
        if self._fits is None:
            self.most_under_way = worked_off
        self.most_under_way += WEIGHT * (worked_off - self.most_under_way)
        fits = tokens * min(FURTHER, target_seconds / max(seconds, 1e-9))
        if self._fits is None:
            self._fits = fits
        short = max(0.0, self._fits - fits)
        self._fits += WEIGHT * (fits - self._fits)
        self._short += SPREAD_WEIGHT * (min(short, LARGEST_SHORTFALL * self._fits) - self._short)
