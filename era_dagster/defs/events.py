"""Records materializations of chapters in batches.

Dagster's public call, `context.log_event`, costs 11 to 15 ms each: a connection and several statements. Its storage takes
a batch of one asset's materializations in one statement (0.5 ms each), but offers that to its own framework only. This
module is the one place that uses it; where the storage has no batch (or a later release changes it) the public call is used.
See docs/adr/0003-batched-events.md.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster_postgres import PostgresEventLogStorage

# A killed run keeps the marks of everything older than this.
FLUSH_SECONDS = 3.0
# One statement carries at most this many rows.
BATCH = 200


class MaterializationLog:
    """Collects per-chapter materializations of one run and writes them in batches, in the order of the assets."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        order: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._clock = clock
        self._waiting: dict[str, list[dg.AssetMaterialization]] = {name: [] for name in order}
        self._last_flush = clock()

    def add(self, asset: str, partition: str | None, metadata: Mapping[str, Any]) -> None:
        """Note one materialization; it reaches the storage at the next flush."""
        self._waiting[asset].append(
            dg.AssetMaterialization(asset_key=asset, partition=partition, metadata=dict(metadata))
        )

    def flush_if_due(self) -> None:
        """Write what waits when enough time has passed or a batch is full."""
        full = any(len(waiting) >= BATCH for waiting in self._waiting.values())
        if full or self._clock() - self._last_flush >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write everything that waits."""
        for waiting in self._waiting.values():
            for start in range(0, len(waiting), BATCH):
                self._store(waiting[start : start + BATCH])
            waiting.clear()
        self._last_flush = self._clock()

    def _store(self, materializations: list[dg.AssetMaterialization]) -> None:
        storage = self._context.instance.event_log_storage
        if not isinstance(storage, PostgresEventLogStorage):
            for materialization in materializations:
                self._context.log_event(materialization)
            return
        storage.store_event_batch([self._entry(materialization) for materialization in materializations])

    def _entry(self, materialization: dg.AssetMaterialization) -> EventLogEntry:
        execution = self._context.get_step_execution_context()
        event = DagsterEvent(
            event_type_value=DagsterEventType.ASSET_MATERIALIZATION.value,
            job_name=execution.job_name,
            step_handle=execution.step.handle,
            node_handle=execution.step.node_handle,
            step_kind_value=execution.step.kind.value,
            logging_tags=execution.event_tags,
            event_specific_data=StepMaterializationData(materialization),
            message="Materialized.",
            pid=os.getpid(),
        )
        return EventLogEntry(
            user_message="",
            level=logging.DEBUG,
            job_name=execution.job_name,
            run_id=execution.run_id,
            error_info=None,
            timestamp=time.time(),
            step_key=execution.step.key,
            dagster_event=event,
        )
