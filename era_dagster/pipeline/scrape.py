"""What the exporter reads at each scrape. A database that is away gives a page that says so, never an error.

Between the storage, which reads, and `era metrics`, which serves.
"""

import logging
from collections.abc import Callable
from contextlib import suppress

import psycopg

from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable, EraError, StorageError
from era_dagster.pipeline.ingest import stamp_rules
from era_dagster.settings import Settings
from era_dagster.storage.database import Database, checked_address, driver_errors, options_beside, with_database
from era_dagster.storage.migrations import migrate
from era_dagster.storage.scrape import Gauge, build, dagster_gauges, read_figures, up
from era_dagster.storage.telemetry import settle_killed
from era_dagster.telemetry.exposition import Figures

_log = logging.getLogger("era_dagster.metrics")
_CONNECT_SECONDS = 3
# A scrape that takes longer than Prometheus waits is of no use.
_OPTIONS = "-c statement_timeout=8000 -c search_path=public,vectors -c timezone=UTC"


def scraper(settings: Settings, url: str) -> Callable[[], Figures]:
    """A function that reads all figures; each call opens its own connection, so that it outlives any outage.

    The first call that reaches the database brings the schema up to date: it may have been away when the exporter began.
    While the settings cannot say which chapters are pending (another model than the database holds, an alias table that
    cannot be read) the page leaves those out, and the log says why, once for each reason.
    """
    current = False
    told = ""

    def read() -> Figures:
        nonlocal current, told
        try:
            with Database(url, pool_size=1, longest_wait_seconds=_CONNECT_SECONDS) as database:
                if not current:
                    migrate(url)
                    current = True
                try:
                    suffixes, told = stamp_rules(settings, database).suffixes, ""
                except ConfigurationError as error:
                    suffixes, before, told = None, told, str(error)
                    if told != before:
                        _log.warning("The metrics cannot tell how many chapters are pending: %s", told)
                # Whoever may only read, or finds it locked, leaves it to the sensor and to runs.
                with suppress(StorageError, DatabaseUnavailable):
                    settle_killed(database)
            with driver_errors(), _connect(url) as connection:
                found = read_figures(connection, suffixes)
        except EraError:
            return Figures(gauges=[up(0.0), build()])
        return Figures(totals=found.totals, gauges=[*found.gauges, *_dagster(settings, url)])

    return read


def _dagster(settings: Settings, url: str) -> list[Gauge]:
    """Dagster's runs; nothing where its database is not there yet, or another than ours to see."""
    try:
        with driver_errors():
            with _connect(url) as connection:
                name = connection.info.dbname
            own = settings.dagster_database_url
            at = checked_address(own, "ERA_DAGSTER_DATABASE_URL") if own else with_database(url, f"{name}_dagster")
            with _connect(at) as connection:
                return dagster_gauges(connection)
    except EraError:
        return []


def _connect(url: str) -> psycopg.Connection:
    return psycopg.connect(
        url,
        connect_timeout=_CONNECT_SECONDS,
        options=options_beside(url, _OPTIONS),
        application_name="era_dagster metrics",
    )
