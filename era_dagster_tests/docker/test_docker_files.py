"""The container files as far as a machine without containers can check them: they parse, agree with each other, and
Dagster accepts its own. Building the image and starting the services is not tested here."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from dagster import DagsterInstance

from era_dagster.settings import load_settings
from era_dagster.storage.database import with_database

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
OURS = ("code", "webserver", "daemon")


def read(name: str) -> str:
    return (DOCKER / name).read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    return yaml.safe_load(read("docker-compose.yml"))


def test_every_port_is_bound_to_this_computer_only() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_code_server_and_the_database_have_no_password_of_their_own() -> None:
    services = compose()["services"]
    for environment in (services["postgres"]["environment"], services["code"]["environment"]):
        secrets = {name: value for name, value in environment.items() if re.search("PASSWORD|KEY", name)}
        assert secrets
        assert all(re.fullmatch(r"\$\{\w+:[?-].*\}", value) for value in secrets.values())
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    assert ":" not in services["code"]["environment"]["ERA_DATABASE_URL"].split("@")[0].split("//")[1]


def test_every_variable_of_the_compose_file_stands_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+)", read("docker-compose.yml")))
    offered = set(re.findall(r"^(\w+)=", read(".env.example"), flags=re.MULTILINE))
    assert used == offered


def test_the_example_holds_no_secret() -> None:
    values = dict(re.findall(r"^(\w+)=(.*)$", read(".env.example"), flags=re.MULTILINE))
    assert values["POSTGRES_PASSWORD"] == values["ERA_EMBEDDING_API_KEY"] == ""


def test_the_settings_take_the_environment_of_the_code_server() -> None:
    values = dict(re.findall(r"^(\w+)=(.*)$", read(".env.example"), flags=re.MULTILINE))
    environment = {
        name: re.sub(r"\$\{(\w+)(?::[?-]([^}]*))?\}", lambda found: values[found[1]], value)
        for name, value in compose()["services"]["code"]["environment"].items()
    }
    settings = load_settings(environment)
    assert settings.database_url == "postgresql://era@postgres:5432/era"
    assert settings.embedding_provider == "local"
    assert settings.embedding_urls == ()
    assert settings.sources["drop_dir"] == "ERA_DROP_DIR"
    assert settings.sources["model_dir"] == "ERA_MODEL_DIR"


def test_our_services_share_one_image_and_one_environment() -> None:
    services = compose()["services"]
    assert len({services[name]["image"] for name in OURS}) == 1
    assert all(services[name]["environment"] == services["code"]["environment"] for name in OURS)
    assert services["daemon"]["environment"]["DAGSTER_EVENT_BATCH_SIZE"] == "200"


def test_every_service_has_a_health_check_and_every_volume_is_declared() -> None:
    content = compose()
    for name, service in content["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0] if isinstance(volume, str) else None
            if source is not None and not source.startswith("."):
                assert source in content["volumes"], name
            elif source is not None:
                assert (DOCKER / source).is_file()


def test_the_webserver_looks_for_the_code_where_the_code_server_listens() -> None:
    server = yaml.safe_load(read("workspace.yaml"))["load_from"][0]["grpc_server"]
    command = re.search(r"^CMD (\[.*\])$", read("Dockerfile"), flags=re.MULTILINE)
    assert command is not None
    words = yaml.safe_load(command[1])
    assert server["host"] in compose()["services"]
    assert str(server["port"]) == words[words.index("-p") + 1]
    assert words[words.index("-h") + 1] == "0.0.0.0"


def test_the_image_copies_only_what_exists_and_what_docker_may_see() -> None:
    allowed = {line[1:] for line in read("Dockerfile.dockerignore").splitlines() if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (.*)$", read("Dockerfile"), flags=re.MULTILINE)
        for word in line.split()[:-1]
        if not word.startswith("--")
    }
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\w+)$", read("Dockerfile"), flags=re.MULTILINE)
    assert users == ["era"]


@pytest.mark.skipif(os.name == "nt", reason="the embedded server's port is not the containers' there")
def test_dagster_opens_the_containers_instance_on_a_real_postgresql(
    postgres_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS era_dagster")
        connection.execute("DROP ROLE IF EXISTS era")
        connection.execute("CREATE ROLE era LOGIN SUPERUSER")
        connection.execute((DOCKER / "postgres-init.sql").read_bytes())
        # The socket's folder and port stand in for the host name and port of the service.
        monkeypatch.setenv("PGHOST", str(connection.info.host))
        port = connection.info.port
    content = yaml.safe_load(read("dagster.yaml"))
    content["storage"]["postgres"]["postgres_db"]["port"] = port
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setenv("ERA_DAGSTER_POSTGRES_HOST", "")
    environment = compose()["services"]["code"]["environment"]
    monkeypatch.setenv("ERA_DAGSTER_POSTGRES_DB", environment["ERA_DAGSTER_POSTGRES_DB"])
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_runs_count() == 0
        instance.add_dynamic_partitions("book_chapters", ["a-book/0001"])
        assert instance.get_dynamic_partitions("book_chapters") == ["a-book/0001"]
        assert instance.run_retries_enabled
        assert not instance.telemetry_enabled
    with psycopg.connect(with_database(postgres_server, "era_dagster")) as connection:
        tables = {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert {"runs", "event_logs", "alembic_version"} <= tables


def test_the_compose_plugin_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    environment = {**os.environ, "POSTGRES_PASSWORD": "secret", "ERA_EMBEDDING_PROVIDER": "local"}
    command = [docker, "compose", "-f", str(DOCKER / "docker-compose.yml"), "config", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
