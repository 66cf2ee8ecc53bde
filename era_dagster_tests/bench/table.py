"""Scores as a table and as a few sentences: what is claimed of the controller, computed from runs."""

from collections.abc import Mapping, Sequence
from statistics import mean

from era_dagster_tests.bench.baselines import BASELINES
from era_dagster_tests.bench.draw import DRAWN
from era_dagster_tests.bench.oracle import Best
from era_dagster_tests.bench.scenarios import Scenario
from era_dagster_tests.bench.score import OURS, Score, misses

CONTROLLERS = (OURS, *BASELINES)
HELD_OUT_SECONDS = 60.0
LATE = 1.05
"""A P95 over the target by no more than this is on target."""


def held_out(seed: int, drawn: str = "any") -> Scenario:
    """A server drawn as one of `DRAWN` as a scenario of which nothing is expected."""
    kind, course, texts = DRAWN[drawn](seed)
    return Scenario(name=f"drawn {seed}", intent=kind, course=course, texts=texts, seconds=HELD_OUT_SECONDS)


def of(scores: Sequence[Score], controller: str, scenario: str | None = None) -> list[Score]:
    """The runs of one controller, of all scenarios or one."""
    return [each for each in scores if each.controller == controller and scenario in (None, each.scenario)]


def mean_ratios(scores: Sequence[Score], controller: str) -> dict[str, float]:
    """The mean over the seeds, by scenario."""
    names = dict.fromkeys(each.scenario for each in scores)
    return {name: mean(each.ratio for each in of(scores, controller, name)) for name in names}


def timely(score: Score, best: Best) -> bool:
    """Whether the 95th percentile kept the target."""
    return score.p95_seconds <= LATE * best.p95_target_seconds


def worth(score: Score, best: Best) -> float:
    """The ratio, less in proportion to how far the P95 is beyond its target: goodput bought with waiting is worth less."""
    return score.ratio * min(1.0, LATE * best.p95_target_seconds / max(score.p95_seconds, 1e-9))


def rendered(scenarios: Sequence[Scenario], scores: Sequence[Score], best: Mapping[str, Best]) -> str:
    """A line for each scenario: mean ratio to the oracle (lowest of ours), P95 in seconds; `!` marks a late P95."""
    controllers = list(dict.fromkeys(each.controller for each in scores))
    lines = [
        f"{'scenario':26}{'oracle':>16}" + "".join(f"{name:>{20 if name == OURS else 13}}" for name in controllers)
    ]
    for scenario in scenarios:
        oracle = best[scenario.name]
        cells = [f"{scenario.name:26}{f'{oracle.concurrency}x{oracle.batch} {oracle.p95_seconds:.2f}s':>16}"]
        for name in controllers:
            runs = of(scores, name, scenario.name)
            ratio, p95 = mean(each.ratio for each in runs), mean(each.p95_seconds for each in runs)
            mark = " " if p95 <= LATE * oracle.p95_target_seconds else "!"
            lowest = f"({min(each.ratio for each in runs):.2f})" if name == OURS else ""
            cells.append(f"{f'{ratio:.2f}{lowest} {p95:5.2f}{mark}':>{20 if name == OURS else 13}}")
        expected = [miss for score in of(scores, OURS, scenario.name) for miss in misses(score, scenario.expect)]
        lines.append("".join(cells) + (f"  <- {expected[0]}" if expected else ""))
    return "\n".join(lines)


def summary(scores: Sequence[Score], best: Mapping[str, Best]) -> str:
    """Per controller: mean and lowest ratio, how often its P95 was in time, its mean worth; then what we fall short of."""
    controllers = list(dict.fromkeys(each.controller for each in scores))
    lines = ["", f"{'':14}{'mean':>8}{'lowest':>8}{'in time':>9}{'worth':>8}{'refused':>9}{'lost':>6}"]
    for name in controllers:
        runs, ratios = of(scores, name), mean_ratios(scores, name)
        in_time = mean(timely(each, best[each.scenario]) for each in runs)
        worths = mean(worth(each, best[each.scenario]) for each in runs)
        refused = mean(each.refused_share for each in runs)
        lines.append(
            f"{name:14}{mean(ratios.values()):8.3f}{min(ratios.values()):8.3f}{in_time:9.0%}{worths:8.3f}{refused:9.1%}"
            f"{sum(each.lost for each in runs):6d}"
        )
    for text, only_timely in (("any baseline", False), ("a baseline that is in time", True)):
        found = shortfalls(scores, best, only_timely=only_timely)
        if found:
            worst = ", ".join(f"{name} {by:+.2f} ({law})" for name, by, law in found[:5])
            lines.append(f"against {text}, where we are furthest behind: {worst}")
    return "\n".join(lines)


def shortfalls(scores: Sequence[Score], best: Mapping[str, Best], *, only_timely: bool) -> list[tuple[str, float, str]]:
    """By scenario, furthest behind first: our mean ratio less that of the best baseline, and which one that is."""
    ours = mean_ratios(scores, OURS)
    found: list[tuple[str, float, str]] = []
    for name, ratio in ours.items():
        rivals = {
            law: mean(each.ratio for each in runs)
            for law in BASELINES
            if (runs := of(scores, law, name)) and (not only_timely or all(timely(each, best[name]) for each in runs))
        }
        if rivals:
            law = max(rivals, key=lambda each: rivals[each])
            found.append((name, ratio - rivals[law], law))
    return sorted(found, key=lambda each: each[1])
