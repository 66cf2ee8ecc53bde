"""The files for Kubernetes as far as a machine without a cluster can check them: they parse, name the same things, say the same
as the container files, and our settings take what the ConfigMap gives. No cluster and no Helm is used here."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from era_dagster.settings import SECRETS, load_settings
from era_dagster_tests.docker import compose_file

FOLDER = Path(__file__).parents[2] / "kubernetes"
# Dagster's own, and what the image's dagster.yaml asks for: no settings of ours.
IN_THE_CLUSTER = {"DAGSTER_EVENT_BATCH_SIZE", "ERA_DAGSTER_POSTGRES_HOST", "ERA_DAGSTER_POSTGRES_DB"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def values() -> dict[str, Any]:
    return documents("values.yaml")[0]


def manifests() -> list[dict[str, Any]]:
    return [document for name in ("settings.yaml", "data.yaml", "metrics.yaml") for document in documents(name)]


def code() -> dict[str, Any]:
    deployments = values()["dagster-user-deployments"]["deployments"]
    assert len(deployments) == 1
    return deployments[0]


def metrics_pod() -> dict[str, Any]:
    return next(document for document in manifests() if document["kind"] == "Deployment")["spec"]["template"]


def test_production_is_configured_the_same_on_one_host_and_in_a_cluster() -> None:
    host = yaml.safe_load(compose_file.read("dagster.yaml"))
    found = values()
    daemon = found["dagsterDaemon"]
    queue = daemon["runCoordinator"]["config"]["queuedRunCoordinator"]
    assert host["concurrency"]["runs"] == {
        "max_concurrent_runs": queue["maxConcurrentRuns"],
        "tag_concurrency_limits": queue["tagConcurrencyLimits"],
    }
    monitoring = daemon["runMonitoring"]
    assert host["run_monitoring"] == {
        "enabled": monitoring["enabled"],
        "start_timeout_seconds": monitoring["startTimeoutSeconds"],
        "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
        "poll_interval_seconds": monitoring["pollIntervalSeconds"],
        "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
    }
    retries = daemon["runRetries"]
    assert host["run_retries"] == {
        "enabled": retries["enabled"],
        "max_retries": retries["maxRetries"],
        "retry_on_asset_or_op_failure": retries["retryOnAssetOrOpFailure"],
    }
    ticks = found["retention"]["sensor"]["purgeAfterDays"]
    assert host["retention"]["sensor"]["purge_after_days"] == {k: v for k, v in ticks.items() if k != "started"}
    assert host["python_logs"] == {
        "python_log_level": found["pythonLogs"]["pythonLogLevel"],
        "managed_python_loggers": found["pythonLogs"]["managedPythonLoggers"],
    }
    assert host["telemetry"] == found["telemetry"]
    assert host["nux"] == found["additionalInstanceConfig"]["nux"]
    assert host["storage"]["postgres"]["postgres_db"]["scheme"] == found["postgresql"]["postgresqlScheme"]


def test_our_settings_take_the_config_map_and_no_secret_is_in_it() -> None:
    data: dict[str, str] = documents("settings.yaml")[0]["data"]
    assert all(isinstance(value, str) for value in data.values())
    settings = load_settings(data)
    used = set(settings.sources.values())
    assert set(data) - used == IN_THE_CLUSTER
    assert settings.database_url == "postgresql://era@postgres.example.internal:5432/era"
    for name in SECRETS - {"database_url"}:
        assert f"ERA_{name.upper()}" not in data
    drop, models = settings.drop_dir.as_posix(), settings.model_dir.as_posix()
    mounted = code()["volumeMounts"][0]["mountPath"]
    assert drop.endswith(f"{mounted}/drop") and models.endswith(f"{mounted}/models")


def test_commands_in_the_code_servers_pod_find_the_database_that_the_chart_gives_to_the_others() -> None:
    """The chart mounts its dagster.yaml into all pods but that one: there the image's is read, with these variables."""
    data: dict[str, str] = documents("settings.yaml")[0]["data"]
    image = yaml.safe_load(compose_file.read("dagster.yaml"))["storage"]["postgres"]["postgres_db"]
    found = {key: data[value["env"]] if isinstance(value, dict) else value for key, value in image.items()}
    chart = values()["postgresql"]
    assert found == {
        "scheme": chart["postgresqlScheme"],
        "hostname": chart["postgresqlHost"],
        "username": chart["postgresqlUsername"],
        "db_name": chart["postgresqlDatabase"],
        "port": chart["service"]["port"],
    }
    assert f"@{chart['postgresqlHost']}:{chart['service']['port']}/" in data["ERA_DATABASE_URL"]


