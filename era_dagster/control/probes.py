"""Which change is tried next, and when: four kinds of probe, paid from a budget of lost throughput.

Knows no measurements and no points; `control.limit` tries, judges and tells. Pure: the caller passes its clock.
"""

import math
from typing import Literal

from era_dagster.control.ceilings import PRICE

Probe = Literal["up", "down", "wider", "narrower"]

REGRET = 0.01
"""The throughput that probing may cost: one that lost much comes again late, one that lost nothing soon."""
LATE_COST = 0.5
"""A probe that missed the latency target counts as so much lost throughput."""
SHORTEST_REST_SECONDS = 2.0
LONGEST_REST_SECONDS = 60.0
FEW_REST_SECONDS = 5.0
"""Where few texts are under way, what more of them did is hardly known, and is seen again after no more than so many times
this as it did not pay."""
FIRST_SECONDS: dict[Probe, float] = {"up": 0.0, "wider": 0.0, "down": 1.0, "narrower": 5.0}
"""After the first waves: what may gain much comes first, what only saves overhead last."""
HIGH_PRICE = 0.75
"""Beyond the latency target only a server that does not queue at all may have more: competing clients stop here."""
WIDER_GAIN = 0.03
NARROWER_LOSS = 0.015
"""More requests for the same work must gain this much; fewer may lose this much, for the overhead they save."""
LITTLE = 0.33
"""More requests that gained less than this of what they may, in ln(throughput), perhaps owe it to a server that became
faster meanwhile."""


def gain_wanted(
    probe: Probe, *, step: float, latency: float, before: float, lowest: float, highest: float, concurrency: int
) -> float:
    """The gain in ln(throughput) above which a probe is kept.

    `step`: the change in ln(work). `latency` and `before`: the mean latency at the probe and before it; `lowest` costs
    nobody anything, `highest` is the most that keeps the latency target. `concurrency` is that of the probe.
    """
    if probe == "up":
        return step * (-0.05 if latency < lowest else PRICE if latency < highest else HIGH_PRICE)
    if probe == "down":
        return 0.1 * step if before > 1.2 * lowest else 0.02
    if probe == "wider":
        return WIDER_GAIN + 0.5 * step
    return WIDER_GAIN if concurrency == 1 else -NARROWER_LOSS


class ProbeSchedule:
    """`running` is the probe under way; `kept_in_a_row` counts those that paid, since the last that did not."""

    def __init__(self) -> None:
        self.running: Probe | None = None
        self.kept_in_a_row = 0
        self.other_way = False
        """Whether the last "up" did not pay: the one after it takes turns, where there are two ways up."""
        self._last: Probe = "up"
        self._gained_little = False
        self._began_at = 0.0
        self._undone: dict[Probe, int] = {"up": 0, "wider": 0, "down": 0, "narrower": 0}
        self._due: dict[Probe, float] = dict(FIRST_SECONDS)
        self._due_of_few: dict[Probe, float] = {"up": math.inf, "wider": math.inf}

    def begin(self, now: float, *, check_width: bool) -> None:
        """The first waves are over. `check_width`: they found a serial server; the first probe makes sure of that."""
        self._due = {probe: now + FIRST_SECONDS[probe] for probe in self._due}
        if check_width:
            self.hasten("wider")

    def hasten(self, probe: Probe) -> None:
        """This one is next, and waits for nothing: there is reason to believe that it pays much."""
        self._due[probe] = -math.inf
        self.kept_in_a_row = 0

    @property
    def urgent(self) -> bool:
        """Whether the next probe waits for nothing."""
        return min(self._due.values()) == -math.inf

    def next(self, now: float, *, held: int, few: bool = False) -> Probe | None:
        """What to try after `held` epochs on target; the last one again if it was kept. None: nothing is due. `few`: few
        texts are under way."""
        again = self.kept_in_a_row > 0
        if few:
            self._due |= {more: min(self._due[more], at) for more, at in self._due_of_few.items()}
        probe = self._last if again else min(self._due, key=lambda each: self._due[each])
        needed = 1 if again or self.urgent else 2
        return probe if held >= needed and self._due[probe] <= now else None

    def is_untried(self, probe: Probe) -> bool:
        """Whether it has not failed since it was last kept."""
        return self._undone[probe] == 0

    def started(self, now: float, probe: Probe) -> None:
        """It is under way."""
        self.running = self._last = probe
        self._began_at = now

    def kept(self, now: float, probe: Probe, *, gain: float, step: float) -> None:
        """It stays. More work, by `step` in ln, that `gain`ed little only cost nothing: no larger step follows. Of more
        requests `step` is their number."""
        self.running = None
        self._gained_little = probe == "wider" and gain < LITTLE * step
        self.kept_in_a_row = 0 if probe == "up" and gain < PRICE * step else self.kept_in_a_row + 1
        self._undone[probe], self._due[probe] = 0, now
        self.other_way = self.other_way and probe != "up"

    def strayed(self) -> None:
        """The latency left the target: where the last probe gained little it was the server that changed, and it is not
        repeated at once."""
        if self._gained_little:
            self.kept_in_a_row = 0

    def undone(self, now: float, probe: Probe, *, gain: float = 0.0, late: bool = False) -> None:
        """It did not pay, or could not be tried; next when what it cost is a small share of the time between."""
        if self.running == "wider" and self.kept_in_a_row:
            # The step was too large; the way was right.
            self.running, self.kept_in_a_row = None, 0
            self._due[probe] = now + SHORTEST_REST_SECONDS
            return
        if probe == "up":
            self.other_way = not self.other_way
        seconds = now - self._began_at if self.running else 0.0
        cost = (-2.0 * min(0.0, gain) + (LATE_COST if late else 0.0)) * seconds
        self.running = None
        self.kept_in_a_row = 0
        self._undone[probe] = min(3, self._undone[probe] + 1)
        rest = max(SHORTEST_REST_SECONDS * self._undone[probe], cost / REGRET)
        self._due[probe] = now + min(LONGEST_REST_SECONDS, rest)
        if probe in self._due_of_few:
            self._due_of_few[probe] = now + FEW_REST_SECONDS * self._undone[probe]

    def dropped(self) -> None:
        """It was overtaken by events."""
        self.running = None
