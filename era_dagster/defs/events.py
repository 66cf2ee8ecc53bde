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
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster_postgres import PostgresEventLogStorage

# A killed run keeps the marks of everything older than this.
FLUSH_SECONDS = 3.0
# One statement carries at most this many rows.
BATCH = 200


class MaterializationLog:
    """Collects per-chapter materializations of one run and writes them in batches, in the order of the assets.

    Writing happens on a thread of its own, so that the event loop goes on; an error of the storage is raised by the next
    call. A context manager: leaving it writes what is left.
    """

    def __init__(
        self,
        context: dg.OpExecutionContext | dg.AssetExecutionContext,
        order: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._clock = clock
        self._waiting: dict[str, list[dg.AssetMaterialization]] = {name: [] for name in order}
        self._last_flush = clock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="era-events")
        self._written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._writer.shutdown(wait=True)

    def add(self, asset: str, partition: str | None, metadata: Mapping[str, Any]) -> None:
        """Note one materialization; it reaches the storage at the next flush."""
        self._waiting[asset].append(
            dg.AssetMaterialization(asset_key=asset, partition=partition, metadata=dict(metadata))
        )

    def flush_if_due(self) -> None:
        """Start to write what waits when enough time has passed or a batch is full; returns at once."""
        full = any(len(waiting) >= BATCH for waiting in self._waiting.values())
        if (full or self._clock() - self._last_flush >= FLUSH_SECONDS) and (
            self._written is None or self._written.done()
        ):
            self._start()

    def flush(self) -> None:
        """Write everything that waits, and wait for it."""
        self._start()
        if self._written is not None:
            self._written.result()
            self._written = None

    def _start(self) -> None:
        batches = [
            waiting[start : start + BATCH]
            for waiting in self._waiting.values()
            for start in range(0, len(waiting), BATCH)
        ]
        for name in self._waiting:
            self._waiting[name] = []
        self._last_flush = self._clock()
        if self._written is not None:
            self._written.result()
            self._written = None
        storage = self._context.instance.event_log_storage
        if isinstance(storage, PostgresEventLogStorage):
            self._written = self._writer.submit(self._store, storage, batches)
        else:
            for materialization in (one for batch in batches for one in batch):
                self._context.log_event(materialization)

    def _store(self, storage: PostgresEventLogStorage, batches: list[list[dg.AssetMaterialization]]) -> None:
        for batch in batches:
            storage.store_event_batch([self._entry(materialization) for materialization in batch])

    def _entry(self, materialization: dg.AssetMaterialization) -> EventLogEntry:
        execution = self._context.get_step_execution_context()
        event = DagsterEvent(
            event_type_value=DagsterEventType.ASSET_MATERIALIZATION.value,
            job_name=execution.job_name,
            step_handle=execution.step.handle,
            node_handle=execution.step.node_handle,
            step_kind_value=execution.step.kind.value,
            logging_tags={},
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
