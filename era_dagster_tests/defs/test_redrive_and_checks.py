"""Dead letters tried again from Dagster, and the asset checks that every run records."""

from collections.abc import Iterator

import dagster as dg
import pytest

from era_dagster.definitions import build_defs
from era_dagster.defs.checks import checks_job
from era_dagster.defs.redrive import REDRIVE_JOB, REDRIVE_OP
from era_dagster.pipeline.checks import CHECKS
from era_dagster_tests.defs.desk import Desk

LATEST_PLANNED_OR_DONE = 1


def run_job(desk: Desk, name: str, **config: object) -> dg.ExecuteInProcessResult:
    return (
        build_defs()
        .resolve_job_def(name)
        .execute_in_process(instance=desk.instance, run_config=config, raise_on_error=False)
    )


def answers(desk: Desk) -> dict[str, tuple[bool, str]]:
    """What Dagster shows of every check: passed or not, and its sentence."""
    found: dict[str, tuple[bool, str]] = {}
    for check in CHECKS:
        (record,) = desk.instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(dg.AssetKey(check.asset), check.name), limit=LATEST_PLANNED_OR_DONE
        )
        assert record.event is not None
        assert record.event.dagster_event is not None
        data = record.event.dagster_event.asset_check_evaluation_data
        found[check.name] = (data.passed, data.description or "")
    return found


def failing(desk: Desk) -> set[str]:
    return {name for name, (passed, _) in answers(desk).items() if not passed}


def grave(evaluation: dg.AssetCheckEvaluation) -> bool:
    return evaluation.severity is dg.AssetCheckSeverity.ERROR


@pytest.fixture
def poisoned(desk: Desk) -> Iterator[Desk]:
    """Two chapters of one book, each with one entry the server cannot take."""
    desk.server.poison.add("memory")
    desk.drop("level", [1, 2])
    assert desk.run([]).success
    yield desk


def test_a_sound_run_leaves_every_check_green(desk: Desk) -> None:
    desk.drop("level", [1])
    assert desk.run([]).success
    assert failing(desk) == set()


def test_dead_letters_turn_their_checks_red_and_a_redrive_turns_them_green(poisoned: Desk) -> None:
    assert failing(poisoned) == {"dead_letters_are_empty", "first_pass_success_is_99_5_percent"}
    assert "2 texts" in answers(poisoned)["dead_letters_are_empty"][1]
    poisoned.server.poison.clear()
    poisoned.server.batches.clear()
    assert run_job(poisoned, REDRIVE_JOB).success
    assert failing(poisoned) == set()
    assert sorted(text for text in poisoned.server.texts if "memory" in text) == [
        "A dated record beats a good memory, level 1.",
        "A dated record beats a good memory, level 2.",
    ]
    assert not [text for text in poisoned.server.texts if "keeper" in text]
    assert poisoned.sql("SELECT count(*) FROM doctrine_embeddings_all") == [(2,)]
    assert poisoned.sql("SELECT DISTINCT state FROM dead_letters") == [("resolved",)]
    assert poisoned.marked("vector_tables") == {"level/0001", "level/0002"}


def test_a_redrive_takes_only_the_letters_it_names_and_a_second_one_nothing(poisoned: Desk) -> None:
    poisoned.server.poison.clear()
    named = {"ops": {REDRIVE_OP: {"config": {"letters": ["level/0002"]}}}}
    assert run_job(poisoned, REDRIVE_JOB, **named).success
    assert poisoned.sql("SELECT partition_key, state FROM dead_letters ORDER BY 1") == [
        ("level/0001", "open"),
        ("level/0002", "resolved"),
    ]
    assert not run_job(poisoned, REDRIVE_JOB, **named).success
    assert run_job(poisoned, REDRIVE_JOB).success
    poisoned.server.batches.clear()
    assert run_job(poisoned, REDRIVE_JOB).success
    assert poisoned.server.batches == []


def test_a_redrive_passes_over_letters_that_another_run_settled_since_they_were_listed(poisoned: Desk) -> None:
    ids = [str(letter) for (letter,) in poisoned.sql("SELECT dead_letter_id FROM dead_letters ORDER BY partition_key")]
    listed = {"ops": {REDRIVE_OP: {"config": {"letters": ids}}}}
    poisoned.server.poison.clear()
    assert run_job(poisoned, REDRIVE_JOB, ops={REDRIVE_OP: {"config": {"letters": ids[:1]}}}).success
    assert run_job(poisoned, REDRIVE_JOB, **listed).success
    assert poisoned.sql("SELECT DISTINCT state FROM dead_letters") == [("resolved",)]
    poisoned.server.batches.clear()
    assert run_job(poisoned, REDRIVE_JOB, **listed).success
    assert poisoned.server.batches == []


def test_a_redrive_that_fails_again_keeps_its_letters_open_and_counts(poisoned: Desk) -> None:
    assert run_job(poisoned, REDRIVE_JOB).success
    assert poisoned.sql("SELECT state, attempts > 1 FROM dead_letters") == [("open", True), ("open", True)]


def test_the_checks_run_on_demand_and_see_what_was_planted(desk: Desk) -> None:
    desk.drop("level", [1, 2])
    assert desk.run([]).success
    desk.sql("DELETE FROM doctrine_embeddings_all WHERE partition_key = 'level/0002'")
    desk.sql("UPDATE chapter_receipts SET stored = stored - 1 WHERE partition_key = 'level/0001'")
    # As another run leaves it that has stored a chapter and not rendered its domain yet.
    desk.sql("UPDATE minister_domains SET changed_at = clock_timestamp() WHERE domain = 'truth'")
    result = run_job(desk, checks_job.name)
    assert result.success
    assert failing(desk) == {"every_text_has_a_vector", "receipts_add_up", "files_agree_with_tables"}
    assert {each.check_name for each in result.get_asset_check_evaluations() if not each.passed and grave(each)} == {
        "every_text_has_a_vector",
        "receipts_add_up",
    }


def test_a_run_that_stops_records_its_checks_all_the_same(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.drop("level", [1])
    broken = desk.drop("torn", [1])
    broken.write_text('[{"chapter_index": 1,', encoding="utf-8")
    desk.set_age(broken, 60)
    monkeypatch.setenv("ERA_EMBEDDING_URLS", "http://127.0.0.1:9")
    assert not desk.run([]).success
    assert failing(desk) == {"input_is_readable"}
