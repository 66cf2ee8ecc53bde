"""`python -m era_dagster_tests.bench`: the table of all scenarios under our controller and the laws of the field.

Prints; everything it prints is computed elsewhere. Two processes, since a run is a second of pure Python.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing import Pool

from click import echo

from era_dagster.control.trace import TraceRecord
from era_dagster_tests.bench.draw import DRAWN
from era_dagster_tests.bench.oracle import Best, is_known, known, remember, remembered, search
from era_dagster_tests.bench.scenarios import Scenario, all_scenarios
from era_dagster_tests.bench.score import OURS, Score, controllers_for, measured
from era_dagster_tests.bench.table import CONTROLLERS, HELD_OUT_SECONDS, held_out, rendered, summary

PROCESSES = 2
Job = tuple[Scenario, str, int, Best]


def scored(job: Job) -> Score:
    """One run; by name and data, so that it can be done in another process."""
    scenario, name, seed, best = job
    return measured(scenario, controllers_for(scenario, name), name=name, seed=seed, oracle_goodput=best.goodput)


def _searched(scenario: Scenario) -> tuple[Scenario, Best]:
    return scenario, search(scenario)


def _held_out(asked: tuple[int, str]) -> tuple[Scenario, Best, Score]:
    seed, drawn = asked
    scenario = held_out(seed, drawn)
    best = search(scenario)
    return scenario, best, scored((scenario, OURS, seed, best))


def _renew_oracle(scenarios: Sequence[Scenario], *, everything: bool) -> None:
    """Search for all of these scenarios, or for those of which nothing (any more) is known."""
    kept = remembered()
    sought = [each for each in scenarios if everything or not is_known(each, kept)]
    with Pool(PROCESSES) as pool:
        for scenario, best in pool.imap_unordered(_searched, sought):
            kept[scenario.name] = best
            echo(f"{scenario.name}: {best.concurrency} x {best.batch}, {best.goodput:.1f} texts/s")
            remember(kept)
    names = {scenario.name for scenario in all_scenarios()}
    remember({name: best for name, best in kept.items() if name in names})


def _print_trace(scenario: Scenario, seed: int, best: Best) -> None:
    def line(record: TraceRecord) -> None:
        measures = [
            f"{name} {value:.3g}"
            for name, value in (
                ("x", record.throughput),
                ("l", record.latency_seconds),
                ("target", record.target_seconds),
                ("gain", record.gain),
                ("rate", record.rate),
            )
            if value is not None
        ]
        size = f"{record.concurrency:3d} x {record.batch_items:<3d}"
        echo(f"{record.at:8.2f} {record.mode:9} {size} {record.reason}; {', '.join(measures)}")

    score = measured(scenario, controllers_for(scenario, OURS, line), name=OURS, seed=seed, oracle_goodput=best.goodput)
    echo(json.dumps(asdict(score), indent=1))


def _judge_held_out(first: int, count: int, drawn: str, as_json: bool) -> None:
    with Pool(PROCESSES) as pool:
        found = pool.map(_held_out, [(seed, drawn) for seed in range(first, first + count)], chunksize=1)
    if as_json:
        echo(json.dumps([{"intent": s.intent, "oracle": asdict(b), "score": asdict(c)} for s, b, c in found], indent=1))
        return
    ratios = [score.ratio for _, _, score in found]
    timely = sum(score.p95_seconds <= best.p95_target_seconds for _, best, score in found)
    for scenario, best, score in sorted(found, key=lambda each: each[2].ratio):
        if score.ratio < 0.9 or score.p95_seconds > best.p95_target_seconds:
            echo(
                f"{scenario.name:12} {scenario.intent:14} {score.ratio:.2f} of {best.concurrency} x {best.batch}"
                f" ({best.goodput:.1f}/s); P95 {score.p95_seconds:.2f} s, target {best.p95_target_seconds:.2f} s"
            )
    mean = sum(ratios) / len(ratios)
    echo(f"{count} drawn servers, {HELD_OUT_SECONDS:.0f} s each: mean {mean:.3f}, lowest {min(ratios):.3f}, ", nl=False)
    echo(f"below .80: {sum(ratio < 0.8 for ratio in ratios)}, within the latency target: {timely}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m era_dagster_tests.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="every run as JSON instead of the table")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each scenario (3)")
    parser.add_argument("--scenario", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--only-ours", action="store_true", help="leave the baselines out")
    parser.add_argument("--trace", action="store_true", help="print our decisions in one scenario, seed 1")
    parser.add_argument(
        "--oracle", choices=("stale", "all"), help="search the oracle of what changed, or of everything"
    )
    parser.add_argument("--held-out", type=int, metavar="N", help="judge on N servers drawn at random instead")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="with --held-out: the first one (0)")
    parser.add_argument("--drawn", choices=DRAWN, default="any", help="with --held-out: of which servers (any)")
    given = parser.parse_args(arguments)
    if given.held_out:
        _judge_held_out(given.first, given.held_out, given.drawn, given.json)
        return 0
    scenarios = [each for each in all_scenarios() if not given.scenario or each.name in given.scenario]
    if given.oracle:
        _renew_oracle(scenarios, everything=given.oracle == "all")
        return 0
    kept = remembered()
    try:
        best = {scenario.name: known(scenario, kept) for scenario in scenarios}
    except LookupError as error:
        echo(error, err=True)
        return 1
    if given.trace:
        for scenario in scenarios:
            _print_trace(scenario, 1, best[scenario.name])
        return 0
    names = (OURS,) if given.only_ours else CONTROLLERS
    jobs: list[Job] = [
        (scenario, name, seed, best[scenario.name])
        for scenario in scenarios
        for name in names
        for seed in range(1, given.seeds + 1)
    ]
    with Pool(PROCESSES) as pool:
        scores = pool.map(scored, jobs, chunksize=4)
    if given.json:
        echo(json.dumps([asdict(score) for score in scores], indent=1))
    else:
        echo(rendered(scenarios, scores, best))
        echo(summary(scores, best))
    return 0


if __name__ == "__main__":
    sys.exit(main())
