"""The figures of runs in the database: added up by the runs themselves, read by scrapes and by `era status`.

A write is one transaction that is counted once, however often it is sent. Who writes when is `pipeline.recorder`; why the
figures are here at all is docs/adr/0016-metrics-in-the-database.md.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import orjson
import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from era_dagster.domain.errors import PermanentError, StorageError
from era_dagster.storage.database import Database, driver_errors, live_runs, options_beside
from era_dagster.storage.errors import ErrorNote, write_errors
from era_dagster.telemetry.catalogue import RUNS_ENDED
from era_dagster.telemetry.tally import Part

RunState = Literal["running", "succeeded", "failed", "stopped", "killed"]
# A write must not wait for a locked row or a sick server longer than this; it is sent again later.
_OPTIONS = "-c statement_timeout=5000 -c lock_timeout=5000 -c search_path=public -c timezone=UTC"
_CONNECT_SECONDS = 5
# A run that is alive writes every interval; this many without a sign of it, and no connection: its process is gone.
STALE_INTERVALS = 3.0
_LEAST_STALE_SECONDS = 30.0

_ADD = """
INSERT INTO metric_totals AS t (metric, labels, part, value)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::float8[])
ON CONFLICT (metric, labels, part) DO UPDATE SET value = t.value + excluded.value
"""
# While the server is away nobody can tell anything: what a run of before says is waited for from the server's start.
_STALE = (
    "greatest(beat_at, CASE WHEN started_at < pg_postmaster_start_time() THEN pg_postmaster_start_time() END)"
    " < now() - make_interval(secs => greatest(interval_seconds * %(intervals)s, %(least)s))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureWrite:
    """One write of a run. `number` counts its writes from 1; `parts` and `errors` are what is new since the one before."""

    session_id: uuid.UUID
    run_id: str
    number: int
    interval_seconds: float
    state: RunState
    figures: Mapping[str, Any]
    parts: Mapping[Part, float]
    errors: Sequence[ErrorNote] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """A run as it last told: `age_seconds` since then and `stale` by the database's clock; one that ended is never stale."""

    run_id: str
    state: RunState
    started_at: datetime
    ended_at: datetime | None
    age_seconds: float
    stale: bool
    figures: dict[str, Any] = field(default_factory=dict[str, Any])


def connect_to_tell(url: str, *, autocommit: bool = False) -> psycopg.Connection:
    """A connection of its own, since the run's pool may be busy, or broken; for nothing on it is waited longer than 5 s."""
    return psycopg.connect(
        url,
        autocommit=autocommit,
        connect_timeout=_CONNECT_SECONDS,
        options=options_beside(url, _OPTIONS),
        application_name="era_dagster telemetry",
    )


def write_figures(url: str, write: FigureWrite) -> None:
    """Count one write.

    Sent twice it counts once. Raises `TransientError` or `StorageError` where the same write may be taken later, and
    `PermanentError` for a value that the database never takes. A figure that is not finite is stored as null.
    """
    with _every_refusal(), driver_errors(), connect_to_tell(url) as connection:
        connection.execute(
            "INSERT INTO telemetry_runs (session_id, run_id, interval_seconds) VALUES (%s, %s, %s)"
            " ON CONFLICT (session_id) DO NOTHING",
            (write.session_id, write.run_id, write.interval_seconds),
        )
        counted = connection.execute(
            "UPDATE telemetry_runs SET writes = %(number)s, beat_at = now(), state = %(state)s, figures = %(figures)s,"
            " ended_at = CASE WHEN %(state)s = 'running' THEN NULL ELSE now() END"
            " WHERE session_id = %(session_id)s AND writes = %(number)s - 1",
            {
                "number": write.number,
                "state": write.state,
                "figures": Jsonb(write.figures, dumps=orjson.dumps),
                "session_id": write.session_id,
            },
        ).rowcount
        if counted:
            _add(connection, write.parts)
            write_errors(connection, write.run_id, write.errors)


