"""What the tests of the graph do over and over: drop a book, let the sensor tick, run what it asks for, look at marks."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from era_dagster.definitions import build_defs
from era_dagster.defs.jobs import run_config
from era_dagster.defs.partitions import BOOK_CHAPTERS
from era_dagster.defs.resources import KnowledgeBaseResource
from era_dagster.defs.runs import INGEST_JOB, chapters_of
from era_dagster.defs.sensors import chapter_drop_sensor
from era_dagster.storage.database import Database
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer


@dataclass
class Desk:
    """`cursor` is the sensor's, kept from tick to tick as the daemon does."""

    variables: dict[str, str]
    instance: dg.DagsterInstance
    database: Database
    server: FakeEmbeddingServer
    cursor: str | None = None
    requested: list[dg.RunRequest] = field(default_factory=list)

    def drop(
        self, book: str, chapters: Sequence[int], *, extra: str = "", settled: bool = True, **fields: object
    ) -> Path:
        """Drop a book in the one-file form; `extra` becomes part of every text, `fields` of each record."""
        path = Path(self.variables["ERA_DROP_DIR"]) / f"{book}.json"
        content = [
            {
                "chapter_index": number,
                "chapter_title": None,
                "raw_text": f"{book} {number}{extra}. The keeper wrote the level down every morning.",
                "domains": ["truth"],
                "principles": [f"A dated record beats a good memory, {book} {number}{extra}."],
                "rules": [],
                "claims": [],
                "warnings": [],
                **fields,
            }
            for number in chapters
        ]
        path.write_text(json.dumps(content), encoding="utf-8")
        if settled:
            self.set_age(path, 60)
        return path

    def set_age(self, path: Path, seconds: float) -> None:
        """Make a file look as if it had been written so long ago."""
        then = time.time() - seconds
        os.utime(path, (then, then))

    def preview(self, *, started_at: float | None = None) -> dg.SensorResult:
        """A look of the sensor as the UI asks for it; with the time of the sensor's start as the daemon does."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor, last_sensor_start_time=started_at)
        result = chapter_drop_sensor(context, knowledge_base=KnowledgeBaseResource())
        assert isinstance(result, dg.SensorResult)
        return result

    def tick(self) -> dg.SensorResult:
        """One look of the sensor, with what the daemon does about its result."""
        result = self.preview(started_at=time.time())
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(BOOK_CHAPTERS, list(request.partition_keys))
        self.cursor = result.cursor
        self.requested = list(result.run_requests or [])
        return result

    def asked(self) -> list[list[str]]:
        """The chapters of each run that one tick requests."""
        self.tick()
        return [chapters_of(request.run_config) for request in self.requested]

    def execute(self, request: dg.RunRequest | None = None) -> dg.ExecuteInProcessResult:
        """Run a request (the only one of the last tick) in this process."""
        if request is None:
            (request,) = self.requested
        return self.run(chapters_of(request.run_config), tags=dict(request.tags))

    def run(self, chapters: Sequence[str], *, tags: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
        """Run the job over these chapters; none: everything pending."""
        job = build_defs(everything_pending=not chapters).resolve_job_def(INGEST_JOB)
        return job.execute_in_process(
            instance=self.instance, run_config=run_config(chapters), tags=tags, raise_on_error=False
        )

    def waiting_run(self, chapters: Sequence[str], status: dg.DagsterRunStatus, **tags: str) -> str:
        """A run of another process in this state; returns its id."""
        run = self.instance.create_run_for_job(
            build_defs().resolve_job_def(INGEST_JOB),
            run_config=run_config(chapters),
            status=status,
            tags={name.replace("__", "/"): value for name, value in tags.items()},
        )
        return run.run_id

    def marked(self, stage: str) -> set[str]:
        """The partitions that Dagster shows as materialized."""
        return set(self.instance.get_materialized_partitions(dg.AssetKey(stage)))

    def partitions(self) -> list[str]:
        """The registered partition keys."""
        return list(self.instance.get_dynamic_partitions(BOOK_CHAPTERS))

    def sql(self, statement: str, *values: object) -> list[tuple]:
        """Run one statement in the knowledge base."""
        with self.database.connection() as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []
