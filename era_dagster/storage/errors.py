"""Errors by fingerprint: equal ones are one row with a count, the first and the last time, and an example.

Written with the figures of a run (`storage.telemetry`), so that each occurrence is counted once. Whoever tells people of new
groups claims them here first, so that several processes tell each of them once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import class_row

from era_dagster.storage.database import Database

_TELL_AGAIN_SECONDS = 60.0
_UPSERT = """
INSERT INTO error_groups AS g (fingerprint, stage, error_class, message, run_id, partition_key, occurrences, last_run_id)
VALUES (%(fingerprint)s, %(stage)s, %(error_class)s, %(message)s, %(run_id)s, %(partition_key)s, %(occurrences)s, %(run_id)s)
ON CONFLICT (fingerprint) DO UPDATE SET occurrences = g.occurrences + excluded.occurrences,
    last_at = greatest(g.last_at, now()), last_run_id = excluded.last_run_id
"""
_CLAIM = """
UPDATE error_groups SET tell_after = now() + make_interval(secs => %(again)s)
WHERE fingerprint IN (SELECT fingerprint FROM error_groups WHERE told_at IS NULL AND tell_after <= now()
                      ORDER BY first_at LIMIT %(most)s FOR UPDATE SKIP LOCKED)
RETURNING *
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorNote:
    """One kind of error since the last write: how often, and the first message as an example."""

    fingerprint: str
    stage: str
    error_class: str
    message: str
    partition_key: str | None
    occurrences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """All errors with one fingerprint. `message`, `run_id` and `partition_key` are those of the first."""

    fingerprint: str
    stage: str
    error_class: str
    message: str
    run_id: str
    partition_key: str | None
    occurrences: int
    first_at: datetime
    last_at: datetime
    last_run_id: str
    told_at: datetime | None
    tell_after: datetime


def write_errors(connection: psycopg.Connection, run_id: str, errors: Sequence[ErrorNote]) -> None:
    """Add these occurrences to their groups, in the caller's transaction."""
    for error in sorted(errors, key=lambda each: each.fingerprint):
        connection.execute(
            _UPSERT,
            {
                "fingerprint": error.fingerprint,
                "stage": error.stage,
                "error_class": error.error_class,
                "message": error.message,
                "run_id": run_id,
                "partition_key": error.partition_key,
                "occurrences": error.occurrences,
            },
        )


def error_groups(database: Database, *, run_id: str | None = None) -> list[ErrorGroup]:
    """All groups, the one met last first; with `run_id` those that run was the last to meet."""
    with database.connection() as connection, connection.cursor(row_factory=class_row(ErrorGroup)) as cursor:
        return cursor.execute(
            "SELECT * FROM error_groups WHERE %(run_id)s::text IS NULL OR %(run_id)s IN (run_id, last_run_id)"
            " ORDER BY last_at DESC, fingerprint",
            {"run_id": run_id},
        ).fetchall()


def forget_errors(database: Database, fingerprints: Sequence[str]) -> int:
    """Remove these groups (all when none is named), so that the next such error is a new one; returns how many went."""
    with database.connection() as connection:
        return connection.execute(
            "DELETE FROM error_groups WHERE cardinality(%(names)s::text[]) = 0 OR fingerprint = ANY(%(names)s)",
            {"names": list(fingerprints)},
        ).rowcount


def claim_untold(connection: psycopg.Connection, *, most: int) -> list[ErrorGroup]:
    """Groups nobody was told of, the oldest first; they are the caller's to tell for the next minute."""
    with connection.cursor(row_factory=class_row(ErrorGroup)) as cursor:
        return cursor.execute(_CLAIM.encode(), {"again": _TELL_AGAIN_SECONDS, "most": most}).fetchall()


def mark_told(connection: psycopg.Connection, fingerprints: Sequence[str]) -> None:
    """The webhook took these."""
    connection.execute("UPDATE error_groups SET told_at = now() WHERE fingerprint = ANY(%s)", (list(fingerprints),))
