"""Waits for what another process or thread does in its own time."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0


def wait_until(reached: Callable[[], bool]) -> None:
    """Return as soon as it is; fail when it is not within a minute."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, f"not reached within {PATIENCE_SECONDS:g} seconds"
        time.sleep(0.01)
