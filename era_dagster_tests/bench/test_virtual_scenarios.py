"""Every scenario of every file, once, against what it expects; and the files themselves."""

import pytest

from era_dagster_tests.bench.draw import DRAWN
from era_dagster_tests.bench.oracle import known, remembered
from era_dagster_tests.bench.scenarios import FOLDER, MEASURES, Scenario, all_scenarios, scenario_from
from era_dagster_tests.bench.score import OURS, controllers_for, measured, misses
from era_dagster_tests.bench.table import held_out

SCENARIOS = all_scenarios()
SEED = 1


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_ends_within_its_expected_ranges(scenario: Scenario) -> None:
    best = known(scenario, remembered())
    score = measured(scenario, controllers_for(scenario, OURS), name=OURS, seed=SEED, oracle_goodput=best.goodput)
    assert not misses(score, {**scenario.expect, **scenario.short}), scenario.intent
    for name in scenario.short:
        assert misses(score, {name: scenario.expect[name]}), f"{name} is reached now: it is short no more"


def test_there_are_at_least_thirty_scenarios_and_each_says_in_one_sentence_what_for() -> None:
    assert len(SCENARIOS) >= 30
    assert all(each.intent.endswith(".") and ". " not in each.intent for each in SCENARIOS)


def test_every_scenario_expects_that_nothing_is_lost_and_something_more() -> None:
    for scenario in SCENARIOS:
        assert scenario.expect["lost"] == (0.0, 0.0)
        assert len(scenario.expect) > 1, scenario.name


def test_every_file_of_the_folder_is_read() -> None:
    files = {path.stem for path in FOLDER.glob("*.json")}
    assert files >= {"steady", "vector", "changing", "faults", "refusals", "texts", "jobs", "clients"}


def test_a_misspelt_measure_or_field_is_refused() -> None:
    with pytest.raises(ValueError, match="ratioo"):
        scenario_from({"name": "x", "intent": "X.", "server": {}, "expect": {"ratioo": [0, 1]}})
    with pytest.raises(TypeError, match="second"):
        scenario_from({"name": "x", "intent": "X.", "server": {}, "second": 3, "expect": {}})


def test_a_missed_range_is_told_with_its_value() -> None:
    scenario = scenario_from(
        {"name": "x", "intent": "X.", "server": {}, "seconds": 5, "expect": {"ratio": [2, 3], "fairness": [0, 1]}}
    )
    score = measured(scenario, controllers_for(scenario, "fixed 8x8"), name="x", seed=1, oracle_goodput=50.0)
    told = misses(score, scenario.expect)
    assert told[0].startswith("ratio is ") and told[0].endswith("expected 2 to 3")
    assert told[1] == "fairness is None, expected 0 to 1"
    assert set(scenario.expect) <= set(MEASURES)


@pytest.mark.parametrize("drawn", DRAWN)
def test_a_drawn_server_is_the_same_for_its_seed_and_another_for_the_next(drawn: str) -> None:
    assert held_out(7, drawn) == held_out(7, drawn)
    assert held_out(7, drawn).course != held_out(8, drawn).course
