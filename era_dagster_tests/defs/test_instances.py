"""The two `dagster.yaml`, for one's own computer and for production, each opened by Dagster on a real PostgreSQL."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psycopg
import pytest
import yaml
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from era_dagster.defs import dagster_storage
from era_dagster.defs.dagster_storage import Outage
from era_dagster.defs.failures import as_dagster_failures
from era_dagster.domain.errors import ChaptersFailed, DatabaseUnavailable, StorageError
from era_dagster.settings import load_settings
from era_dagster.storage.database import with_database

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "dagster.yaml"
PRODUCTION = ROOT / "docker" / "dagster.yaml"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the embedded server's port is not the containers' there")


@dg.job
def work() -> None:
    pass


@dg.op
def chapters_fail() -> None:
    with as_dagster_failures():
        raise ChaptersFailed("1 chapter failed.", failures={"a-book/0001": "no vector"})


@dg.job
def fail() -> None:
    chapters_fail()


def run_tags(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return dict(run.tags)


@contextmanager
def opened(file: Path, folder: Path) -> Iterator[dg.DagsterInstance]:
    folder.mkdir()
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file == PRODUCTION:
        content["storage"]["postgres"]["postgres_db"]["port"] = int(os.environ["PGPORT"])
    (folder / "dagster.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        yield instance


@pytest.fixture
def variables(
    postgres_server: str, new_database_url: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What both files take from the environment: a fresh database, by socket folder and port."""
    monkeypatch.setenv("ERA_DATABASE_URL", new_database_url())
    monkeypatch.setenv("ERA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ERA_DAGSTER_POSTGRES_HOST", "")
    monkeypatch.setenv("ERA_DAGSTER_POSTGRES_DB", "era_dagster")
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS era_dagster WITH (FORCE)")
        connection.execute("DROP ROLE IF EXISTS era")
        connection.execute("CREATE ROLE era LOGIN SUPERUSER")
        connection.execute((ROOT / "docker" / "postgres-init.sql").read_bytes())
        monkeypatch.setenv("PGHOST", str(connection.info.host))
        monkeypatch.setenv("PGPORT", str(connection.info.port))


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize("file", [LOCAL, PRODUCTION], ids=["local", "production"])
def test_dagster_takes_the_file_and_what_it_says_holds(file: Path, tmp_path: Path) -> None:
    with opened(file, tmp_path / "dagster_home") as instance:
        assert instance.get_runs_count() == 0
        instance.add_dynamic_partitions("book_chapters", ["a-book/0001"])
        assert instance.get_dynamic_partitions("book_chapters") == ["a-book/0001"]
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        limits: list[Any] = queue.tag_concurrency_limits
        assert [limit["key"] for limit in limits] == ["dagster/backfill"]
        # Backfills leave a slot to everybody else.
        assert 0 < limits[0]["limit"] < queue.max_concurrent_runs
        assert instance.run_monitoring_enabled
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        assert instance.run_retries_enabled == (file == PRODUCTION)


@pytest.mark.usefixtures("variables")
def test_a_database_that_went_away_under_webserver_and_daemon_is_told_with_the_next_step(tmp_path: Path) -> None:
    """`dagster dev` filled the terminal with stack traces none of which said what to do."""
    with opened(LOCAL, tmp_path / "dagster_home"):
        gone = create_engine(f"postgresql+psycopg2://postgres@/era_dagster?host={tmp_path}")
        with pytest.raises(OperationalError, match="Run `era doctor`: it starts an embedded server that was ended"):
            gone.connect()


def test_a_database_that_stays_away_is_tried_again_for_each_thing_no_longer() -> None:
    """A run whose database was killed ended after three minutes: each of its last events waited for twelve seconds."""
    outage = Outage()
    assert not any(outage.refused(at) for at in (0.0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.0))
    assert all(outage.refused(at) for at in (15.0, 16.0, 75.9))
    assert not outage.refused(136.0), "nobody tried meanwhile: it may have been there"
    assert outage.refused(151.0)
    outage.ended()
    assert not outage.refused(152.0)


@pytest.mark.usefixtures("variables")
def test_what_takes_the_place_of_a_connection_that_cannot_be_made_is_tried_no_more_until_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(LOCAL, tmp_path / "dagster_home") as instance:
        gone = create_engine(f"postgresql+psycopg2://postgres@/era_dagster?host={tmp_path}")
        now = [1000.0]
        monkeypatch.setattr(dagster_storage, "time", SimpleNamespace(monotonic=lambda: now[0]))
        for later, error in ((0.0, OperationalError), (8.0, OperationalError), (8.0, DatabaseUnavailable)):
            now[0] += later
            with pytest.raises(error, match="era doctor"):
                gone.connect()
        assert instance.get_runs_count() == 0
        with pytest.raises(OperationalError):
            gone.connect()


def test_a_full_disk_under_dagsters_database_is_no_database_that_cannot_be_reached(database_url: str) -> None:
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg2://", 1))
    full = "DO $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
    with (
        pytest.raises(StorageError, match="refuses to write: could not extend file") as told,
        dagster_storage.storage_errors(),
        engine.connect() as connection,
    ):
        connection.exec_driver_sql(full)
    engine.dispose()
    assert "Free space" in told.value.hint


def test_the_packaged_file_is_the_one_beside_the_workspace() -> None:
    assert LOCAL.read_bytes() == (ROOT / "era_dagster" / "defs" / "dagster.yaml").read_bytes()


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize(
    ("tags", "retried"),
    [({}, "true"), ({"dagster/max_retries": "0"}, "false")],
    ids=["from the UI", "from the sensor, which requests it again itself"],
)
def test_in_production_a_run_whose_process_died_is_retried_once_by_one(
    tags: dict[str, str], retried: str, tmp_path: Path
) -> None:
    with opened(PRODUCTION, tmp_path / "dagster_home") as instance:
        run = instance.create_run_for_job(work, tags=tags)
        instance.report_run_failed(run, "The process of this run is gone.")
        assert run_tags(instance, run.run_id)["dagster/will_retry"] == retried


@pytest.mark.usefixtures("variables")
def test_in_production_a_run_that_ended_with_failed_chapters_is_not_retried(tmp_path: Path) -> None:
    with opened(PRODUCTION, tmp_path / "dagster_home") as instance:
        failed = fail.execute_in_process(instance=instance, raise_on_error=False)
        assert run_tags(instance, failed.run_id)["dagster/will_retry"] == "false"


@pytest.mark.usefixtures("variables")
def test_the_database_beside_ours_is_utf8_and_made_while_somebody_is_connected_to_template1(
    postgres_server: str,
) -> None:
    """On a server set up without a locale it was SQL_ASCII."""
    with psycopg.connect(with_database(postgres_server, "template1")):
        url = dagster_storage.dagster_url(load_settings(os.environ)).replace("+psycopg2", "")
    with psycopg.connect(url) as connection:
        assert connection.info.parameter_status("server_encoding") == "UTF8"


@pytest.mark.usefixtures("variables")
def test_dagsters_tables_stand_in_a_database_of_their_own(postgres_server: str, tmp_path: Path) -> None:
    with opened(PRODUCTION, tmp_path / "dagster_home"):
        pass
    with psycopg.connect(with_database(postgres_server, "era_dagster")) as connection:
        tables = {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert {"runs", "event_logs", "alembic_version"} <= tables
    with psycopg.connect(os.environ["ERA_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT to_regclass('public.event_logs')").fetchone() == (None,)
