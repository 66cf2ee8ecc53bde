"""The container files as far as a machine without containers can check them: they parse and agree with each other. What the
containers run is run by test_container_commands; building the image is not tested here."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from era_dagster.settings import load_settings
from era_dagster_tests.docker import compose_file
from era_dagster_tests.docker.compose_file import DOCKER, image_command, interpolated, read

ROOT = Path(__file__).parents[2]
OURS = ("migrate", "code", "webserver", "daemon", "metrics", "worker")
# Ends when it has done its work, so that its exit code is its health.
ONE_SHOT = {"migrate"}


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
    assert values["POSTGRES_PASSWORD"] == values["ERA_EMBEDDING_API_KEY"] == values["ERA_ERROR_WEBHOOK_URL"] == ""


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


def test_every_setting_of_the_env_file_reaches_the_containers() -> None:
    given = {"POSTGRES_PASSWORD": "secret", "ERA_EMBEDDING_PROVIDER": "local", "ERA_DROP_DIR": "/elsewhere"}
    given |= {"ERA_LATENCY_TARGET_SECONDS": "2", "ERA_CHAPTERS_PER_RUN": "50", "ERA_LOG_LEVEL": "DEBUG"}
    for service in OURS:
        settings = load_settings(compose_file.environment(service, given))
        assert settings.latency_target_seconds == 2
        assert (settings.chapters_per_run, settings.log_level) == (50, "DEBUG")
        # What the containers' own folders and database are is not for the file to say.
        assert settings.sources["drop_dir"] == "ERA_DROP_DIR"
        assert str(settings.drop_dir) == "/data/drop"


def test_an_empty_profile_leaves_the_embedding_client_without_a_ceiling() -> None:
    profile = compose()["services"]["code"]["environment"]["ERA_PROFILE"]
    assert load_settings({"ERA_PROFILE": interpolated(profile, {"ERA_PROFILE": "local"})}).embed_concurrency == 2
    assert load_settings({"ERA_PROFILE": interpolated(profile, {"ERA_PROFILE": ""})}).embed_concurrency is None


def test_our_services_share_one_image_and_one_environment() -> None:
    services = compose()["services"]
    assert len({services[name]["image"] for name in OURS}) == 1
    assert all(services[name]["environment"] == services["code"]["environment"] for name in OURS)
    assert services["daemon"]["environment"]["DAGSTER_EVENT_BATCH_SIZE"] == "200"


def test_the_instance_for_workers_is_the_other_one_but_for_the_launcher() -> None:
    usual, workers = (yaml.safe_load(read(name)) for name in ("dagster.yaml", "dagster-celery.yaml"))
    config = workers.pop("run_launcher")["config"]
    assert workers == usual
    # Whoever starts or stops a run opens the same file; what both variables are is the same everywhere.
    for name in ("code", "webserver", "daemon", "worker"):
        service = compose()["services"][name]
        (instance,) = (volume for volume in service["volumes"] if ":/opt/dagster/dagster.yaml" in volume)
        assert (DOCKER / interpolated(instance, {}).split(":")[0]).is_file()
        assert {place["env"] for place in config.values()} <= set(service["environment"])


def test_the_worker_takes_as_many_runs_as_the_queue_lets_go() -> None:
    """Those that waited for a worker for three minutes would be given up."""
    runs = yaml.safe_load(read("dagster-celery.yaml"))["concurrency"]["runs"]["max_concurrent_runs"]
    words = compose()["services"]["worker"]["command"]
    assert interpolated(words[words.index("--concurrency") + 1], {}) == str(runs)


def test_every_service_has_a_health_check_and_every_volume_is_declared() -> None:
    content = compose()
    for name, service in content["services"].items():
        assert name in ONE_SHOT or service["healthcheck"]["test"][0] == "CMD", name
        for volume in service.get("volumes", ()):
            source = interpolated(volume, {}).split(":")[0] if isinstance(volume, str) else None
            if source is not None and not source.startswith("."):
                assert source in content["volumes"], name
            elif source is not None:
                assert (DOCKER / source).is_file()


def test_the_webserver_looks_for_the_code_where_the_code_server_listens() -> None:
    server = yaml.safe_load(read("workspace.yaml"))["load_from"][0]["grpc_server"]
    words = image_command()
    assert server["host"] in compose()["services"]
    assert str(server["port"]) == words[words.index("-p") + 1]
    assert words[words.index("-h") + 1] == "0.0.0.0"


def test_the_image_copies_only_what_exists_and_what_docker_may_see() -> None:
    allowed = {line[1:] for line in read("Dockerfile.dockerignore").splitlines() if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", read("Dockerfile"), flags=re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)


def test_the_image_does_not_run_as_root_and_leaves_its_tools_in_the_first_stage() -> None:
    stages = re.split(r"^FROM ", read("Dockerfile"), flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    assert re.findall(r"^USER (\w+)$", stages[-1], flags=re.MULTILINE) == ["1000"]
    assert "pip install" in stages[0]
    assert "pip install" not in stages[-1]


def test_every_image_that_is_not_ours_is_pinned() -> None:
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", read("Dockerfile"), flags=re.MULTILINE)
    assert base is not None
    assert re.fullmatch(r"python:3\.12\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base[1])
    for name, service in compose()["services"].items():
        if name not in OURS:
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", service["image"]), name
    version = re.search(r"pgvector:(\d+)\.(\d+)\.(\d+)-pg(\d+)", compose()["services"]["postgres"]["image"])
    assert version is not None
    assert tuple(map(int, version.groups()[:3])) >= (0, 8, 4)
    assert int(version[4]) >= 16


def test_the_image_installs_the_projects_dependencies_the_run_launchers_and_what_the_map_needs() -> None:
    line = re.search(r'^RUN python -c "(import tomllib.*)" > requirements.txt', read("Dockerfile"), flags=re.MULTILINE)
    assert line is not None
    done = subprocess.run([sys.executable, "-c", line[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = done.stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert listed == [*project["dependencies"], *extras["kubernetes"], *extras["celery"], *extras["map"]]
    names = [re.split(r"\W*[><=]", name)[0] for name in listed[-4:]]
    assert names == ["dagster-k8s", "dagster-celery", "celery[redis", "scikit-learn"]


def test_services_start_when_what_they_need_is_well_and_are_started_again_when_they_end() -> None:
    services = compose()["services"]
    needs = {name: services[name].get("depends_on", {}) for name in services}
    assert needs["code"] == {
        "postgres": {"condition": "service_healthy"},
        "migrate": {"condition": "service_completed_successfully"},
    }
    assert needs["webserver"] == needs["daemon"] == {"code": {"condition": "service_healthy"}}
    assert "postgres" in needs["migrate"] and "migrate" in needs["metrics"]
    for name, service in services.items():
        assert service["restart"] == ("on-failure" if name in ONE_SHOT else "unless-stopped"), name


def test_the_compose_plugin_accepts_the_file(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    folder = shutil.copytree(DOCKER, tmp_path / "docker")
    (folder / ".env").write_text("POSTGRES_PASSWORD=secret\nERA_EMBEDDING_PROVIDER=local\n", encoding="utf-8")
    command = [docker, "compose", "-f", str(folder / "docker-compose.yml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
