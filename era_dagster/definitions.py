"""The code location: everything Dagster loads. `build_defs(**overrides)` gives a fresh `Definitions` for tests and `era`.

One trick lives here. `dagster asset materialize --select embeddings` on a partitioned asset is refused by Dagster unless a
partition is given. That command imports this module while it runs, so its parsed options can be seen; when it names no
partition, the same assets are built without partitions and do everything that is pending, with per-chapter events all the
same. See docs/adr/0002-everything-pending.md.
"""

from typing import Any

import click
import dagster as dg

from era_dagster.defs.assets import Progress, build_assets
from era_dagster.defs.checks import checks_job, knowledge_base_checks
from era_dagster.defs.jobs import ingest_job
from era_dagster.defs.redrive import redrive_job
from era_dagster.defs.resources import KnowledgeBaseResource
from era_dagster.defs.sensors import chapter_drop_sensor


def build_defs(
    *,
    everything_pending: bool = False,
    resource_overrides: dict[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> dg.Definitions:
    """Fresh definitions. `everything_pending` builds the chapter assets without partitions."""
    return dg.Definitions(
        assets=build_assets(partitioned=not everything_pending, on_progress=on_progress),
        asset_checks=[knowledge_base_checks],
        jobs=[ingest_job, redrive_job, checks_job],
        sensors=[chapter_drop_sensor],
        resources={"knowledge_base": KnowledgeBaseResource(), **(resource_overrides or {})},
        executor=dg.in_process_executor,
    )


def _materialize_without_partition() -> bool:
    """Whether this import happens inside `dagster asset materialize` that names no partition."""
    context = click.get_current_context(silent=True)
    return (
        context is not None
        and context.info_name == "materialize"
        and "partition_range" in context.params
        # An empty one is not none: it is a variable of the shell that was not set.
        and context.params["partition"] is None
        and context.params["partition_range"] is None
    )


defs = build_defs(everything_pending=_materialize_without_partition())
