"""`dagster dev` as a user starts it: the graph over GraphQL, the sensor picking up a drop, backfills from the UI's own calls."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from era_dagster_tests.e2e.project import Project, make_project, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SELECTOR = {"repositoryName": "__repository__", "repositoryLocationName": "era_dagster.definitions"}
ASSETS = ("chapters", "chunks", "embeddings", "vector_tables", "minister_files")


class Ui:
    """The calls the browser makes."""

    def __init__(self, url: str, project: Project) -> None:
        self._url = url
        self.project = project

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self._url}/graphql", json={"query": query, "variables": variables}, timeout=60)
        body = answer.json()
        assert "errors" not in body, json.dumps(body["errors"])[:2000]
        return body["data"]

    def is_up(self) -> bool:
        try:
            return "__repository__" in json.dumps(
                self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
            )
        except httpx.HTTPError:
            return False

    def backfill(self, assets: tuple[str, ...], partitions: list[str]) -> str:
        data = self.ask(
            "mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {"
            " __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
            params={"assetSelection": [{"path": [name]} for name in assets], "partitionNames": partitions},
        )["launchPartitionBackfill"]
        assert data["__typename"] == "LaunchBackfillSuccess", data
        return data["backfillId"]

    def launch(self, assets: tuple[str, ...], partition: str) -> str:
        """One run over one partition, as the Materialize button of a single partition does."""
        data = self.ask(
            "mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {"
            " __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }",
            params={
                "mode": "default",
                "selector": {
                    **SELECTOR,
                    "pipelineName": "__ASSET_JOB",
                    "assetSelection": [{"path": [a]} for a in assets],
                },
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
            },
        )["launchRun"]
        assert data["__typename"] == "LaunchRunSuccess", data
        return data["run"]["runId"]

    def run_status(self, run: str) -> str:
        return self.ask("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run)["runOrError"][
            "status"
        ]

    def backfill_status(self, backfill: str) -> str:
        query = (
            "query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
        )
        return self.ask(query, id=backfill)["partitionBackfillOrError"]["status"]


def wait_for(what: str, ready: Callable[[], bool], project: Project, *, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ready():
            return
        time.sleep(1)
    log = (project.folder / "output.log").read_text(encoding="utf-8", errors="replace")
    pytest.fail(f"waited {seconds} s for {what}; the log ends:\n{log[-4000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server() -> Iterator[tuple[FakeEmbeddingServer, str]]:
    fake = FakeEmbeddingServer()
    with serving(fake) as url:
        yield fake, url


@pytest.fixture
def ui(tmp_path: Path, new_database_url: Callable[[], str], server: tuple[FakeEmbeddingServer, str]) -> Iterator[Ui]:
    project = make_project(
        tmp_path,
        {
            "ERA_DATABASE_URL": new_database_url(),
            "ERA_EMBEDDING_PROVIDER": "ollama",
            "ERA_EMBEDDING_URLS": server[1],
            "ERA_EMBEDDING_MODEL": "test-model",
            "ERA_SETTLE_SECONDS": "1",
        },
    )
    port = free_port()
    with project.running("dagster", "dev", "--host", "127.0.0.1", "--port", str(port)) as process:
        shown = Ui(f"http://127.0.0.1:{port}", project)
        wait_for("the UI", shown.is_up, project)
        family = psutil.Process(process.pid).children(recursive=True)
        yield shown
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == [], "dagster dev left processes behind"


def test_the_graph_the_sensor_and_backfills_work_from_the_ui(ui: Ui, server: tuple[FakeEmbeddingServer, str]) -> None:
    project = ui.project
    nodes = ui.ask("{ assetNodes { assetKey { path } isPartitioned } }")["assetNodes"]
    assert {node["assetKey"]["path"][0]: node["isPartitioned"] for node in nodes} == {
        **dict.fromkeys(ASSETS, True),
        "combined_index": False,
    }
    sensors = ui.ask(
        "query($s: RepositorySelector!) { sensorsOrError(repositorySelector: $s) {"
        " ... on Sensors { results { name sensorState { status } } } } }",
        s=SELECTOR,
    )["sensorsOrError"]["results"]
    assert [(sensor["name"], sensor["sensorState"]["status"]) for sensor in sensors] == [
        ("chapter_drop_sensor", "RUNNING")
    ]

    # A drop, and nothing else: the sensor registers the chapters and its run stores them.
    write_book(project.drop, "level", [1, 2, 3, 4, 5])
    keys = {f"level/000{n}" for n in range(1, 6)}
    wait_for("the sensor's run", lambda: project.materialized("minister_files") == keys, project)
    assert project.materialized("vector_tables") == keys
    with psycopg.connect(project.variables["ERA_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM doctrine_embeddings_all").fetchone() == (10,)

    # Chapters that are not neighbours: Dagster makes one run of each contiguous range. One more chapter by itself.
    before = materialization_count(ui, "level/0002")
    backfill = ui.backfill(ASSETS, ["level/0001", "level/0003", "level/0005"])
    single = ui.launch(("embeddings",), "level/0004")
    wait_for("the single run", lambda: ui.run_status(single) == "SUCCESS", project)
    assert materialization_count(ui, "level/0004") == 2
    wait_for("the backfill", lambda: ui.backfill_status(backfill) == "COMPLETED_SUCCESS", project)
    assert materialization_count(ui, "level/0001") == 2
    assert materialization_count(ui, "level/0005") == 2
    assert materialization_count(ui, "level/0002") == before

    # One chapter in a backfill cannot be embedded: it fails, the other is done.
    server[0].poison.add("level 1, again")
    write_book(project.drop, "level", [1, 2], extra=", again")
    gone = {"level/0003", "level/0004", "level/0005"}
    wait_for("the retired chapters", lambda: not gone & known_partitions(ui), project)
    backfill = ui.backfill(ASSETS, ["level/0001", "level/0002"])
    wait_for("the failed backfill", lambda: ui.backfill_status(backfill) == "COMPLETED_FAILED", project)
    with psycopg.connect(project.variables["ERA_DATABASE_URL"]) as connection:
        texts = {text for (text,) in connection.execute("SELECT text FROM doctrine_embeddings_all")}
        dead = connection.execute("SELECT DISTINCT partition_key FROM dead_letters WHERE state = 'open'").fetchall()
    assert texts == {
        "A dated record beats a good memory, level 2, again.",
        "A number without a date is a rumour, level 2, again.",
    }
    assert dead == [("level/0001",)]


def materialization_count(ui: Ui, partition: str) -> int:
    """How often `embeddings` was materialized for a partition."""
    data = ui.ask(
        "query($p: [String!]) { assetNodes { assetKey { path } assetMaterializations(partitions: $p) { runId } } }",
        p=[partition],
    )
    (node,) = (node for node in data["assetNodes"] if node["assetKey"]["path"] == ["embeddings"])
    return len(node["assetMaterializations"])


def known_partitions(ui: Ui) -> set[str]:
    data = ui.ask("{ assetNodes { assetKey { path } partitionKeys } }")
    return {key for node in data["assetNodes"] for key in node["partitionKeys"]}
