"""A drop folder, a knowledge base and a fake embedding server, worked the way every command works them.

Also the measuring instruments: dumps of all tables and files, to be compared before and after.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from psycopg import sql

from era_dagster.domain.stages import STAGES, with_upstream
from era_dagster.embedding.provider import CANARY
from era_dagster.embedding.report import EmbedStats
from era_dagster.pipeline.drop import DropLook, look_at_drop
from era_dagster.pipeline.ingest import run_stages, stamp_rules
from era_dagster.pipeline.receipt import Receipt
from era_dagster.pipeline.runner import StageDone
from era_dagster.pipeline.watch import RunReport
from era_dagster.settings import Settings
from era_dagster.storage.database import Database
from era_dagster.storage.drops import KnownChapter, find_chapters, pending_chapters
from era_dagster.storage.errors import ErrorNote
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport

CATEGORIES = ("principles", "rules", "claims", "warnings")
# What differs between two runs that did the same: times, the name of the run, and the number of a space, because a number
# that was drawn in a transaction that did not commit is not drawn again.
PER_RUN = frozenset({"run_id", "created_at", "updated_at", "seen_at", "applied_at", "changed_at", "rendered_at"})
PER_RUN |= {"first_at", "last_at", "requested_at", "written_at", "space_id"}


@dataclass
class Heard:
    """A listener that remembers."""

    done: list[StageDone] = field(default_factory=list)
    receipt: Receipt = field(default_factory=Receipt)
    report: RunReport | None = None

    def stages_done(self, done: Sequence[StageDone]) -> None:
        self.done.extend(done)

    def progress(self, receipt: Receipt, total_chapters: int, stats: EmbedStats | None) -> None:
        self.receipt = receipt

    def whole_refreshed(self, totals: Mapping[str, int | str]) -> None: ...

    def run_ended(self, report: RunReport) -> None:
        self.report = report

    def stages_of(self, key: str) -> set[str]:
        return {done.stage for done in self.done if done.partition_key == key}


@dataclass
class Workbench:
    settings: Settings
    database: Database
    server: FakeEmbeddingServer = field(default_factory=lambda: FakeEmbeddingServer(dimension=16))
    heard: Heard = field(default_factory=Heard)

    def __post_init__(self) -> None:
        self.settings = replace(
            self.settings,
            embedding_provider="ollama",
            embedding_model=self.server.model,
            retry_budget_seconds=0.5,
            retry_attempts=2,
        )
        self.settings.drop_dir.mkdir(parents=True, exist_ok=True)

    def write(self, path: str, content: Any) -> Path:
        """Write one file of the drop: bytes as they are, anything else as JSON."""
        file = self.settings.drop_dir / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode("utf-8"))
        return file

    def drop(self, book: str, *chapters: tuple[dict[str, Any], dict[str, Any]]) -> Path:
        """Drop a book folder; `chapters` come from `chapter`."""
        self.write(f"{book}/01_chapters.json", [text for text, _ in chapters])
        return self.write(f"{book}/02_doctrine.json", [doctrine for _, doctrine in chapters]).parent

    def look(self, **options: Any) -> DropLook:
        return look_at_drop(self.settings, self.database, self.settings.drop_dir, patient=False, **options)

    def pending(self, selected: Collection[str] = STAGES) -> list[KnownChapter]:
        return pending_chapters(
            self.database,
            stages=with_upstream(selected),
            suffixes=stamp_rules(self.settings, self.database).suffixes,
            root=None,
        )

    def run(
        self,
        selected: Collection[str] = STAGES,
        *,
        chapters: Sequence[KnownChapter] | None = None,
        with_fake_server: bool = True,
        run_id: str = "run",
    ) -> Receipt:
        """Run what is pending (or `chapters`); what was heard is in `heard`."""
        self.heard = Heard()
        return run_stages(
            self.settings,
            self.database,
            chapters=self.pending(selected) if chapters is None else chapters,
            selected=selected,
            run_id=run_id,
            listener=self.heard,
            transport=FakeTransport(self.server) if with_fake_server else None,
        )

    def ingest(self) -> Receipt:
        """Look and run; the server's counters start anew."""
        self.server.batches.clear()
        self.look()
        return self.run()

    @property
    def asked(self) -> list[str]:
        """The texts the server was asked for since the last look, without the embedder's own."""
        return [text for text in self.server.texts if text != CANARY]

    def known(self) -> list[KnownChapter]:
        """Every chapter of the register."""
        return find_chapters(self.database, self.rows("SELECT partition_key FROM drop_chapters"))

    def rows(self, query: str, *values: Any) -> list[Any]:
        """The rows of a query; single columns without their tuples."""
        with self.database.connection() as connection:
            found = connection.execute(query.encode(), values or None).fetchall()
        return [row[0] if len(row) == 1 else row for row in found]

    def count(self, table: str, where: str = "true") -> int:
        return self.rows(f"SELECT count(*) FROM {table} WHERE {where}")[0]

    def tables(self, *, versions: bool = False, without: Collection[str] = ()) -> dict[str, list[str]]:
        """Every row of every table as text, sorted; `versions` adds PostgreSQL's own row versions."""
        return dump_tables(self.database, versions=versions, without=without)

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Every file of the data folder (not of the drop) with its bytes and its time in nanoseconds."""
        root = self.settings.data_dir
        return {
            path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }

    def domain_file(self, domain: str, name: str) -> dict[str, Any]:
        return json.loads((self.settings.ministers_dir / domain / f"{name}.json").read_text(encoding="utf-8"))


# What runs tell of themselves differs from run to run, on purpose.
TELEMETRY = ["telemetry_runs", "metric_totals", "error_groups"]


def dump_tables(database: Database, *, versions: bool = False, without: Collection[str] = ()) -> dict[str, list[str]]:
    """See `Workbench.tables`; the tables of telemetry are left out."""
    dump: dict[str, list[str]] = {}
    with database.connection() as connection:
        found = connection.execute(
            "SELECT n.nspname, c.relname, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class AS c"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_attribute AS a ON a.attrelid = c.oid"
            " WHERE n.nspname IN ('public', 'vectors') AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped"
            " AND NOT c.relname = ANY(%s) GROUP BY 1, 2 ORDER BY 1, 2",
            (TELEMETRY,),
        ).fetchall()
        for schema, table, columns in found:
            names = [sql.Identifier(column) for column in columns if column not in without]
            names += [sql.SQL("ctid"), sql.SQL("xmin")] if versions else []
            query = sql.SQL("SELECT concat_ws('|', {}) FROM {} ORDER BY 1").format(
                sql.SQL(", ").join(sql.SQL("coalesce({}::text, 'NULL')").format(name) for name in names),
                sql.Identifier(schema, table),
            )
            dump[f"{schema}.{table}"] = [row[0] for row in connection.execute(query)]
    return dump


def timeless(files: dict[str, tuple[bytes, int]]) -> dict[str, Any]:
    """Files without the times they state."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: stripped(each) for name, each in value.items() if name not in ("last_updated", "created")}
        return [stripped(each) for each in value] if isinstance(value, list) else value

    return {name: stripped(json.loads(content)) for name, (content, _) in files.items()}


def chapter(
    index: int, text: str = "", domains: Sequence[Any] = ("risk",), **doctrine: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A chapter's two records; the text is made up from the index when none is given."""
    return (
        {
            "chapter_index": index,
            "chapter_id": "x",
            "chapter_title": None,
            "raw_text": text or f"The pilot wrote line {index} into the log before the tide turned.",
        },
        {"chapter_index": index, "chapter_title": None, "domains": list(domains), "_meta": {}, **doctrine},
    )


def one_file(book: str, *chapters: tuple[dict[str, Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """The same chapters in the one-file form."""
    return [{"book": book, **doctrine, **text} for text, doctrine in chapters]


def error_note(message: str = "The server is busy.", fingerprint: str = "f1") -> ErrorNote:
    """One error that a run noted once."""
    return ErrorNote(
        fingerprint=fingerprint,
        stage="requests",
        error_class="EndpointBusy",
        message=message,
        partition_key=None,
        occurrences=1,
    )
