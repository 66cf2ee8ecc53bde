"""What Dagster shows of embedding spaces and of the knowledge base as a whole: which space was filled, and pictures."""

import base64

import dagster as dg
import pytest

from era_dagster.definitions import build_defs
from era_dagster.pipeline.space_build import build_space
from era_dagster.settings import load_settings
from era_dagster.storage.space_switch import promote_space
from era_dagster_tests.defs.desk import Desk
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving


def metadata(desk: Desk, asset: str) -> dict[str, object]:
    """The metadata of the asset's latest materialization."""
    event = desk.instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None and event.asset_materialization is not None
    return {name: entry.value for name, entry in event.asset_materialization.metadata.items()}


def svg(picture: object) -> str:
    head, _, code = str(picture).removesuffix(")").partition(";base64,")
    assert head.endswith("(data:image/svg+xml")
    return base64.b64decode(code).decode("utf-8")


def test_a_materialization_names_the_space_it_filled_and_a_run_with_the_old_model_is_refused_with_the_way_out(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.drop("level", [1, 2])
    assert desk.run([]).success
    assert str(metadata(desk, "vector_tables")["space"]).startswith("1: test-model (16 dimensions")
    assert metadata(desk, "combined_index")["space"] == metadata(desk, "vector_tables")["space"]

    new = FakeEmbeddingServer(model="new-model", dimension=24)
    with serving(new) as url:
        named = {"ERA_EMBEDDING_MODEL": "new-model", "ERA_EMBEDDING_URLS": url}
        build_space(load_settings(desk.variables | named), desk.database)
        promote_space(desk.database, 2)
        desk.drop("dock", [1])
        result = desk.run([])
        assert not result.success
        (failure,) = result.get_step_failure_events()
        said = str(failure.step_failure_data.user_failure_data)
        assert "new-model (24 dimensions" in said
        assert "test-model is configured" in said
        assert "era spaces promote" in said
        for name, value in named.items():
            monkeypatch.setenv(name, value)
        assert desk.run([]).success
    assert str(metadata(desk, "vector_tables")["space"]).startswith("2: new-model (24 dimensions")


def test_the_totals_show_the_domains_and_by_themselves_a_map(desk: Desk) -> None:
    desk.drop("level", [1, 2, 3, 4, 5, 6])
    assert desk.run([]).success
    assert "truth" in svg(metadata(desk, "combined_index")["entries_by_domain"])
    job = (
        build_defs().resolve_implicit_global_asset_job_def().get_subset(asset_selection={dg.AssetKey("combined_index")})
    )
    assert job.execute_in_process(instance=desk.instance).success
    shown = metadata(desk, "combined_index")
    assert "6 entries of 1 domains" in svg(shown["map"])
    assert "truth" in svg(shown["entries_by_domain"])
    assert shown["entries"] == 6


def test_a_map_that_cannot_be_drawn_says_why_and_fails_nothing(desk: Desk) -> None:
    desk.drop("level", [1])
    assert desk.run([]).success
    job = (
        build_defs().resolve_implicit_global_asset_job_def().get_subset(asset_selection={dg.AssetKey("combined_index")})
    )
    assert job.execute_in_process(instance=desk.instance).success
    assert "1 entries with vectors; a map needs 5" in str(metadata(desk, "combined_index")["map"])
