"""`era simulate` as a user types it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from era_dagster_tests.simulation.conftest import Simulation

ERA = [sys.executable, "-m", "era_dagster.cli", "simulate"]


def era(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ERA, *words], capture_output=True, text=True, encoding="utf-8", timeout=30, check=False)


def test_a_server_is_described_by_options_pairs_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    path.write_text(json.dumps({"slots": 2, "jitter": 0.5, "changes": [[5, {"slots": 1}]]}), encoding="utf-8")
    simulation = Simulation(
        "--spec", str(path), "--slots", "3", "--set", "queue-limit=7", "--set", "retry_after=date", "--dimension", "128"
    )
    account = simulation.account()
    assert simulation.close() == 0
    assert {name: account["spec"][name] for name in ("slots", "jitter", "queue_limit", "retry_after")} == {
        "slots": 3,
        "jitter": 0.5,
        "queue_limit": 7,
        "retry_after": "date",
    }
    assert account["changes"] == [[5, {"slots": 1}]]
    assert account["dimension"] == 128


def test_a_key_may_be_asked_for() -> None:
    simulation = Simulation("--api-key", "open", "--seconds-per-text", "0")
    statuses = [
        httpx.post(
            f"{simulation.url}/v1/embeddings",
            json={"model": "simulated", "input": "a"},
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
        ).status_code
        for key in ("wrong", "open")
    ]
    assert simulation.close() == 0
    assert statuses == [401, 200]


def test_a_taken_port_is_one_sentence_and_exit_code_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = era("--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "cannot be used: address already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [("--set", "slot=1"), ("--set", "slots"), ("--slots", "0"), ("--dimension", "3"), ("--set", "jitter=x")]
)
def test_wrong_use_is_named_with_exit_code_2(words: tuple[str, ...]) -> None:
    done = era("--port", "0", *words)
    assert done.returncode == 2
    assert "Error:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_ctrl_c_ends_it_cleanly() -> None:
    simulation = Simulation()
    simulation.client.get("/api/version")
    simulation.process.send_signal(signal.SIGINT)
    assert simulation.process.wait(10) == 0
    assert simulation.close() == 0
