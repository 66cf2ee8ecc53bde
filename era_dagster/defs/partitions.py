"""The one partition set: a key per chapter, added and removed at runtime."""

import dagster as dg

BOOK_CHAPTERS = "book_chapters"
book_chapters = dg.DynamicPartitionsDefinition(name=BOOK_CHAPTERS)


def add_missing(instance: dg.DagsterInstance, keys: list[str]) -> None:
    """Register the keys that Dagster does not know yet, in the given order."""
    known = set(instance.get_dynamic_partitions(BOOK_CHAPTERS))
    new = [key for key in keys if key not in known]
    if new:
        instance.add_dynamic_partitions(BOOK_CHAPTERS, new)


def forget(instance: dg.DagsterInstance, keys: list[str]) -> None:
    """Remove the keys of retired chapters."""
    if not keys:
        return
    known = set(instance.get_dynamic_partitions(BOOK_CHAPTERS))
    for key in keys:
        if key in known:
            instance.delete_dynamic_partition(BOOK_CHAPTERS, key)
