"""Where the law may go from a point: towards the latency target, a little on when it is there, and what a probe tries.

Geometry only: nothing here remembers or judges. No clock, no I/O.
"""

import math
from dataclasses import replace
from typing import Literal

from era_dagster.control.measure import Measurement
from era_dagster.control.point import Point
from era_dagster.control.probes import Probe
from era_dagster.control.target import SMALLEST_SHARE, LatencyTarget

STEP = 1.3
"""How far a probe changes the work; further when the one before it was kept."""
LARGEST_GROWTH, LARGEST_GROWTH_PACED = 2.0, 8.0
"""In one move. At a pace nothing queues: the latency grows no faster than the work."""
NOISY = 0.25
"""The coefficient of variation of latencies from which a few percent of throughput are not seen in a probe."""
TOLERANCE = 0.14
"""A mean latency this close to the target, in ln, is on target."""

Pace = Literal["requests", "items"] | None


def towards_target(
    point: Point, off: float, latency: float, target: LatencyTarget, *, item_tokens: float, pace: Pace
) -> Point:
    """The work that gives the latency aimed at, which is `off` from what it is, in ln, by Little's law.

    Where a request holds a single text and has no room for a second, more work is more requests."""
    growth = LARGEST_GROWTH if pace is None else LARGEST_GROWTH_PACED
    work = point.work * max(SMALLEST_SHARE, min(growth, math.exp(off)))
    if off > 0.0 and not target.allows_another(latency, point.items(item_tokens)):
        requests = int(work / item_tokens)
        more = pace is None and requests > point.concurrency and point.has_single_texts(item_tokens)
        return Point(requests, work) if more else point
    return replace(point, work=work)


def on_target(
    point: Point, off: float, latency: float, target: LatencyTarget, *, item_tokens: float, pace: Pace
) -> Point:
    """Up by a small step, down by shares.

    Above the lowest target others may share the server: clients that grow by the root of what they have and shrink by
    shares come closer to equal shares (binomial congestion control, Bansal and Balakrishnan 2001).
    """
    if off <= -TOLERANCE / 2.0:
        return replace(point, work=point.work * math.exp(off))
    step = 1.0 + min(TOLERANCE, math.sqrt(item_tokens / point.work)) if target.seconds > 1.2 * target.lowest else 1.0
    more = point.grown(step, item_tokens, in_number=pace is None)
    if math.log(more.work / point.work) <= TOLERANCE + off:
        return more
    return replace(point, work=step * point.work) if target.allows_another(latency, point.items(item_tokens)) else point


def probed(
    probe: Probe,
    point: Point,
    held: Measurement,
    target: LatencyTarget,
    *,
    item_tokens: float,
    pace: Pace,
    kept_in_a_row: int,
    untried: bool,
    other_way: bool,
    most_work: float,
    shared: bool,
) -> Point:
    """What `probe` tries from `point`, where `held` was measured; the point itself if there is nothing to try.

    `other_way`: beside a single text a second request did not pay; a second text may."""
    c, work = point.concurrency, point.work
    if pace and probe == "wider":
        return point
    if probe == "up":
        late = target.highest < 1.05 * held.latency < 2.0 * target.highest and not point.is_single(item_tokens)
        if late or (shared and target.is_at_highest):
            return point
        step = STEP ** min(3, 1 + kept_in_a_row)
        if held.latency < target.highest:
            step = min(step, target.highest / held.latency)
        larger = other_way and point.is_single(item_tokens)
        return point.grown(step, item_tokens, in_number=pace is None and not larger)
    if probe == "down":
        return point.shrunk(STEP, item_tokens)
    if probe == "wider":
        # Where answers vary, more work in the new requests shows whether they are worked on: as much as the latency allows.
        room = min(2.0, target.highest / held.latency) if untried and held.cv > NOISY else 1.0
        whole = 0.0 if point.has_single_texts(item_tokens) else 2 * c * item_tokens
        return Point(2 * c, max(work, min(work * room, most_work), whole))
    return Point(max(1, c // 2), work) if target.allows_another(held.latency, point.items(item_tokens)) else point
