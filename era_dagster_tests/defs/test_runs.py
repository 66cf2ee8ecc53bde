"""Runs that wait, live or were killed: who keeps his chapters, and what the UI is told about the dead."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import dagster as dg
import psycopg
import pytest
from dagster_postgres.utils import DagsterPostgresException

from era_dagster.defs.instance import open_instance
from era_dagster.defs.partitions import BOOK_CHAPTERS
from era_dagster.defs.runs import INGEST_JOB, TAKES_TAG, chapters_of, settle_runs, taking
from era_dagster.domain.errors import StorageError
from era_dagster.settings import load_settings
from era_dagster.storage.database import Database, live_runs
from era_dagster.storage.telemetry import telling_runs
from era_dagster_tests.defs.desk import Desk
from era_dagster_tests.fakes.embedding_server import Fault

STARTED = dg.DagsterRunStatus.STARTED
FAILURE = dg.DagsterRunStatus.FAILURE


def status_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def terminate_connections(desk: Desk) -> None:
    """As a restart of PostgreSQL does."""
    with psycopg.connect(desk.variables["ERA_DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_run_that_has_just_started_keeps_its_chapters(desk: Desk) -> None:
    run_id = desk.waiting_run(["level/0001"], STARTED)
    assert settle_runs(desk.instance, desk.database, now=time.time()).chapters == {"level/0001"}
    assert status_of(desk.instance, run_id) is STARTED


def test_a_run_that_never_opened_its_connection_is_given_up_after_a_grace(desk: Desk) -> None:
    run_id = desk.waiting_run(["level/0001"], STARTED)
    assert settle_runs(desk.instance, desk.database, now=time.time() + 121).chapters == frozenset()
    assert status_of(desk.instance, run_id) is FAILURE


def test_a_run_whose_connection_is_open_lives_however_long_it_takes(desk: Desk) -> None:
    run_id = desk.waiting_run(["level/0001"], STARTED)
    with taking(desk.instance, run_id, ["level/0001"], everything=False):
        with Database(desk.variables["ERA_DATABASE_URL"], pool_size=1, run_id=run_id) as own:
            live_runs(own)
            assert settle_runs(desk.instance, desk.database, now=time.time() + 86_400).chapters == {"level/0001"}
            assert status_of(desk.instance, run_id) is STARTED
        assert settle_runs(desk.instance, desk.database, now=time.time()).chapters == frozenset()
        assert status_of(desk.instance, run_id) is FAILURE


def test_where_dagsters_database_is_away_a_run_ends_with_its_own_trouble(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(run_id: str, tags: dict[str, str]) -> None:
        raise DagsterPostgresException("too many retries for DB connection")

    run_id = desk.waiting_run(["level/0001"], STARTED)
    with pytest.raises(StorageError, match="its own"), taking(desk.instance, run_id, ["level/0001"], everything=False):
        monkeypatch.setattr(desk.instance, "add_run_tags", away)
        raise StorageError("its own", hint="")


def test_a_run_whose_op_is_over_has_time_to_end(desk: Desk) -> None:
    """Between the end of its op and its own, a run holds no connection: a tick in that second failed it after its success."""
    run_id = desk.waiting_run(["level/0001"], STARTED)
    with taking(desk.instance, run_id, ["level/0001"], everything=True):
        pass
    taken = settle_runs(desk.instance, desk.database, now=time.time())
    assert (taken.chapters, taken.everything) == ({"level/0001"}, False)
    assert status_of(desk.instance, run_id) is STARTED
    settle_runs(desk.instance, desk.database, now=time.time() + 121)
    assert status_of(desk.instance, run_id) is FAILURE


def test_a_run_whose_op_ends_while_it_is_looked_at_is_not_taken_for_dead(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.waiting_run(["level/0001"], STARTED)
    held = taking(desk.instance, run_id, ["level/0001"], everything=False)
    held.__enter__()

    def ends_now(database: Database) -> frozenset[str]:
        held.__exit__(None, None, None)
        return live_runs(database)

    monkeypatch.setattr("era_dagster.defs.runs.live_runs", ends_now)
    settle_runs(desk.instance, desk.database, now=time.time())
    assert status_of(desk.instance, run_id) is STARTED


def test_a_run_that_is_executed_again_is_not_taken_for_dead_before_it_has_begun(desk: Desk) -> None:
    """It inherits the tags of the first one, which say that a connection was open: a tick at that moment failed it."""
    first = desk.waiting_run(["level/0001"], FAILURE)
    held = taking(desk.instance, first, ["level/0001"], everything=False)
    held.__enter__()
    ended = desk.instance.get_run_by_id(first)
    assert ended is not None
    again = desk.waiting_run(
        ["level/0001"], STARTED, **{name.replace("/", "__"): tag for name, tag in ended.tags.items()}
    )
    assert settle_runs(desk.instance, desk.database, now=time.time()).chapters == {"level/0001"}
    assert status_of(desk.instance, again) is STARTED


def test_a_run_that_loses_its_connections_while_it_waits_for_the_embedding_server_lives_and_ends_well(
    desk: Desk,
) -> None:
    """PostgreSQL was started again: until the run wrote its next chapter, a tick marked it as failed and started another."""
    desk.drop("level", [1, 2])
    desk.tick()
    desk.server.seconds_per_text = 1.0
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(desk.execute)
        deadline = time.monotonic() + 60
        while not (telling_runs(desk.database, within_seconds=60) and desk.server.batches):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (run,) = desk.instance.get_runs()
        terminate_connections(desk)
        taken = settle_runs(desk.instance, desk.database, now=time.time())
        assert taken.chapters == {"level/0001", "level/0002"}
        assert status_of(desk.instance, run.run_id) is STARTED
        assert ended.result().success
    assert status_of(desk.instance, run.run_id) is dg.DagsterRunStatus.SUCCESS
    assert desk.marked("vector_tables") == {"level/0001", "level/0002"}


def test_a_run_that_tells_nothing_of_itself_is_soon_connected_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ERA_METRICS_INTERVAL_SECONDS=0 it was marked as failed at the next tick, while it went on to its end."""
    monkeypatch.setattr("era_dagster.storage.database._PRESENT_SECONDS", 0.1)
    run_id = desk.waiting_run(["level/0001"], STARTED)
    with Database(desk.variables["ERA_DATABASE_URL"], pool_size=2, run_id=run_id) as own:
        assert run_id in live_runs(own)
        terminate_connections(desk)
        deadline = time.monotonic() + 10
        while run_id not in live_runs(desk.database):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_after_a_restart_of_postgresql_the_runs_of_before_get_time_to_connect_and_to_tell_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was away for half a minute: the first tick after it marked runs as failed that went on to their end."""
    run_id = desk.waiting_run(["level/0001"], STARTED)
    with taking(desk.instance, run_id, ["level/0001"], everything=False):
        sign_of_life(desk, run_id, age=40)
        again_at = time.time()
        monkeypatch.setattr("era_dagster.defs.runs.server_started_at", lambda database: again_at)
        assert settle_runs(desk.instance, desk.database, now=again_at + 119).chapters == {"level/0001"}
        assert status_of(desk.instance, run_id) is STARTED
        assert settle_runs(desk.instance, desk.database, now=again_at + 121).chapters == frozenset()
        assert status_of(desk.instance, run_id) is FAILURE


def sign_of_life(desk: Desk, run_id: str, *, interval: int = 10, age: int = 0, state: str = "running") -> None:
    desk.sql(
        "INSERT INTO telemetry_runs (session_id, run_id, interval_seconds, beat_at, state)"
        " VALUES (gen_random_uuid(), %s, %s, now() - make_interval(secs => %s), %s)",
        *(run_id, interval, age, state),
    )


@pytest.mark.parametrize(
    ("interval", "age", "status"), [(10, 20, STARTED), (10, 40, FAILURE), (100, 90, STARTED), (3600, 130, FAILURE)]
)
def test_a_run_without_a_connection_is_given_up_when_its_sign_of_life_is_too_old(
    desk: Desk, interval: int, age: int, status: dg.DagsterRunStatus
) -> None:
    run_id = desk.waiting_run(["level/0001"], STARTED)
    with taking(desk.instance, run_id, ["level/0001"], everything=False):
        sign_of_life(desk, run_id, interval=interval, age=age)
        settle_runs(desk.instance, desk.database, now=time.time())
        assert status_of(desk.instance, run_id) is status


def test_a_run_that_told_its_end_is_given_up_at_once(desk: Desk) -> None:
    run_id = desk.waiting_run(["level/0001"], STARTED)
    with taking(desk.instance, run_id, ["level/0001"], everything=False):
        sign_of_life(desk, run_id, state="failed")
        settle_runs(desk.instance, desk.database, now=time.time())
        assert status_of(desk.instance, run_id) is FAILURE


def test_a_killed_run_that_leaves_nothing_pending_is_counted_by_the_next_tick(desk: Desk) -> None:
    """Its sign of life grew old, and the alert for it went on, until some next run began: days later, perhaps."""
    sign_of_life(desk, "killed", age=40)
    sign_of_life(desk, "silent", age=20)
    assert desk.asked() == []
    assert desk.sql("SELECT run_id, state FROM telemetry_runs ORDER BY run_id") == [
        ("killed", "killed"),
        ("silent", "running"),
    ]


@pytest.mark.parametrize("name", ["other", INGEST_JOB])
def test_runs_of_other_jobs_are_none_of_our_business(desk: Desk, name: str) -> None:
    """Another project of the same Dagster that has a job `ingest` too: its run was marked as failed after two minutes. Where it
    has partitions, days perhaps, its runs held back the files that a tick renders while nothing is in flight."""

    @dg.job(name=name)
    def other() -> None: ...

    run = desk.instance.create_run_for_job(other, status=STARTED, tags={"dagster/partition": "2026-01-01"})
    taken = settle_runs(desk.instance, desk.database, now=time.time() + 86_400)
    assert (taken.chapters, taken.everything) == (frozenset(), False)
    assert status_of(desk.instance, run.run_id) is STARTED
    assert chapters_of({"ops": {"other": {}}}) == []


def test_a_tick_looks_once_at_a_job_of_another_project_however_many_runs_it_has(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look is a connection to Dagster's database: 300 runs made every tick two seconds longer."""

    @dg.job
    def other() -> None: ...

    for _ in range(3):
        desk.instance.create_run_for_job(other, status=STARTED)
    looks: list[str] = []
    look = desk.instance.get_job_snapshot
    monkeypatch.setattr(desk.instance, "get_job_snapshot", lambda name: looks.append(name) or look(name))
    settle_runs(desk.instance, desk.database, now=time.time() + 86_400)
    assert len(looks) == 1


