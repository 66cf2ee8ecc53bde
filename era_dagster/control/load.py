"""What a request may carry where only their number is held back. Pure: no clock, no I/O."""

import math

from era_dagster.control.target import ALMOST_UNLOADED

FURTHER = 8.0
"""A request tells nothing of one that is larger by more than this."""
WEIGHT = 0.25
SPREAD_WEIGHT = 0.0625
"""Weights of an answer in what is under way, which must follow the server, and in what a request takes."""
EXCESSES = 5.0
"""The 95th percentile is four mean excesses above the mean, and the mean itself is off by a part of one."""
LARGEST_EXCESS = 0.125
"""Of what a request takes: a stall is no excess."""
STALL = 3.0
"""More than so many times what was expected counts as that."""
ALIKE = 0.25
"""Requests that differ in size by less, of their mean, do not tell what a token costs: all of what they take, it seems."""
SMALL, RARE = 4.0, 20
"""Where they are hardly larger than the smallest, one of so many is, so that it shows: the 95th percentile does not mind."""


class Load:
    """What a request may carry so that the latency target is kept, where only their number is held back.

    Answers to requests of several sizes tell what each token adds, and what a request takes whatever is in it: no smaller
    one is quicker than that, so that where it takes most of the target, or more, as much may be added as hardly shows. Some
    are slower than others, so that the 95th percentile asks for less than the mean. Where the rate is about what the server
    can work on, requests wait for each other, and those that are small by then would show what is past: no more is under way
    than the server works off in the target. By Little's law that is what was under way with a request, over the time it took.
    """

    def __init__(self) -> None:
        self._answers = 0
        self._target = 0.0
        self._size: float = 0.0
        self._seconds: float = 0.0
        self._varied: float = 0.0
        self._varied_together: float = 0.0
        self._excess: float = 0.0
        self._light = self._least = math.inf
        self.most_under_way = math.inf
        """The tokens that the server works off in the latency target, as the last answers tell."""

    @property
    def tokens(self) -> float | None:
        """The tokens of one request; None before anything was answered."""
        if not self._answers:
            return None
        fixed, each = self._costs()
        in_time = self._target * (1.0 - EXCESSES * self._excess) - fixed
        unnoticed = (ALMOST_UNLOADED - 1.0) * min(fixed, self._light)
        tokens = min(FURTHER * self._size, max(in_time, unnoticed) / max(each, 1e-12))
        if tokens < SMALL * self._least and self._answers % RARE == 0:
            return SMALL * self._least
        return tokens

    def _costs(self) -> tuple[float, float]:
        """The seconds that a request takes whatever is in it, and those of each token."""
        alike, all_of_it = (ALIKE * self._size) ** 2, self._seconds / self._size
        each = (self._varied_together + alike * all_of_it) / (self._varied + alike)
        each = max(0.0, min(all_of_it, each))
        return self._seconds - each * self._size, each

    def answered(self, *, tokens: float, under_way: float, seconds: float, target_seconds: float) -> None:
        """A request was answered after `seconds`. `under_way`: the tokens in flight when it was sent, its own among them."""
        self._target, self._least = target_seconds, min(self._least, tokens)
        worked_off = under_way * max(target_seconds, ALMOST_UNLOADED * min(self._light, seconds)) / max(seconds, 1e-9)
        if not self._answers:
            self.most_under_way = worked_off
        self.most_under_way += WEIGHT * (worked_off - self.most_under_way)
        if self._answers:
            fixed, each = self._costs()
            expected = fixed + each * tokens
            excess = max(0.0, seconds - expected) / max(expected, 1e-9)
            self._excess += SPREAD_WEIGHT * (min(excess, LARGEST_EXCESS) - self._excess)
            seconds = min(seconds, STALL * expected)
        self._answers += 1
        self._fit(tokens, seconds, max(SPREAD_WEIGHT, 1.0 / self._answers))

    def _fit(self, tokens: float, seconds: float, weight: float) -> None:
        """The means of what was sent and of how long it took, and how they vary together."""
        larger, longer = tokens - self._size, seconds - self._seconds
        self._size += weight * larger
        self._seconds += weight * longer
        self._light = min(self._light, self._seconds)
        if self._varied:
            # Requests of one size tell nothing new of what a token costs: what others told is not forgotten over them.
            weight *= min(1.0, larger**2 / self._varied)
        self._varied += weight * ((1.0 - weight) * larger**2 - self._varied)
        self._varied_together += weight * ((1.0 - weight) * larger * longer - self._varied_together)