@contextmanager
def _every_refusal() -> Iterator[None]:
    """What `driver_errors` leaves: values that cannot even be sent, and a server that takes no writes (a standby)."""
    try:
        yield
    except (UnicodeEncodeError, orjson.JSONEncodeError) as error:
        raise PermanentError(f"A value cannot be sent to PostgreSQL: {error}.") from error
    except psycopg.Error as error:
        reason = str(error).partition("\n")[0]
        raise StorageError(f"PostgreSQL refuses to write: {reason}.") from error


def settle_killed(database: Database) -> int:
    """Mark the runs whose process is gone as killed and count them; returns how many. Safe in several processes at once.

    Raises `StorageError` where this account, or the server, does not write.
    """
    alive = live_runs(database)
    with _every_refusal(), database.connection() as connection:
        killed = connection.execute(
            sql.SQL(
                "UPDATE telemetry_runs SET state = 'killed', ended_at = beat_at"
                " WHERE state = 'running' AND NOT run_id = ANY(%(alive)s) AND {}"
            ).format(sql.SQL(_STALE)),
            {"alive": list(alive), "intervals": STALE_INTERVALS, "least": _LEAST_STALE_SECONDS},
        ).rowcount
        if killed:
            _add(connection, {Part(RUNS_ENDED.name, ("killed",)): float(killed)})
    return killed


def telling_runs(database: Database, *, within_seconds: float) -> frozenset[str]:
    """The ids of the runs that gave a sign of life so recently, and as often as they should: they go, connected or not."""
    with database.connection() as connection:
        return frozenset(
            run_id
            for (run_id,) in connection.execute(
                sql.SQL(
                    "SELECT DISTINCT run_id FROM telemetry_runs WHERE state = 'running' AND NOT ({})"
                    " AND beat_at >= now() - make_interval(secs => %(within)s)"
                ).format(sql.SQL(_STALE)),
                {"intervals": STALE_INTERVALS, "least": _LEAST_STALE_SECONDS, "within": within_seconds},
            )
        )


def read_totals(connection: psycopg.Connection) -> dict[Part, float]:
    """The sums over all runs."""
    rows = connection.execute("SELECT metric, labels, part, value FROM metric_totals").fetchall()
    return {Part(metric, tuple(orjson.loads(labels)), part): value for metric, labels, part, value in rows}


def read_runs(connection: psycopg.Connection, *, running: bool = True, ended: int = 0) -> list[RunFigures]:
    """The runs that go now, oldest first, or the `ended` ones that ended last, latest first."""
    chosen = (
        "state = 'running' ORDER BY started_at" if running else "state <> 'running' ORDER BY ended_at DESC LIMIT %(n)s"
    )
    query = sql.SQL(
        "SELECT run_id, state, started_at, ended_at, figures,"
        " extract(epoch FROM now() - beat_at)::float8 AS age_seconds, state = 'running' AND {} AS stale"
        " FROM telemetry_runs WHERE {}"
    ).format(sql.SQL(_STALE), sql.SQL(chosen))
    with connection.cursor(row_factory=class_row(RunFigures)) as cursor:
        values = {"intervals": STALE_INTERVALS, "least": _LEAST_STALE_SECONDS, "n": ended}
        return cursor.execute(query, values).fetchall()


def last_ends(connection: psycopg.Connection) -> dict[str, float]:
    """When the last run of each outcome ended, in seconds since 1970."""
    rows = connection.execute(
        "SELECT state, extract(epoch FROM max(ended_at))::float8 FROM telemetry_runs WHERE state <> 'running' GROUP BY 1"
    )
    return {state: at for state, at in rows.fetchall() if at is not None}


def _add(connection: psycopg.Connection, parts: Mapping[Part, float]) -> None:
    if not parts:
        return
    # In one order in all processes, so that two never wait for each other's rows.
    rows = sorted((part.metric, orjson.dumps(part.labels).decode(), part.part, by) for part, by in parts.items())
    connection.execute(_ADD, tuple(list(column) for column in zip(*rows, strict=True)))