RANGE = {"dagster__asset_partition_range_start": "level/0001", "dagster__asset_partition_range_end": "level/0002"}


@pytest.mark.parametrize(
    ("status", "tags", "left"),
    [
        (STARTED, {"dagster__partition": "level/0002"}, ["level/0001", "level/0003"]),
        (dg.DagsterRunStatus.STARTING, RANGE, ["level/0003"]),
        (dg.DagsterRunStatus.NOT_STARTED, RANGE, ["level/0001", "level/0002", "level/0003"]),
    ],
)
def test_what_a_persons_run_takes_by_its_partitions_the_sensor_does_not_request(
    desk: Desk, status: dg.DagsterRunStatus, tags: dict[str, str], left: list[str]
) -> None:
    """It did, and both runs embedded the same texts at the same time."""
    desk.drop("level", [1, 2, 3])
    desk.instance.add_dynamic_partitions(BOOK_CHAPTERS, ["level/0001", "level/0002", "level/0003"])
    desk.waiting_run([], status, **tags)
    assert desk.asked() == [left]


def test_a_run_over_a_range_one_end_of_which_has_gone_keeps_no_chapter(desk: Desk) -> None:
    desk.drop("level", [1, 2])
    desk.instance.add_dynamic_partitions(BOOK_CHAPTERS, ["level/0001", "level/0002"])
    desk.waiting_run([], STARTED, **RANGE)
    desk.instance.delete_dynamic_partition(BOOK_CHAPTERS, "level/0002")
    assert desk.asked() == [["level/0001", "level/0002"]]


