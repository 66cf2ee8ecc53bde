"""The code location as a whole: what it holds, and what it does not do while it loads."""

import runpy
from pathlib import Path

import click
import dagster as dg
import pytest
import yaml
from dagster._core.workspace.load import location_origin_from_module_name, location_origins_from_yaml_paths

from era_dagster import definitions
from era_dagster.definitions import build_defs, defs

REPOSITORY = Path(__file__).parents[2]


def test_the_graph_has_the_six_assets_and_their_arrows() -> None:
    graph = build_defs().resolve_asset_graph()
    arrows = {
        key.to_user_string(): sorted(parent.to_user_string() for parent in graph.get(key).parent_keys)
        for key in graph.get_all_asset_keys()
    }
    assert arrows == {
        "chapters": [],
        "chunks": ["chapters"],
        "embeddings": ["chunks"],
        "vector_tables": ["embeddings"],
        "minister_files": ["chapters"],
        "combined_index": ["minister_files", "vector_tables"],
    }


def test_imported_outside_the_materialize_command_the_chapter_assets_are_partitioned() -> None:
    graph = defs.resolve_asset_graph()
    assert graph.get(dg.AssetKey("embeddings")).is_partitioned
    assert not build_defs(everything_pending=True).resolve_asset_graph().get(dg.AssetKey("embeddings")).is_partitioned


@pytest.mark.parametrize("option", ["partition", "partition_range"])
def test_a_partition_that_is_named_by_an_empty_variable_is_not_everything_pending(option: str) -> None:
    """`--partition "$KEY"` in a shell that did not set KEY embedded all there was."""
    for given, partitioned in ((None, False), ("", True)):
        with click.Context(click.Command("materialize"), info_name="materialize") as context:
            context.params = {"partition": None, "partition_range": None, option: given}
            graph = runpy.run_path(definitions.__file__)["defs"].resolve_asset_graph()
        assert graph.get(dg.AssetKey("embeddings")).is_partitioned == partitioned


def test_the_instance_file_in_the_package_is_the_one_of_the_repository() -> None:
    packaged = (REPOSITORY / "era_dagster" / "defs" / "dagster.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(packaged) == yaml.safe_load((REPOSITORY / "dagster.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("workspace", ["workspace.yaml", "docker/workspace.yaml"])
def test_the_commands_of_dagster_and_its_daemon_mean_one_code_location(workspace: str) -> None:
    """`dagster sensor start -m ...` switched on another sensor than the UI shows, and no run that `job launch` queued began."""
    of_the_daemon = location_origins_from_yaml_paths([str(REPOSITORY / workspace)])
    of_a_command = location_origin_from_module_name("era_dagster.definitions", None, None)
    assert [origin.location_name for origin in of_the_daemon] == [of_a_command.location_name]
