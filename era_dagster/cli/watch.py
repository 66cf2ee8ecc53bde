"""`era status --watch`: the runs that go now, wherever they run, as they told of themselves last."""

import sys
import time
from dataclasses import asdict
from typing import Any

import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from era_dagster.cli.knowledge_base import open_knowledge_base
from era_dagster.domain.errors import DatabaseUnavailable
from era_dagster.pipeline.watch import describe
from era_dagster.settings import Settings
from era_dagster.storage.database import Database
from era_dagster.storage.telemetry import RunFigures, read_runs

_ENDED_SHOWN = 3


def watch_runs(settings: Settings, *, every_seconds: float, as_json: bool) -> int:
    """Look every so many seconds until the user stops it. A database that is away is said, and looked for again."""
    with open_knowledge_base(settings) as database:
        try:
            if as_json:
                while True:
                    _print_line(database)
                    time.sleep(every_seconds)
            # Not on `stdout`, which folds nothing: what is wider than the screen would be cut off here.
            with Live(console=Console(highlight=False), auto_refresh=False) as live:
                while True:
                    live.update(_picture(database), refresh=True)
                    time.sleep(every_seconds)
        except KeyboardInterrupt:
            return 0


def _print_line(database: Database) -> None:
    try:
        running, ended = _look(database)
        line: dict[str, Any] = {"running": [asdict(run) for run in running], "ended": [asdict(run) for run in ended]}
    except DatabaseUnavailable as error:
        line = {"error": error.message}
    sys.stdout.write(orjson.dumps(line).decode() + "\n")
    sys.stdout.flush()


def _picture(database: Database) -> Group:
    try:
        running, ended = _look(database)
    except DatabaseUnavailable as error:
        return Group(Text(f"{error.message} Looking again.", style="red"))
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    lines = [Text("No run goes now; new ones appear here. Ctrl-C ends this.")] if not running else []
    for run in running:
        total = run.figures.get("chapters", 0)
        bar.add_task(run.run_id[:8], total=total, completed=run.figures.get("chapters_done", 0))
        silent = f", silent for {run.age_seconds:,.0f} s" if run.stale else ""
        lines.append(Text(f"{run.run_id[:8]}: {describe(run.figures)}{silent}", style="yellow" if run.stale else ""))
    for run in ended:
        moment = f"{run.ended_at:%H:%M:%S}" if run.ended_at else ""
        lines.append(Text(f"{run.run_id[:8]}: {run.state} {moment} UTC, {describe(run.figures)}", style="dim"))
    return Group(bar, *lines)


def _look(database: Database) -> tuple[list[RunFigures], list[RunFigures]]:
    """The runs that go, and the last ones that ended."""
    with database.connection() as connection:
        return read_runs(connection), read_runs(connection, running=False, ended=_ENDED_SHOWN)
