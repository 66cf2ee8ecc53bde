"""Everything one scrape shows, read from the database in one go; writes nothing, keeps nothing.

Which chapters are pending depends on the settings' stamps: the caller brings them.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import psycopg
from psycopg import sql

from era_dagster.domain.stages import STAGES, Stage
from era_dagster.storage.drops import count_pending
from era_dagster.storage.telemetry import RunFigures, last_ends, read_runs, read_totals
from era_dagster.telemetry import catalogue
from era_dagster.telemetry.catalogue import Metric
from era_dagster.telemetry.exposition import Figures

Gauge = tuple[Metric, tuple[str, ...], float]

_COUNTS = """
SELECT (SELECT count(*) FROM drop_chapters WHERE NOT gone) AS known,
       (SELECT count(*) FROM drop_chapters WHERE failure IS NOT NULL) AS failed,
       (SELECT count(*) FROM dead_letters WHERE state = 'open') AS open,
       (SELECT count(*) FROM dead_letters WHERE state = 'dropped') AS dropped,
       (SELECT count(*) FROM quarantine) AS quarantined,
       (SELECT count(*) FROM error_groups) AS errors,
       count(DISTINCT book_slug) AS books, count(*) AS chapters, coalesce(sum(chunk_count), 0)::bigint AS chunks,
       coalesce(sum(entry_count), 0)::bigint AS entries
FROM doctrine_sources
"""
_DAGSTER_STATUSES = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")


def read_figures(connection: psycopg.Connection, suffixes: Mapping[Stage, str] | None) -> Figures:
    """Sums and gauges of the knowledge base, in one snapshot.

    `suffixes` as in `domain.stages.StampRules`; None: nobody can say which chapters are pending.
    """
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    gauges: list[Gauge] = [
        *run_gauges(read_runs(connection)),
        *_counts(connection),
        *((catalogue.LAST_RUN_END, (state,), at) for state, at in last_ends(connection).items()),
        up(1.0),
        build(),
    ]
    if suffixes is not None:
        pending = count_pending(connection, stages=STAGES, suffixes=suffixes)
        gauges.append((catalogue.CHAPTERS_PENDING, (), float(pending)))
    return Figures(totals=read_totals(connection), gauges=gauges)


def up(value: float) -> Gauge:
    """Whether the database could be read."""
    return catalogue.DATABASE_UP, (), value


def build() -> Gauge:
    """The release."""
    return catalogue.BUILD_INFO, (metadata.version("era-dagster"),), 1.0


def dagster_gauges(connection: psycopg.Connection) -> list[Gauge]:
    """Dagster's unfinished runs by status, from its own table: its Python interface would cost the exporter 100 MB."""
    there = connection.execute("SELECT to_regclass('public.runs') IS NOT NULL").fetchone()
    if not there or not there[0]:
        return []
    rows = connection.execute(
        "SELECT status, count(*) FROM runs WHERE status = ANY(%s) GROUP BY 1", (list(_DAGSTER_STATUSES),)
    ).fetchall()
    counted = dict(rows)
    return [(catalogue.DAGSTER_RUNS, (status.lower(),), float(counted.get(status, 0))) for status in _DAGSTER_STATUSES]


def run_gauges(runs: Sequence[RunFigures]) -> list[Gauge]:
    """What living runs tell of themselves. Those that are stale count as such and tell nothing else."""
    alive = [run for run in runs if not run.stale]
    gauges: list[Gauge] = [
        (catalogue.RUNS, ("running",), float(len(alive))),
        (catalogue.RUNS, ("stale",), float(len(runs) - len(alive))),
        (catalogue.QUEUE_TEXTS, (), sum(float(run.figures.get("queue_texts", 0)) for run in alive)),
        (catalogue.QUEUE_LIMIT, (), sum(float(run.figures.get("queue_limit", 0)) for run in alive)),
    ]
    for run in runs:
        gauges.append((catalogue.RUN_HEARTBEAT, (run.run_id,), run.age_seconds))
    for run in alive:
        for metric, name in (
            (catalogue.RUN_CHAPTERS, "chapters"),
            (catalogue.RUN_CHAPTERS_DONE, "chapters_done"),
            (catalogue.RUN_ITEMS_PER_SECOND, "items_per_second"),
            (catalogue.RUN_SECONDS_LEFT, "seconds_left"),
        ):
            value = run.figures.get(name)
            if value is not None:
                gauges.append((metric, (run.run_id,), float(value)))
    return gauges + _endpoint_gauges([endpoint for run in alive for endpoint in run.figures.get("endpoints", [])])


def _endpoint_gauges(endpoints: Sequence[Mapping[str, Any]]) -> list[Gauge]:
    by_url: dict[str, list[Mapping[str, Any]]] = {}
    for endpoint in endpoints:
        by_url.setdefault(endpoint["url"], []).append(endpoint)
    gauges: list[Gauge] = []
    for url, seen in by_url.items():
        gauges += [
            (catalogue.ENDPOINT_LIMIT, (url,), float(sum(each["limit"] for each in seen))),
            (catalogue.ENDPOINT_IN_FLIGHT, (url,), float(sum(each["in_flight"] for each in seen))),
            (catalogue.ENDPOINT_BATCH, (url,), float(max(each["batch"] for each in seen))),
            (catalogue.ENDPOINT_UP, (url,), float(any(each["mode"] != "down" for each in seen))),
        ]
        rates = [each["rate"] for each in seen]
        if all(rate is not None for rate in rates):
            gauges.append((catalogue.ENDPOINT_RATE, (url,), float(sum(rates))))
    return gauges


def _counts(connection: psycopg.Connection) -> list[Gauge]:
    row = connection.execute(sql.SQL(_COUNTS)).fetchone()
    if row is None:
        return []
    known, failed, letters, dropped, quarantined, errors, books, chapters, chunks, entries = map(float, row)
    stored = {"books": books, "chapters": chapters, "chunks": chunks, "entries": entries}
    return [
        (catalogue.CHAPTERS_KNOWN, (), known),
        (catalogue.CHAPTERS_FAILED, (), failed),
        (catalogue.DEAD_LETTERS, ("open",), letters),
        (catalogue.DEAD_LETTERS, ("dropped",), dropped),
        (catalogue.QUARANTINED, (), quarantined),
        (catalogue.ERROR_GROUPS, (), errors),
        *((catalogue.STORED, (what,), count) for what, count in stored.items()),
    ]
