"""`era bench server` as a user types it, against a server that is another process; what it accounts for, not how fast it is."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from era_dagster_tests.simulation.conftest import Simulation

SHORT = ("--seconds", "1", "--warm-up", "0.3")


@pytest.fixture
def server() -> Iterator[Simulation]:
    simulation = Simulation("--api-key", "open", "--slots", "4", "--seconds-per-text", "0.005")
    yield simulation
    assert simulation.close() == 0


BENCH_SERVER = [sys.executable, "-m", "era_dagster.cli", "bench", "server"]


def environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ERA_EMBEDDING")}
    return clean | variables


def bench_server(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = environment(**variables)
    return subprocess.run(
        [*BENCH_SERVER, *words], env=variables, capture_output=True, encoding="utf-8", timeout=120, check=False
    )


@pytest.mark.parametrize(("provider", "path"), [("ollama", ""), ("openai", ""), ("openai", "/v1/embeddings")])
def test_ours_and_naive_clients_are_measured_on_the_server_of_the_settings(
    server: Simulation, provider: str, path: str, tmp_path: Path
) -> None:
    figures = tmp_path / "own.json"
    done = bench_server(
        *(*SHORT, "--rounds", "2", "--client", "fixed:2x3", "--client", "era:1x5", "--json", str(figures)),
        ERA_EMBEDDING_PROVIDER=provider,
        ERA_EMBEDDING_URLS=server.url + path,
        ERA_EMBEDDING_MODEL="simulated",
        ERA_EMBEDDING_API_KEY="open",
        ERA_CHUNK_MIN_CHARS="40",
        ERA_CHUNK_MAX_CHARS="90",
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads(figures.read_bytes())["runs"]
    assert [run["client"] for run in runs] == ["era", "fixed:2x3", "era:1x5"] * 2
    for run in runs:
        assert run["scenario"] == f"{server.url}{path} (simulated)"
        assert (run["lost"], run["wrong_vectors"], run["vectors_checked"], run["error"]) == (0, 0, 0, None)
        assert run["ratio"] is run["limit_texts_per_second"] is None
        assert run["asked"] >= run["texts"] > 0
        assert run["texts_per_second"] == pytest.approx(run["texts"] / run["window_seconds"])
        assert run["p50_seconds"] <= run["p95_seconds"]
        assert run["client"] in done.stdout
    assert runs[1]["most_in_flight"] == 2
    assert runs[2]["most_in_flight"] == 1
    account = server.account()
    assert account["texts_answered"] >= sum(run["asked"] for run in runs)
    assert 10 < account["mean_tokens"] < 25  # at four characters a token, as long as chunks are


def test_a_server_that_wants_another_key_is_told_once_with_exit_code_1(server: Simulation) -> None:
    done = bench_server(
        *SHORT, ERA_EMBEDDING_PROVIDER="openai", ERA_EMBEDDING_URLS=server.url, ERA_EMBEDDING_MODEL="simulated"
    )
    assert done.returncode == 1
    assert done.stderr.count("ERA_EMBEDDING_API_KEY") == 1
    assert "fixed:1x1" not in done.stdout
    assert "Traceback" not in done.stderr


def test_what_was_finished_is_told_by_a_measurement_that_is_stopped(server: Simulation, tmp_path: Path) -> None:
    figures = tmp_path / "own.json"
    variables = environment(
        ERA_EMBEDDING_PROVIDER="openai",
        ERA_EMBEDDING_URLS=server.url,
        ERA_EMBEDDING_MODEL="simulated",
        ERA_EMBEDDING_API_KEY="open",
    )
    command = [*BENCH_SERVER, *SHORT, "--rounds", "9", "--json", str(figures)]
    run = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert run.stderr is not None
    while "  era: " not in (line := run.stderr.readline()):
        assert line, "it ended by itself"
    run.send_signal(signal.SIGINT)
    said, complained = run.communicate(timeout=60)
    assert run.returncode == 130
    assert complained.endswith("Stopped. The runs that were finished are told.\n")
    assert [each["client"] for each in json.loads(figures.read_bytes())["runs"]] == ["era"]
    assert "era" in said


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ERA_EMBEDDING_PROVIDER": "local"}, "local model"),
        ({"ERA_EMBEDDING_URLS": "http://127.0.0.1:9,http://127.0.0.1:10"}, "several servers"),
    ],
)
def test_what_is_no_one_server_is_wrong_use(variables: dict[str, str], said: str) -> None:
    done = bench_server(*SHORT, **variables)
    assert done.returncode == 2
    assert said in done.stderr
    assert "ERA_EMBEDDING_URLS" in done.stderr
