"""The way to where the law stands: whether a step was harmful, or in vain, is judged when its epoch ends. No clock, no I/O."""

import math
from dataclasses import dataclass

from era_dagster.control.measure import Measurement, doubt
from era_dagster.control.point import Point
from era_dagster.control.probes import HIGH_PRICE

HARM = 0.15
"""Growth is harmful when it costs more ln(throughput) than this, and than three standard errors."""
CLEAR_STEP = 0.25
"""In ln(work): what a smaller step does cannot be told from other news."""
NOT_LOWERED = 0.14
"""In ln(latency): a cut that lowered it by less did not lower it."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where the law came from, and what was measured there."""

    point: Point
    measured: Measurement

    def then(self, later: "Step", work: float) -> "Step":
        """This step and a later one, which goes on to `work`: the same way they are one, since what they cost together
        counts, and a cut goes on where the work stays. Growth is compared with the better throughput; cuts with the latency
        they began at, unless it has clearly become longer."""
        if self.point.work < later.point.work < work:
            return max(self, later, key=lambda each: each.measured.throughput)
        if self.point.work > later.point.work >= work:
            longer = math.log(later.measured.latency / self.measured.latency)
            return Step(self.point, later.measured if longer > 3.0 * self._noise(later.measured) else self.measured)
        return later

    def gain(self, measured: Measurement) -> float:
        """The change of ln(throughput) since."""
        return math.log(measured.throughput / self.measured.throughput)

    def _noise(self, measured: Measurement) -> float:
        return doubt(measured, self.measured)

    def did_harm(self, work: float, measured: Measurement) -> bool:
        """Whether growth to `work` cost far more throughput than noise."""
        return work > self.point.work and self.gain(measured) < -max(HARM, 3.0 * self._noise(measured))

    def paid_little(self, work: float, measured: Measurement) -> bool:
        """Whether growth to `work` gained clearly less than half of what it may."""
        step = math.log(work / self.point.work)
        return step > CLEAR_STEP and self.gain(measured) < 0.5 * step - self._noise(measured)

    def was_in_vain(self, work: float, measured: Measurement) -> bool:
        """Whether a cut to `work` cost throughput and lowered no latency."""
        step = math.log(work / self.point.work)
        lowered = math.log(measured.latency / self.measured.latency)
        cost = HIGH_PRICE * step - self._noise(measured)
        return step < -CLEAR_STEP and self.gain(measured) < cost and lowered > -NOT_LOWERED
