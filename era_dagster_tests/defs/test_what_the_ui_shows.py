"""What a person sees of a run in the UI: its figures, plots and tables, why a chapter is missing, and its log lines."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from era_dagster.definitions import build_defs
from era_dagster.defs.assets import ASSET_ORDER, COMBINED_INDEX
from era_dagster.domain.errors import StorageError
from era_dagster.pipeline import ingest
from era_dagster_tests.defs.desk import Desk

SVG = "data:image/svg+xml;base64,"


def values(metadata: Any) -> dict[str, Any]:
    return {name: value.value for name, value in metadata.items()}


def observations(desk: Desk, asset: str) -> list[dg.AssetObservation]:
    records = desk.instance.fetch_observations(dg.AssetKey(asset), limit=10).records
    return [record.asset_observation for record in records if record.asset_observation is not None]


def whole(desk: Desk) -> dict[str, Any]:
    """What the last run left on the unpartitioned asset."""
    event = desk.instance.get_latest_materialization_event(dg.AssetKey(COMBINED_INDEX))
    assert event is not None
    assert event.asset_materialization is not None
    return values(event.asset_materialization.metadata)


def test_a_run_leaves_its_figures_its_histogram_and_its_domains_on_the_whole(desk: Desk) -> None:
    desk.drop("level", [1, 2, 3])
    assert desk.run([]).success
    shown = whole(desk)
    assert (shown["chapters_stored"], shown["items"], shown["dead_letters"], shown["cache_hits"]) == (3, 6, 0, 0)
    assert shown["items_per_second"] > 0
    assert shown["tokens"] > 0
    assert 0 < shown["request_p50_ms"] <= shown["request_p95_ms"] <= shown["request_p99_ms"]
    assert {"retries", "refusals", "requests"} <= shown.keys()
    assert SVG in shown["chunk_lengths"]
    assert "| truth | 3 |" in shown["domain_table"]
    assert (shown["domains"], shown["entries"], shown["indexes_built"]) == (1, 3, 0)
    assert shown["receipt"]["items"]["adds_up"]


def test_a_chapter_shows_what_it_took_and_its_domains(desk: Desk) -> None:
    desk.drop("level", [1])
    assert desk.run([]).success
    found = {}
    for stage in ("chapters", "embeddings"):
        event = desk.instance.get_latest_materialization_event(dg.AssetKey(stage))
        assert event is not None
        assert event.asset_materialization is not None
        found |= values(event.asset_materialization.metadata)
    assert (found["texts"], found["dead_letters"]) == (2, 0)
    assert found["requests"] >= 1
    assert (found["retries"], found["refusals"], found["from_cache"]) == (0, 0, 0)
    assert found["request_p95_ms"] > 0
    # Its texts wait among those of up to 63 other chapters: 0.4 a second was told where the server gave 20.
    assert not [name for name in found if "per_second" in name]
    assert "| truth | 1 |" in found["domains"]


def test_the_files_of_a_chapter_are_shown_with_their_folder_and_its_entries_in_each_domain(desk: Desk) -> None:
    """The page of `minister_files` was the only one without a word of its own."""
    desk.drop("level", [1], domains=["truth", "timing"], rules=["Ask twice."])
    desk.drop("ferry", [1], principles=[])
    assert desk.run([]).success
    shown = {}
    for record in desk.instance.fetch_materializations(dg.AssetKey("minister_files"), limit=10).records:
        assert record.asset_materialization is not None
        shown[record.partition_key] = values(record.asset_materialization.metadata)
    ministers = Path(desk.variables["ERA_DATA_DIR"]) / "ministers"
    domains = shown["level/0001"].pop("domains")
    assert shown == {
        "level/0001": {"files": 10, "entry_domain_rows": 4, "folder": str(ministers)},
        "ferry/0001": {"files": 0, "entry_domain_rows": 0},
    }
    assert "| timing | 2 |" in domains
    assert len(list(ministers.glob("*/*.json"))) == 10


def test_a_run_that_fails_shows_its_figures_and_each_failed_chapter_its_reason_where_it_is_missing(desk: Desk) -> None:
    desk.server.poison.add("level 2")
    desk.drop("level", [1, 2])
    assert not desk.run([]).success
    assert whole(desk)["chapters_failed"] == 1
    assert observations(desk, COMBINED_INDEX) == []
    (run,) = desk.instance.get_runs(limit=1)
    said = [entry.user_message for entry in desk.instance.all_logs(run.run_id)]
    assert [line for line in said if line.startswith("Receipt: ") and "'failed': {'level/0002'" in line]
    (failed,) = observations(desk, "embeddings")
    assert failed.partition == "level/0002"
    assert "could be embedded" in values(failed.metadata)["failure"]
    assert observations(desk, "chapters") == []


def test_a_run_that_could_not_refresh_the_whole_leaves_its_figures_as_an_observation(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.drop("level", [1])

    def fails(*_: object, **__: object) -> None:
        raise StorageError("No space is left.")

    monkeypatch.setattr(ingest, "refresh_combined_index", fails)
    assert not desk.run([]).success
    (seen,) = observations(desk, COMBINED_INDEX)
    assert values(seen.metadata)["chapters_stored"] == 1
    assert desk.instance.get_latest_materialization_event(dg.AssetKey(COMBINED_INDEX)) is None


def test_every_asset_has_a_paragraph_kinds_a_group_and_an_owner() -> None:
    graph = build_defs().resolve_asset_graph()
    for name in ASSET_ORDER:
        node = graph.get(dg.AssetKey(name))
        assert len(node.description or "") > 150
        assert node.kinds
        assert node.group_name == "knowledge_base"
        assert node.owners


def test_both_instance_files_let_the_run_s_lines_into_the_ui() -> None:
    root = Path(__file__).parents[2]
    for file in (root / "dagster.yaml", root / "era_dagster" / "defs" / "dagster.yaml"):
        logs = yaml.safe_load(file.read_text(encoding="utf-8"))["python_logs"]
        assert logs == {"python_log_level": "INFO", "managed_python_loggers": ["era_dagster"]}


def test_a_run_says_that_the_steps_which_dagster_skips_are_done_before_it_skips_them(desk: Desk) -> None:
    """ "Skipping step combined_index due to skipped dependencies" was the last that a good run said."""
    desk.drop("level", [1])
    run = build_defs(everything_pending=True).resolve_implicit_global_asset_job_def()
    done = run.execute_in_process(instance=desk.instance)
    assert done.success
    said = [entry.user_message for entry in desk.instance.all_logs(done.run_id) if entry.user_message]
    (place,) = [place for place, line in enumerate(said) if line.startswith("Done here too: ")]
    assert [line.split()[2] for line in said[place + 1 :] if line.startswith("Skipping step")] == [
        name for name in ("combined_index", "knowledge_base_checks") if name in said[place]
    ]
    assert not any(line.startswith("Skipping step") for line in said[:place])
    # The run of the sensor has no such steps.
    assert not any("skips" in entry.user_message for entry in desk.instance.all_logs(desk.run([]).run_id))
