"""A simulated server in a process of its own, as a user starts it; each test gives it the course it needs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest


class Simulation:
    """A running `era simulate`, and a client of it."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "era_dagster.cli", "simulate", "--port", "0", "--json", "--while-stdin-open"]
        self.process = subprocess.Popen(
            [*command, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert self.process.stdout is not None
        self.url: str = json.loads(self.process.stdout.readline())["url"]
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=20)

    def becomes(self, **course: Any) -> None:
        """Start anew with another course."""
        response = self.client.post("/api/simulation", json=course)
        assert response.status_code == 200, response.text

    def embed(self, texts: Any, **more: Any) -> httpx.Response:
        return self.client.post("/api/embed", json={"model": "simulated", "input": texts, **more})

    def openai(self, texts: Any, **more: Any) -> httpx.Response:
        return self.client.post("/v1/embeddings", json={"model": "simulated", "input": texts, **more})

    def account(self, **window: float) -> dict[str, Any]:
        return self.client.get("/api/simulation", params=window).json()

    def close(self) -> int:
        self.client.close()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(10)


@pytest.fixture(scope="session")
def shared_simulation() -> Iterator[Simulation]:
    simulation = Simulation("--seconds-per-text", "0")
    yield simulation
    assert simulation.close() == 0


@pytest.fixture
def simulation(shared_simulation: Simulation) -> Simulation:
    """A server that needs no time and refuses nothing, until the test says otherwise."""
    shared_simulation.becomes(seconds_per_text=0)
    return shared_simulation