def test_no_setting_has_the_name_of_a_variable_that_kubernetes_makes_for_our_services() -> None:
    """Every pod is told where every Service of its namespace is: ERA_PORT=tcp://..., ERA_METRICS_SERVICE_HOST=..."""
    services = [code()["name"], *(each["metadata"]["name"] for each in manifests() if each["kind"] == "Service")]
    assert services == ["era", "era-metrics"]
    prefixes = "|".join(name.upper().replace("-", "_") for name in services)
    made = re.compile(rf"({prefixes})_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_TCP(_\w+)?)?)")
    assert made.fullmatch("ERA_METRICS_PORT_8000_TCP_ADDR")
    assert [name for name in load_settings({}).public() if made.fullmatch(f"ERA_{name.upper()}")] == []


def test_everything_that_is_named_is_there() -> None:
    made = {(document["kind"], document["metadata"]["name"]) for document in manifests()}
    found = values()
    pods = [code(), found["dagsterWebserver"], found["dagsterDaemon"]]
    for pod in pods:
        assert [("ConfigMap", source["name"]) in made for source in pod["envConfigMaps"]] == [True]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in (code(), metrics_pod()["spec"])
        for volume in pod["volumes"]
    }
    assert {("PersistentVolumeClaim", claim) for claim in claims} <= made
    container = metrics_pod()["spec"]["containers"][0]
    sources = [next(iter(source.values()))["name"] for source in container["envFrom"]]
    assert sources == [code()["envConfigMaps"][0]["name"], code()["envSecrets"][0]["name"]]
    # The two Secrets are made by a person, with commands of the documentation.
    guide = (FOLDER.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for secret in (sources[1], found["global"]["postgresqlSecretName"]):
        assert f"create secret generic {secret}" in guide


def test_one_image_serves_all_and_runs_what_the_containers_run() -> None:
    found = values()
    image = code()["image"]
    assert found["dagsterWebserver"]["image"] == found["dagsterDaemon"]["image"] == image
    container = metrics_pod()["spec"]["containers"][0]
    assert container["image"] == f"{image['repository']}:{image['tag']}"
    assert container["command"] == compose_file.command("metrics")
    words = compose_file.image_command()
    assert words == [
        "dagster",
        "api",
        "grpc",
        "-h",
        "0.0.0.0",
        "-p",
        str(code()["port"]),
        *code()["dagsterApiGrpcArgs"],
    ]
    assert found["dagsterDaemon"]["livenessProbe"]["exec"]["command"] == compose_file.health_command("daemon")
    probe = found["dagsterWebserver"]["readinessProbe"]["httpGet"]
    assert probe["path"] in compose_file.health_command("webserver")[-1]
    assert probe["port"] == found["dagsterWebserver"]["service"]["port"]


def test_no_pod_runs_as_root_and_each_has_its_resources() -> None:
    found = values()
    run = found["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    security = [pod["podSecurityContext"] for pod in (code(), found["dagsterWebserver"], found["dagsterDaemon"])]
    security += [run["podSpecConfig"]["securityContext"], metrics_pod()["spec"]["securityContext"]]
    assert all(context["runAsNonRoot"] and context["runAsUser"] == 1000 for context in security)
    for pod in (code(), found["dagsterWebserver"], found["dagsterDaemon"], metrics_pod()["spec"]["containers"][0]):
        assert set(pod["resources"]) == {"requests", "limits"}
        assert pod["securityContext"]["allowPrivilegeEscalation"] is False
    assert code()["resources"] == {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "4Gi"}}


def test_the_metrics_read_the_files_that_settings_name_where_the_runs_do() -> None:
    """Without the table of ERA_DOMAIN_ALIASES nobody can say which chapters wait: their number left the page without a word."""
    (mount,) = metrics_pod()["spec"]["containers"][0]["volumeMounts"]
    assert mount == code()["volumeMounts"][0] | {"readOnly": True}
    assert metrics_pod()["spec"]["volumes"][0]["name"] == mount["name"]
    volumes = {name: compose_file.services()[name]["volumes"] for name in ("code", "metrics")}
    assert volumes["metrics"] == [volumes["code"][0] | {"read_only": True}]


def test_prometheus_finds_the_metrics_by_their_annotations() -> None:
    annotations = metrics_pod()["metadata"]["annotations"]
    port = metrics_pod()["spec"]["containers"][0]["ports"][0]["containerPort"]
    assert annotations == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(port),
        "prometheus.io/path": "/metrics",
    }


def test_the_manifests_are_valid_kubernetes() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in manifests():
        validator.validate(document, "1.34", strict=True)
