"""The batched materializations leave in Dagster's event log what its public call leaves."""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest

from era_dagster.defs.events import MaterializationLog

ASSETS = ("chapters", "chunks")
KEYS = ("book/0001", "book/0002")


def record(instance: dg.DagsterInstance, *, batched: bool) -> str:
    """Materialize two partitions of two assets in a run; returns its id."""
    partitions = dg.DynamicPartitionsDefinition(name="book_chapters")

    @dg.multi_asset(
        specs=[dg.AssetSpec(name, skippable=True, partitions_def=partitions) for name in ASSETS], can_subset=True
    )
    def chapters_and_chunks(context: dg.AssetExecutionContext) -> Iterator[Any]:
        if batched:
            with MaterializationLog(context, ASSETS) as log:
                for key in KEYS:
                    for name in ASSETS:
                        log.add(name, key, {"characters": len(key), "note": "fine"})
        else:
            for name in ASSETS:
                for key in KEYS:
                    context.log_event(
                        dg.AssetMaterialization(name, partition=key, metadata={"characters": len(key), "note": "fine"})
                    )
        yield from ()

    job = dg.define_asset_job("job", selection=list(ASSETS))
    defs = dg.Definitions(assets=[chapters_and_chunks], jobs=[job], executor=dg.in_process_executor)
    result = defs.resolve_job_def("job").execute_in_process(instance=instance)
    assert result.success
    return result.run_id


def seen(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """What the UI and later runs read of it."""
    found: dict[str, Any] = {}
    for name in ASSETS:
        key = dg.AssetKey(name)
        records = [r for r in instance.fetch_materializations(key, limit=100).records if r.run_id == run_id]
        found[name] = [
            (
                r.partition_key,
                {label: value.value for label, value in r.asset_materialization.metadata.items()},
                r.event_log_entry.step_key,
                r.event_log_entry.job_name,
            )
            for r in records
            if r.asset_materialization is not None
        ]
        latest = instance.get_latest_materialization_event(key)
        assert latest is not None
        assert latest.asset_materialization is not None
        found[f"latest {name}"] = (latest.run_id == run_id, latest.asset_materialization.partition)
        found[f"partitions {name}"] = sorted(instance.get_materialized_partitions(key))
    return found


@pytest.fixture
def postgres_instance(new_database_url: Callable[[], str]) -> Iterator[dg.DagsterInstance]:
    url = new_database_url().replace("postgresql://", "postgresql+psycopg2://", 1)
    with dg.instance_for_test(overrides={"storage": {"postgres": {"postgres_url": url}}}) as instance:
        yield instance


def test_a_batch_leaves_the_same_events_as_the_public_call(postgres_instance: dg.DagsterInstance) -> None:
    public = seen(postgres_instance, record(postgres_instance, batched=False))
    batched = seen(postgres_instance, record(postgres_instance, batched=True))
    assert batched == public
    assert public["partitions chunks"] == list(KEYS)
    assert len(public["chapters"]) == 2


def test_on_a_storage_without_batches_the_public_call_is_used() -> None:
    with dg.instance_for_test() as instance:
        run_id = record(instance, batched=True)
        assert seen(instance, run_id)["partitions chapters"] == list(KEYS)
