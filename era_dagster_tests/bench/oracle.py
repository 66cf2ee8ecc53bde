"""The oracle: the best fixed concurrency x batch x pace for a server, found by trying them.

It knows what no client knows, so that its goodput is what a controller is measured against. Only settings whose P95 stays
under the target count: the larger of 0.5 s and 1.3 times the lowest P95 that any setting shows. Where a rate is limited
it paces at .98 of the true rate. What it found is kept in `oracle.json`; `python -m era_dagster_tests.bench --oracle
all` makes that anew.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from era_dagster_tests.bench.baselines import Baseline, Fixed
from era_dagster_tests.bench.engine import run
from era_dagster_tests.bench.scenarios import Scenario

FILE = Path(__file__).parent / "oracle.json"
SLO_SECONDS = 0.5
OVER_LOWEST_P95 = 1.3
PACE_SHARE = 0.98
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
TRIAL_SECONDS = 8.0
"""A server that does not change is tried for so long; the best few settings then get the whole time."""
SEEDS = (1, 2)
FINALISTS = 4
MOST_REQUESTS_PER_SECOND = 300.0
"""Smaller batches than this allows at the server's own limit are not tried: they cost much and win nowhere."""
HOPELESS = 3.0
"""So many times the target, by Little's law at the server's own limit, is not tried."""

Pace = tuple[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A fixed client; `pace`: what is counted, and how many of it a second."""

    concurrency: int
    batch: int
    pace: Pace | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A setting and what it gave, in texts and seconds."""

    setting: Setting
    goodput: float
    p95_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The oracle's answer for one scenario; `fingerprint` tells whether the scenario has changed since."""

    concurrency: int
    batch: int
    pace: Pace | None
    goodput: float
    p95_seconds: float
    p95_target_seconds: float
    fingerprint: str


def tried(scenario: Scenario, setting: Setting, *, seconds: float, seeds: Iterable[int]) -> Outcome:
    """One fixed client alone with the server; means over the seeds."""
    goodputs: list[float] = []
    latencies: list[float] = []
    for seed in seeds:
        client = Baseline(Fixed(setting.concurrency), batch=setting.batch, pace=setting.pace)
        result = run([client], scenario.course, scenario.texts, seconds=seconds, seed=seed)[0]
        goodputs.append(result.goodput)
        latencies.append(result.percentile(0.95))
    return Outcome(setting=setting, goodput=sum(goodputs) / len(goodputs), p95_seconds=sum(latencies) / len(latencies))


def search(scenario: Scenario) -> Best:
    """Try a coarse grid, the neighbours of its best, and the best of all for the whole time."""
    course = scenario.course
    steady = not course.changes and not course.spec.cold_start_seconds and scenario.texts.count is None
    unpaced = not _paces(scenario)
    seconds = min(TRIAL_SECONDS, scenario.seconds) if steady and unpaced else scenario.seconds
    found: dict[Setting, Outcome] = {}
    top = max(1e-9, course.texts_limit(0.0, seconds, scenario.texts.mean_tokens) / seconds)
    for setting in sorted(_grid(scenario), key=lambda each: each.concurrency * each.batch):
        if setting.batch < min(top / MOST_REQUESTS_PER_SECOND, scenario.ceilings.items):
            continue
        waits = setting.concurrency * setting.batch / top if setting.pace is None and steady else 0.0
        if waits < HOPELESS * _target(found.values()):
            found[setting] = tried(scenario, setting, seconds=seconds, seeds=SEEDS[:1])
    for best in _ranked(found.values())[:FINALISTS]:
        for setting in _neighbours(scenario, best.setting):
            if setting not in found:
                found[setting] = tried(scenario, setting, seconds=seconds, seeds=SEEDS[:1])
    target = _target(found.values())
    finalists = [
        tried(scenario, outcome.setting, seconds=scenario.seconds, seeds=SEEDS)
        for outcome in _ranked(found.values())[:FINALISTS]
    ]
    best = max([each for each in finalists if each.p95_seconds <= 1.02 * target] or finalists, key=lambda o: o.goodput)
    return Best(
        concurrency=best.setting.concurrency,
        batch=best.setting.batch,
        pace=best.setting.pace,
        goodput=round(best.goodput, 4),
        p95_seconds=round(best.p95_seconds, 4),
        p95_target_seconds=round(target, 4),
        fingerprint=scenario.fingerprint,
    )


def _target(outcomes: Iterable[Outcome]) -> float:
    lowest = min((each.p95_seconds for each in outcomes), default=math.inf)
    return max(SLO_SECONDS, OVER_LOWEST_P95 * lowest)


def _ranked(outcomes: Iterable[Outcome]) -> list[Outcome]:
    outcomes = list(outcomes)
    target = _target(outcomes)
    return sorted((each for each in outcomes if each.p95_seconds <= target), key=lambda each: -each.goodput)


def _paces(scenario: Scenario) -> set[Pace]:
    """.98 of every rate that is ever limited; of several limits of one moment, each is a candidate."""
    specs = [spec for _, _, spec in scenario.course.phases(scenario.seconds)]
    return {
        (kind, PACE_SHARE * rate)
        for spec in specs
        for kind in ("requests", "texts", "tokens")
        if (rate := getattr(spec, f"{kind}_per_second")) is not None
    }


def _grid(scenario: Scenario) -> Iterator[Setting]:
    ceilings = scenario.ceilings
    paces: list[Pace | None] = [*sorted(_paces(scenario))] or [None]
    for pace in paces:
        for concurrency in sorted({min(each, ceilings.concurrency) for each in CONCURRENCIES}):
            for batch in sorted({min(each, ceilings.items) for each in BATCHES}):
                yield Setting(concurrency=concurrency, batch=batch, pace=pace)


def _neighbours(scenario: Scenario, setting: Setting) -> Iterator[Setting]:
    for c in (0.75, 1.0, 1.25, 1.5):
        for b in (0.75, 1.0, 1.25, 1.5):
            yield Setting(
                concurrency=max(1, min(scenario.ceilings.concurrency, round(c * setting.concurrency))),
                batch=max(1, min(scenario.ceilings.items, round(b * setting.batch))),
                pace=setting.pace,
            )


def remembered(file: Path = FILE) -> dict[str, Best]:
    """What `oracle.json` holds, by the scenario's name."""
    if not file.exists():
        return {}
    data = json.loads(file.read_text())
    return {
        name: Best(**{**best, "pace": None if best["pace"] is None else tuple(best["pace"])})
        for name, best in data.items()
    }


def remember(found: Mapping[str, Best], file: Path = FILE) -> None:
    """Write `oracle.json`, sorted by name, so that a change shows as a small difference."""
    data = {name: asdict(best) for name, best in sorted(found.items())}
    file.write_text(json.dumps(data, indent=1) + "\n")


def is_known(scenario: Scenario, kept: Mapping[str, Best]) -> bool:
    """Whether an answer is remembered for the scenario as it is now."""
    best = kept.get(scenario.name)
    return best is not None and best.fingerprint == scenario.fingerprint


def known(scenario: Scenario, kept: Mapping[str, Best]) -> Best:
    """The remembered answer. Raises `LookupError`, with the command that mends it, if it is missing or stale."""
    if not is_known(scenario, kept):
        command = "python -m era_dagster_tests.bench --oracle stale"
        raise LookupError(f"oracle.json knows nothing of {scenario.name} as it is now: {command}")
    return kept[scenario.name]
