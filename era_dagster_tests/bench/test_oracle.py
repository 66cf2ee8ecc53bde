"""The remembered oracle is what a search finds, and no fixed client of the table beats it within its latency."""

from pathlib import Path

import pytest

from era_dagster_tests.bench.baselines import Baseline, Fixed
from era_dagster_tests.bench.engine import run
from era_dagster_tests.bench.oracle import SEEDS, Best, Setting, known, remember, remembered, search, tried
from era_dagster_tests.bench.scenarios import Scenario, all_scenarios, scenario_from

BY_NAME = {scenario.name: scenario for scenario in all_scenarios()}
KEPT = remembered()


@pytest.mark.parametrize("name", ["serial_ollama", "job_of_300_by_request", "gpu_large_steps"])
def test_a_new_search_finds_what_is_remembered(name: str) -> None:
    assert search(BY_NAME[name]) == known(BY_NAME[name], KEPT)


def test_every_scenario_has_its_oracle_and_no_oracle_is_left_over() -> None:
    for scenario in BY_NAME.values():
        assert known(scenario, KEPT).goodput > 0
    assert set(KEPT) == set(BY_NAME)


@pytest.mark.parametrize("name", ["four_slots_by_request", "thrash", "queue_limit_sixteen", "job_of_50_parallel"])
@pytest.mark.parametrize(("concurrency", "batch"), [(2, 8), (8, 8), (16, 8), (8, 16)])
def test_no_common_fixed_setting_beats_it_within_its_latency(name: str, concurrency: int, batch: int) -> None:
    scenario, best = BY_NAME[name], known(BY_NAME[name], KEPT)
    setting = Setting(concurrency=concurrency, batch=batch, pace=None)
    outcome = tried(scenario, setting, seconds=scenario.seconds, seeds=SEEDS)
    assert outcome.goodput <= 1.02 * best.goodput or outcome.p95_seconds > best.p95_target_seconds


def test_it_keeps_its_own_latency_target() -> None:
    for name, best in KEPT.items():
        assert best.p95_seconds <= 1.05 * best.p95_target_seconds, name


def test_it_never_gives_more_than_the_server_has() -> None:
    for name, best in KEPT.items():
        scenario = BY_NAME[name]
        tokens, batch = scenario.texts.mean_tokens, max(64, best.batch)
        phases = scenario.course.phases(scenario.seconds)
        most = sum((end - start) * spec.texts_per_second_limit(tokens, batch=batch) for start, end, spec in phases)
        limit = most / scenario.seconds
        bursts = 1.1  # what lies in a bucket at the start, and texts smaller than the mean
        assert scenario.texts.cv > 0 or best.goodput <= bursts * limit, name


def test_a_rate_limited_server_is_paced_just_under_its_true_rate() -> None:
    assert known(BY_NAME["rate_texts_silent"], KEPT).pace == ("texts", pytest.approx(147.0))
    assert known(BY_NAME["rate_requests_seconds"], KEPT).pace == ("requests", pytest.approx(4.9))
    best = known(BY_NAME["rate_texts_silent"], KEPT)
    client = Baseline(Fixed(best.concurrency), batch=best.batch, pace=best.pace)
    scenario = BY_NAME["rate_texts_silent"]
    assert run([client], scenario.course, scenario.texts, seconds=60.0)[0].refusals == 0


def test_a_changed_scenario_is_told_to_search_again() -> None:
    data = {"name": "serial_ollama", "intent": "X.", "server": {"slots": 3}, "expect": {}}
    changed: Scenario = scenario_from(data)
    with pytest.raises(LookupError, match="--oracle"):
        known(changed, KEPT)


def test_what_is_remembered_can_be_read_again(tmp_path: Path) -> None:
    file = tmp_path / "oracle.json"
    remember(KEPT, file)
    assert remembered(file) == KEPT
    assert isinstance(next(iter(remembered(file).values())), Best)
