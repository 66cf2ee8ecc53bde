"""The job the sensor and `era ingest` launch: the five per-chapter assets, chapters given in its config."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from era_dagster.defs.runs import INGEST_JOB, OP_NAME
from era_dagster.domain.stages import STAGES

ingest_job = dg.define_asset_job(
    INGEST_JOB,
    # The run records the checks itself; as a step of their own they would be skipped.
    selection=dg.AssetSelection.assets(*STAGES).without_checks(),
    description="Chapters from the drop folder to tables and minister files. Without chapters in its config: all pending.",
)


def run_config(chapters: Sequence[str]) -> dict[str, Any]:
    """The config of a run of `ingest_job` over these chapters: found by a look at the drop folder, which it spares itself.

    Without chapters: everything pending, after a look.
    """
    return {"ops": {OP_NAME: {"config": {"chapters": list(chapters), "look": not chapters}}}}
