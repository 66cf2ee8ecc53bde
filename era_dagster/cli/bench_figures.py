"""What `era bench` and `era bench server` share: they measure for minutes, and tell what was finished, whatever ends them."""

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from era_dagster.bench.result import Run


def is_stopped(measuring: Coroutine[Any, Any, None], runs: "Sequence[Run]") -> bool:
    """Measure, which adds to `runs`; whether Ctrl-C ended it. Raises `KeyboardInterrupt` where nothing was finished by then."""
    try:
        asyncio.run(measuring)
    except KeyboardInterrupt:
        if not runs:
            raise
        return True
    return False


def document(runs: "Sequence[Run]") -> dict[str, Any]:
    """All figures, as JSON holds them."""
    from era_dagster.bench.result import as_json

    return {"runs": [as_json(run) for run in runs]}


def write_figures(runs: "Sequence[Run]", json_to: str | None) -> None:
    """Into the file that was asked for, if one was; after they were told, for a disk may be full."""
    if json_to not in (None, "-"):
        Path(json_to).write_bytes(orjson.dumps(document(runs), option=orjson.OPT_INDENT_2))


def milliseconds(seconds: float | None) -> str:
    """Of a latency, in whole ones; a dash where there is none."""
    return "-" if seconds is None else f"{seconds * 1000:,.0f}"
