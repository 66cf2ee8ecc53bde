"""Figures in the database: each write counts once, runs add up, a killed one is counted as such, equal errors are one."""

import uuid
from dataclasses import replace
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from era_dagster.domain.errors import DatabaseUnavailable
from era_dagster.pipeline.scrape import scraper
from era_dagster.settings import Settings
from era_dagster.storage.database import Database
from era_dagster.storage.errors import ErrorNote, claim_untold, error_groups, forget_errors, mark_told
from era_dagster.storage.telemetry import FigureWrite, last_ends, read_runs, read_totals, settle_killed, write_figures
from era_dagster.telemetry import catalogue
from era_dagster.telemetry.tally import Part

PART = Part("era_chapters_total", ("stored",))
NOTE = ErrorNote(
    fingerprint="f1", stage="requests", error_class="EndpointBusy", message="busy", partition_key=None, occurrences=2
)


def write(number: int, **fields: Any) -> FigureWrite:
    values: dict[str, Any] = {
        "session_id": uuid.UUID(int=1),
        "run_id": "run-1",
        "interval_seconds": 10.0,
        "state": "running",
        "figures": {"chapters_done": number},
        "parts": {PART: 5.0},
    }
    return FigureWrite(number=number, **(values | fields))


def totals(database: Database) -> dict[Part, float]:
    with database.connection() as connection:
        return read_totals(connection)


def test_a_write_that_is_sent_again_because_its_answer_was_lost_counts_once(database: Database) -> None:
    for each in (write(1, errors=[NOTE]), write(1, errors=[NOTE]), write(2), write(2)):
        write_figures(database.url, each)
    assert totals(database) == {PART: 10.0}
    assert [group.occurrences for group in error_groups(database)] == [2]


def test_runs_and_their_histograms_add_up(database: Database) -> None:
    for session in (1, 2, 3):
        parts = {Part("era_chapter_seconds", (), "0.5"): 2.0, Part("era_chapter_seconds", (), "sum"): 0.75, PART: 1.0}
        write_figures(database.url, write(1, session_id=uuid.UUID(int=session), parts=parts))
    found = totals(database)
    assert found[Part("era_chapter_seconds", (), "0.5")] == 6.0
    assert found[Part("era_chapter_seconds", (), "sum")] == 2.25
    assert found[PART] == 3.0


def test_a_run_shows_its_last_figures_while_it_goes_and_its_end_after(database: Database) -> None:
    write_figures(database.url, write(1))
    with database.connection() as connection:
        (run,) = read_runs(connection)
    assert (run.state, run.stale, run.figures) == ("running", False, {"chapters_done": 1})
    write_figures(database.url, write(2, state="succeeded"))
    with database.connection() as connection:
        connection.execute("UPDATE telemetry_runs SET beat_at = now() - interval '10 minutes'")
        assert read_runs(connection) == []
        (run,) = read_runs(connection, running=False, ended=5)
        assert last_ends(connection).keys() == {"succeeded"}
    assert run.ended_at is not None
    assert not run.stale


def test_the_silence_of_a_run_counts_from_the_start_of_the_server_that_came_back(database: Database) -> None:
    """While PostgreSQL is away nobody can tell anything: a run that went on was counted as killed half a minute later."""
    write_figures(database.url, write(1, interval_seconds=1e6))
    with database.connection() as connection:
        connection.execute("UPDATE telemetry_runs SET beat_at = now() - interval '5000000 s'")
        assert [run.stale for run in read_runs(connection)] == [True]
        connection.execute("UPDATE telemetry_runs SET started_at = beat_at - interval '1 s'")
        assert [run.stale for run in read_runs(connection)] == [False]
    assert settle_killed(database) == 0


def test_a_run_without_a_sign_of_life_and_without_a_connection_is_counted_as_killed_once(
    database: Database, database_url: str
) -> None:
    write_figures(database.url, write(1))
    write_figures(database.url, write(1, session_id=uuid.UUID(int=2), run_id="alive"))
    assert settle_killed(database) == 0  # it may only be slow
    with database.connection() as connection:
        connection.execute("UPDATE telemetry_runs SET beat_at = now() - interval '10 minutes'")
        assert all(run.stale for run in read_runs(connection))
    with Database(database_url, pool_size=1, run_id="alive") as alive, alive.connection():
        assert [settle_killed(database), settle_killed(database)] == [1, 0]
    assert totals(database)[Part("era_runs_ended_total", ("killed",))] == 1.0
    with database.connection() as connection:
        assert [run.run_id for run in read_runs(connection)] == ["alive"]


def test_a_database_that_takes_no_connection_is_one_plain_error() -> None:
    with pytest.raises(DatabaseUnavailable):
        write_figures("postgresql://u@127.0.0.1:9/none", write(1))


def test_equal_errors_are_one_group_with_a_count_and_the_first_as_its_example(database: Database) -> None:
    write_figures(database.url, write(1, errors=[replace(NOTE, message="first", partition_key="b/0001")]))
    write_figures(
        database.url, write(1, session_id=uuid.UUID(int=2), run_id="run-2", errors=[replace(NOTE, message="2nd")])
    )
    write_figures(database.url, write(2, errors=[replace(NOTE, fingerprint="f2")]))
    latest, group = error_groups(database)
    assert latest.fingerprint == "f2"
    assert (group.occurrences, group.message, group.partition_key) == (4, "first", "b/0001")
    assert (group.run_id, group.last_run_id) == ("run-1", "run-2")
    assert group.first_at < group.last_at
    assert forget_errors(database, ["f1"]) == 1
    assert [each.fingerprint for each in error_groups(database)] == ["f2"]


def test_a_new_group_is_told_by_one_process_only_and_again_when_that_one_failed(database: Database) -> None:
    write_figures(database.url, write(1, errors=[NOTE]))
    with database.connection() as connection:
        assert [group.fingerprint for group in claim_untold(connection, most=5)] == ["f1"]
    with database.connection() as connection:
        assert claim_untold(connection, most=5) == []
        connection.execute("UPDATE error_groups SET tell_after = now()")  # a minute later
        assert len(claim_untold(connection, most=5)) == 1
        mark_told(connection, ["f1"])
        connection.execute("UPDATE error_groups SET tell_after = now()")
        assert claim_untold(connection, most=5) == []


def test_a_role_in_the_url_of_the_database_writes_the_figures_and_is_scraped(
    database: Database, settings: Settings
) -> None:
    """Their connections dropped it: no figure was written, and the page said that the database is down."""
    name = str(conninfo_to_dict(database.url)["dbname"])
    with database.connection() as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN NOINHERIT IN ROLE postgres").format(sql.Identifier(name)))
    theirs = (
        f"{database.url.replace('postgres@', f'{name}@')}&options=-c%20role%3Dpostgres%20-c%20search_path%3Delsewhere"
    )
    write_figures(theirs, write(1))
    found = scraper(settings, theirs)()
    assert found.totals == {PART: 5.0}
    assert (catalogue.DATABASE_UP, (), 1.0) in found.gauges
