"""What a run counts reaches the database whatever single values look like, and never harms the run."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from era_dagster.pipeline.recorder import Recorder
from era_dagster.storage.errors import error_groups
from era_dagster.storage.telemetry import read_runs, read_totals
from era_dagster.telemetry.catalogue import CHAPTERS, ERRORS
from era_dagster.telemetry.tally import Part
from era_dagster_tests.pipeline.workbench import Workbench, error_note

STORED = Part(CHAPTERS.name, ("stored",))


def recorder(bench: Workbench, *, figures: Callable[[], dict[str, Any]] = dict[str, Any]) -> Recorder:
    settings = replace(bench.settings, metrics_interval_seconds=0.02)
    return Recorder(settings, bench.database.url, "run-1", figures=figures)


def totals(bench: Workbench) -> dict[Part, float]:
    with bench.database.connection() as connection:
        return read_totals(connection)


def ended(bench: Workbench) -> list[tuple[str, dict[str, Any]]]:
    with bench.database.connection() as connection:
        return [(run.state, run.figures) for run in read_runs(connection, running=False, ended=5)]


def wait_for(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 30.0
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("message", "stored"), [("half \x00 a word", "half \\x00 a word"), ("half \ud83d of it", "half \\ud83d of it")]
)
def test_a_message_that_postgresql_does_not_take_is_stored_with_escapes(
    bench: Workbench, message: str, stored: str
) -> None:
    watched = recorder(bench)
    watched.errors.add(error_note(message, "f1"))
    watched.start()
    wait_for(lambda: bool(error_groups(bench.database)))
    watched.errors.add(error_note("later", "f2"))
    watched.tally.add(CHAPTERS, "stored", by=2)
    watched.stop("succeeded")
    assert {group.fingerprint: group.message for group in error_groups(bench.database)} == {"f1": stored, "f2": "later"}
    assert totals(bench)[STORED] == 2
    assert ended(bench) == [("succeeded", {})]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_figure_that_is_not_finite_is_stored_as_nothing(bench: Workbench, value: float) -> None:
    watched = recorder(bench, figures=lambda: {"rate": value, "endpoints": [{"rate": value, "limit": 3}]})
    watched.start()
    watched.tally.add(CHAPTERS, "stored", by=2)
    watched.stop("succeeded")
    assert ended(bench) == [("succeeded", {"rate": None, "endpoints": [{"rate": None, "limit": 3}]})]
    assert totals(bench)[STORED] == 2


@pytest.mark.parametrize("text", ["a\x00b", "a\ud83db"])
def test_a_write_that_the_database_never_takes_is_dropped_with_one_warning_and_later_ones_arrive(
    bench: Workbench, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    asked: list[int] = []

    def figures() -> dict[str, Any]:
        asked.append(1)
        return {"url": text if len(asked) <= 3 else "a"}

    watched = recorder(bench, figures=figures)
    with caplog.at_level(logging.WARNING, logger="era_dagster"):
        watched.start()
        wait_for(lambda: len(asked) > 3)
        watched.errors.add(error_note("later", "f1"))
        watched.tally.add(CHAPTERS, "stored", by=2)
        watched.stop("succeeded")
    assert [getattr(line, "event", "") for line in caplog.records] == ["figures_dropped"]
    assert totals(bench)[STORED] == 2
    assert [group.message for group in error_groups(bench.database)] == ["later"]
    assert ended(bench) == [("succeeded", {"url": "a"})]


def test_a_last_write_that_the_database_never_takes_raises_nothing_into_the_run(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    watched = recorder(bench)
    watched.start()
    wait_for(lambda: bool(bench.rows("SELECT 1 FROM telemetry_runs")))
    with caplog.at_level(logging.WARNING, logger="era_dagster"):
        watched.tally.add(ERRORS, "run", "half \ud83d of it")
        watched.stop("succeeded")
    assert [getattr(line, "event", "") for line in caplog.records] == ["figures_dropped"]


def test_figures_wait_for_a_server_that_takes_no_writes(bench: Workbench, postgres_server: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(bench.database.url)["dbname"]

    def read_only(value: str) -> None:
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}')

    watched = recorder(bench)
    watched.tally.add(CHAPTERS, "stored", by=2)
    read_only("on")
    try:
        watched.start()
        wait_for(lambda: watched._away)
    finally:
        read_only("off")
    watched.stop("succeeded")
    assert totals(bench)[STORED] == 2
    assert [state for state, _ in ended(bench)] == ["succeeded"]
