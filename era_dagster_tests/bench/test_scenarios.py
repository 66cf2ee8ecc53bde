"""The scenarios and the account of their texts; no server runs here."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from era_dagster.bench.clients import Setting, setting_from
from era_dagster.bench.result import Run
from era_dagster.bench.scenario import chosen_scenarios, packaged_scenarios, scenario_from
from era_dagster.bench.source import CHECKED_EVERY, Source
from era_dagster.bench.sweep import MOST_P95_SECONDS, grid, ranked
from era_dagster.domain.errors import ConfigurationError
from era_dagster.simulation.spec import course_from
from era_dagster.simulation.vectors import vector_of


def test_every_packaged_scenario_is_a_possible_server_with_an_intent() -> None:
    scenarios = packaged_scenarios()
    assert len({scenario.name for scenario in scenarios}) == len(scenarios) >= 14
    for scenario in scenarios:
        course = course_from(scenario.course(warm_up_seconds=3.0, seconds=8.0))
        assert scenario.intent.endswith(".")
        assert scenario.most_texts_per_second() > 0
        assert all(3.0 <= at <= 11.0 for at, _ in course.changes)


def test_without_names_all_run_but_those_on_request() -> None:
    assert "instant" not in {scenario.name for scenario in chosen_scenarios([])}
    assert [scenario.name for scenario in chosen_scenarios(["instant", "gpu"])] == ["instant", "gpu"]
    with pytest.raises(ConfigurationError, match="no scenario nothing"):
        chosen_scenarios(["nothing"])


def test_texts_have_the_lengths_asked_for_and_no_two_are_equal() -> None:
    texts = Source((100, 300), poison_every=50).take(1000)
    assert len({text.text for text in texts}) == 1000
    assert {len(text.text) for text in texts} == set(range(100, 301))
    assert [text.number for text in texts if "POISON" in text.text] == [n for n in range(1000) if n % 50 == 25]


def test_lost_poisoned_and_mixed_up_texts_are_told_apart() -> None:
    source = Source((200, 200), poison_every=100)
    texts = source.take(200)
    vectors = [np.frombuffer(vector_of(text.text), dtype=np.float32) for text in texts]
    given = [None if text.poison or text.number == 3 else vectors[text.number] for text in texts]
    given[CHECKED_EVERY] = vectors[CHECKED_EVERY + 1]
    source.closed = True
    source.give_back(texts[:190], given[:190])
    assert source.take(1) == []
    assert (source.delivered, source.poison_handed_out, source.poison_missing) == (187, 2, 2)
    assert (source.failed, source.wrong_vectors, source.lost) == (1, 1, 11)


def test_a_sweep_leaves_out_what_cannot_be_fast_enough() -> None:
    scenario = scenario_from({"name": "x", "intent": "y", "server": {"slots": 1, "seconds_per_text": 0.01}})
    settings = grid(scenario)
    assert max(each.concurrency * each.batch for each in settings) <= 100 * MOST_P95_SECONDS
    assert {str(each) for each in settings} >= {"fixed:1x1", "fixed:1x32", "fixed:4x8", "fixed:32x1"}


def test_the_best_setting_on_a_server_without_a_limit_is_the_fastest_one() -> None:
    plain: dict[str, Any] = dict.fromkeys((field.name for field in fields(Run)), 0) | {"ratio": None, "error": None}
    runs = [
        (Run(**plain | {"texts_per_second": pace, "p95_seconds": p95, "lost": lost}), Setting(concurrency=c, batch=1))
        for c, pace, p95, lost in [
            (1, 35.0, 0.01, 0),
            (2, 999.0, 0.3, 0),
            (3, 1000.0, 0.4, 0),
            (4, 2000.0, 0.6, 0),
            (5, 1000.0, 0.1, 1),
        ]
    ]
    assert [setting.concurrency for _, setting in ranked(runs)] == [2, 3, 1, 5]


@pytest.mark.parametrize("words", ["fixed", "fixed:0x1", "fixed:8", "other:1x1", "fixed:8x16x2"])
def test_a_client_that_is_none_is_refused(words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        setting_from(words)
