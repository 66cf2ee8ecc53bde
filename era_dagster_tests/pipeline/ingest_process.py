"""One ingest in a process of its own, which may be told to die by -9 at its n-th step.

A step is a statement, a commit (before or after it), or a write to disk. Prints how many steps there were.
Arguments: database URL, data folder, drop folder, URL of the embedding server, step to die at (0: none), and the keys of
the chapters to take (none: look at the drop folder first and take everything pending).
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

from era_dagster.domain.stages import STAGES
from era_dagster.pipeline.drop import look_at_drop
from era_dagster.pipeline.ingest import run_stages, stamp_rules
from era_dagster.settings import Settings, load_settings
from era_dagster.storage.database import Database
from era_dagster.storage.drops import find_chapters, pending_chapters
from era_dagster_tests.pipeline.workbench import Heard


class Steps:
    def __init__(self, dies_at: int) -> None:
        self.count = 0
        self.dies_at = dies_at

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.dies_at:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    def before(self, owner: Any, name: str, *, after: bool = False) -> None:
        work: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            self()
            done = work(*args, **options)
            if after:
                self()
            return done

        setattr(owner, name, counted)


def ingest(settings: Settings, keys: list[str]) -> None:
    with Database(settings.database_url or "", pool_size=4) as database:
        if not keys:
            look_at_drop(settings, database, settings.drop_dir, patient=False)
        suffixes = stamp_rules(settings, database).suffixes
        chapters = (
            find_chapters(database, keys)
            if keys
            else pending_chapters(database, stages=STAGES, suffixes=suffixes, root=None)
        )
        run_stages(settings, database, chapters=chapters, selected=STAGES, run_id="run", listener=Heard())


def main(url: str, data: str, drop: str, server: str, dies_at: str, *keys: str) -> None:
    steps = Steps(int(dies_at))
    steps.before(psycopg.Cursor, "execute")
    steps.before(psycopg.Connection, "commit", after=True)
    steps.before(os, "fsync")
    steps.before(Path, "replace", after=True)
    settings = load_settings(
        {}, home=Path(data), data_dir=Path(data), drop_dir=Path(drop), database_url=url, database_pool=4
    )
    settings = replace(settings, embedding_provider="ollama", embedding_model="test-model", embedding_urls=(server,))
    ingest(settings, list(keys))
    sys.stdout.write(f"{steps.count}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
