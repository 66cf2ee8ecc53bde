"""The simulated server of a benchmark: a process of its own, so that its processor time is not the client's.

One process serves all scenarios; each starts it anew with its own course. It ends when this process does.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from era_dagster.domain.errors import EndpointUnavailable

_STOP_SECONDS = 5.0


class SimulatedProcess:
    """A running `era simulate` on a free loopback port."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "era_dagster.cli", "simulate", "--port", "0", "--json", "--while-stdin-open"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EndpointUnavailable("The simulated server did not start.", hint="Try `era simulate` to see why.")
        self.url = json.loads(line)["url"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None:
            return
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    async def start_anew(self, course: Mapping[str, Any]) -> None:
        """Become another server, whose time begins now."""
        await self._own_page("POST", json=course)

    async def account(self, **window: float) -> dict[str, Any]:
        """What it has counted, and its limit between `start` and `end` (seconds of its time) for texts of `tokens`."""
        return await self._own_page("GET", params=window)

    async def _own_page(self, method: str, **more: Any) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            response = await client.request(method, f"{self.url}/api/simulation", **more)
        if not response.is_success:
            raise EndpointUnavailable(f"The simulated server refused: {response.text}.")
        return response.json()
