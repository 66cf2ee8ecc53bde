"""The one partition set: a key per chapter, added and removed at runtime."""

from collections.abc import Collection, Sequence

import dagster as dg
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.storage.event_log.schema import DynamicPartitionsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from era_dagster.domain.stages import STAGES, Stage
from era_dagster.storage.drops import KnownChapter

BOOK_CHAPTERS = "book_chapters"
# One statement names at most this many keys.
_BATCH = 500
_UNFINISHED = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]
book_chapters = dg.DynamicPartitionsDefinition(name=BOOK_CHAPTERS)


def add_missing(instance: dg.DagsterInstance, keys: list[str]) -> None:
    """Register the keys that Dagster does not know yet, in the given order."""
    known = set(instance.get_dynamic_partitions(BOOK_CHAPTERS))
    new = [key for key in keys if key not in known]
    if new:
        instance.add_dynamic_partitions(BOOK_CHAPTERS, new)


def forget(instance: dg.DagsterInstance, keys: Sequence[str]) -> None:
    """Remove the keys of retired chapters; not while a backfill goes on, which fails as a whole when one of its keys goes."""
    if not keys or instance.get_backfills(BulkActionsFilter(statuses=_UNFINISHED), limit=1):
        return
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        for key in keys:
            instance.delete_dynamic_partition(BOOK_CHAPTERS, key)
        return
    # What the public call does, for many keys: by itself it makes a connection for each, 20 ms, a minute for a library's.
    table = DynamicPartitionsTable.c
    for start in range(0, len(keys), _BATCH):
        with storage.index_connection() as connection:
            connection.execute(
                DynamicPartitionsTable.delete().where(
                    table.partitions_def_name == BOOK_CHAPTERS, table.partition.in_(keys[start : start + _BATCH])
                )
            )


def left_over(instance: dg.DagsterInstance, known: Collection[str], registered: Sequence[KnownChapter]) -> list[str]:
    """The keys among `known`, read before `registered`, whose chapter was stored once and is retired.

    What a person added by hand was never stored, and stays.
    """
    unregistered = set(known) - {chapter.partition_key for chapter in registered}
    return sorted(unregistered & instance.get_materialized_partitions(dg.AssetKey(STAGES[0]))) if unregistered else []


def left_out(known: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The chapters of one book that lie between the ends of the range `keys` by number, and not in the order of `known`."""
    first, last = keys[0], keys[-1]
    if first.rpartition("/")[0] != last.rpartition("/")[0]:
        return []
    return sorted(key for key in set(known).difference(keys) if first < key < last)


def with_unmarked(
    instance: dg.DagsterInstance,
    known: Collection[str],
    *,
    registered: Sequence[KnownChapter],
    pending: Sequence[KnownChapter],
    stages: Sequence[Stage],
) -> list[KnownChapter]:
    """The pending chapters, and those that are done but that Dagster does not show as such; in the order of `registered`.

    A run that was killed between storing a chapter and recording it leaves such a chapter, and so does a new Dagster
    database, or a partition that somebody deleted (not among the `known` ones). A run over it finds it unchanged and records it.
    """
    marked = set(known).intersection(*(instance.get_materialized_partitions(dg.AssetKey(stage)) for stage in stages))
    keys = {chapter.partition_key for chapter in pending}
    return [chapter for chapter in registered if chapter.partition_key in keys or chapter.partition_key not in marked]
