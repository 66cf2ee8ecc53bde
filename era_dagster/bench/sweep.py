"""The best that a fixed client reaches on a scenario: a grid of settings in short runs, the best few measured again.

What an adaptive client is held against: somebody who knew the server beforehand.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from era_dagster.bench.clients import Setting
from era_dagster.bench.measure import Timing, measure
from era_dagster.bench.result import Run
from era_dagster.bench.scenario import Scenario
from era_dagster.bench.simulated import SimulatedProcess

CONCURRENCIES = (1, 2, 4, 8, 16, 24, 32)
BATCHES = (1, 4, 8, 16, 32)
MOST_P95_SECONDS = 0.5
FINALISTS = 3
SHORT = Timing(warm_up_seconds=0.5, seconds=1.5, cool_down_seconds=20.0)


def grid(scenario: Scenario) -> list[Setting]:
    """The settings worth a run: with C x B texts in flight the mean latency is C x B over the throughput (Little's law),
    so that a setting with more than the allowed latency's worth of the server's limit cannot qualify."""
    most = scenario.most_texts_per_second() * MOST_P95_SECONDS
    settings = [Setting(concurrency=c, batch=b) for c in CONCURRENCIES for b in BATCHES]
    return [each for each in settings if each.concurrency * each.batch <= most]


async def best_fixed(
    scenario: Scenario, server: SimulatedProcess, *, timing: Timing, told: Callable[[str], None]
) -> Run | None:
    """The fastest fixed setting whose P95 is within the bound, measured as long as any; None for none."""
    short = replace(SHORT, warm_up_seconds=min(SHORT.warm_up_seconds, timing.warm_up_seconds))
    short = replace(short, seconds=min(SHORT.seconds, timing.seconds))
    runs: list[tuple[Run, Setting]] = []
    for setting in grid(scenario):
        run = await _run(scenario, server, setting, short)
        told(f"{setting} {run.texts_per_second:,.0f} texts/s")
        runs.append((run, setting))
    # Measured again, because the best of many short runs is best by chance, too.
    finalists = [setting for _, setting in ranked(runs)[:FINALISTS]]
    again = ranked([(await _run(scenario, server, setting, timing), setting) for setting in finalists])
    return again[0][0] if again else None


def ranked(runs: Sequence[tuple[Run, Setting]]) -> list[tuple[Run, Setting]]:
    """Those within the latency bound, best first: lost nothing, then the pace to a hundredth of the best, then the lowest
    P95. Not by the ratio, which a server without a limit does not have."""
    fit = [pair for pair in runs if pair[0].p95_seconds is not None and pair[0].p95_seconds <= MOST_P95_SECONDS]
    fastest = max((run.texts_per_second for run, _ in fit), default=0.0) or 1.0

    def key(pair: tuple[Run, Setting]) -> tuple[bool, float, float]:
        run = pair[0]
        return not run.clean, -round(run.texts_per_second / fastest, 2), run.p95_seconds or 0.0

    return sorted(fit, key=key)


async def _run(scenario: Scenario, server: SimulatedProcess, setting: Setting, timing: Timing) -> Run:
    return await measure(
        scenario, server, lambda config: setting.client(config, backlog=0), label=str(setting), timing=timing
    )