def test_while_a_run_takes_everything_pending_the_sensor_requests_nothing(desk: Desk) -> None:
    desk.drop("level", [1])
    run_id = desk.waiting_run([], STARTED)
    with taking(desk.instance, run_id, [], everything=True):
        with Database(desk.variables["ERA_DATABASE_URL"], pool_size=1, run_id=run_id) as own:
            live_runs(own)
            assert desk.asked() == []
        assert desk.asked() == [["level/0001"]]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_killed_command_is_shown_as_failed_and_its_chapters_are_pending_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose process was killed stayed "started" for ever, and two of them blocked the run queue."""
    monkeypatch.delenv("DAGSTER_HOME")
    desk.drop("level", [1, 2])
    desk.server.always = Fault(stall=True)
    with open_instance(load_settings(desk.variables)) as shared, command("ingest") as process:
        deadline = time.monotonic() + 100
        while not any(TAKES_TAG in run.tags for run in shared.get_runs()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (run,) = shared.get_runs()
        while run.run_id not in telling_runs(desk.database, within_seconds=30.0):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert settle_runs(shared, desk.database, now=time.time()).chapters == {"level/0001", "level/0002"}
        process.kill()
        process.wait(10)
        while run.run_id in live_runs(desk.database):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        desk.server.always = None
        desk.instance = shared
        assert desk.asked() == []  # it told of itself a moment ago: PostgreSQL may only have been started again
        desk.sql("UPDATE telemetry_runs SET beat_at = beat_at - interval '31 seconds'")
        assert desk.asked() == [["level/0001", "level/0002"]]
        assert status_of(shared, run.run_id) is FAILURE
        assert desk.execute().success
        assert desk.marked("minister_files") == {"level/0001", "level/0002"}


@contextmanager
def command(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`era ...` in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "era_dagster.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
