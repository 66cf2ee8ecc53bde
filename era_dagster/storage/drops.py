"""The drop register: which sources and chapters the drop folder holds, as last seen, and which of them are still to do.

The sensor and the commands look at the folder (`intake`), record what they saw here, and ask here what is pending. A
chapter is pending when a stage's stored stamp differs from the stamp its content asks for, or when it is gone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import sql

from era_dagster.domain.identity import parse_partition_key
from era_dagster.domain.stages import Stage
from era_dagster.storage.database import Database
from era_dagster.storage.stamps import STAMP_COLUMNS

SourceStateName = Literal["read", "waiting", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownChapter:
    """A chapter of the register. `gone`: it left the input, its rows are to be removed; `attempts`: runs requested for
    this content so far, one where somebody stopped one; `requested_at`: when the last was, or its stop, in seconds since 1970."""

    partition_key: str
    chapter: int
    source_path: str
    content_hash: bytes
    gone: bool
    attempts: int
    requested_at: float | None
    priority: int | None


def retired_chapter(key: str) -> KnownChapter:
    """A chapter that the register holds no longer; raises `ConfigurationError` for what is no partition key."""
    return KnownChapter(
        partition_key=key,
        chapter=parse_partition_key(key)[1],
        source_path="",
        content_hash=b"",
        gone=True,
        attempts=0,
        requested_at=None,
        priority=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineRecord:
    """A file or record that cannot be read: the file, the place in it (may be empty), the reason."""

    file: str
    location: str
    reason: str

    @property
    def cause(self) -> str:
        """The reason without file and place, which that of a whole file names too."""
        if not self.reason.startswith(f"{self.file} "):
            return self.reason
        return f"it{self.reason.removeprefix(self.file).removesuffix(f'{self._at}.')}."

    @property
    def _at(self) -> str:
        return f" at {self.location}" if self.location else ""

    def sentence(self) -> str:
        """The three as one sentence."""
        return f"Cannot read {self.file}{self._at}: {self.cause}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLook:
    """How one source looked: the signature of its files and how the look ended.

    `chapters` maps partition key to content hash; None keeps what the register holds (the source could not be read).
    `notes` are sentences about the source as a whole.
    """

    source_path: str
    signature: str
    state: SourceStateName
    reason: str
    sha256: bytes | None = None
    priority: int | None = None
    chapters: Mapping[str, bytes] | None = None
    quarantined: Sequence[QuarantineRecord] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSource:
    """A source as the register holds it, with the content hashes of its chapters by partition key (gone ones excluded)."""

    signature: str
    state: str
    reason: str
    chapters: Mapping[str, bytes]


_CHAPTER_COLUMNS = (
    "d.partition_key, right(d.partition_key, 4)::int, d.source_path, d.content_hash, d.gone, d.attempts,"
    " extract(epoch FROM d.requested_at)::float8, f.priority"
)


def known_sources(database: Database, root: Path) -> dict[str, KnownSource]:
    """The recorded sources that lie in `root` (or are `root`, when one book is looked at alone), by path."""
    with database.connection() as connection:
        return _sources(connection, "(f.folder = %(root)s OR f.source_path = %(root)s)", {"root": str(root)})


def hidden_elsewhere(database: Database, root: Path) -> dict[str, KnownSource]:
    """The recorded sources outside `root` whose chapters a newer drop holds too, by path."""
    with database.connection() as connection:
        return _sources(
            connection,
            "f.folder <> %(root)s AND f.source_path <> %(root)s AND f.state = 'read' AND f.reason <> ''",
            {"root": str(root)},
        )


def owners_elsewhere(database: Database, root: Path, keys: Sequence[str]) -> dict[str, KnownSource]:
    """The recorded sources outside `root` that own one of the chapters in `keys`, by path."""
    with database.connection() as connection:
        return _sources(
            connection,
            "f.folder <> %(root)s AND f.source_path <> %(root)s AND f.state = 'read' AND EXISTS"
            " (SELECT FROM drop_chapters AS o WHERE o.source_path = f.source_path AND o.partition_key = ANY(%(keys)s))",
            {"root": str(root), "keys": list(keys)},
        )


def _sources(connection: psycopg.Connection, where: LiteralString, values: dict[str, Any]) -> dict[str, KnownSource]:
    sources = connection.execute(
        sql.SQL("SELECT f.source_path, f.signature, f.state, f.reason FROM drop_sources AS f WHERE {}").format(
            sql.SQL(where)
        ),
        values,
    ).fetchall()
    chapters: dict[str, dict[str, bytes]] = {}
    for path, key, digest in connection.execute(
        sql.SQL(
            "SELECT d.source_path, d.partition_key, d.content_hash FROM drop_chapters AS d"
            " JOIN drop_sources AS f USING (source_path) WHERE NOT d.gone AND {}"
        ).format(sql.SQL(where)),
        values,
    ):
        chapters.setdefault(path, {})[key] = bytes(digest)
    return {
        path: KnownSource(signature=signature, state=state, reason=reason, chapters=chapters.get(path, {}))
        for path, signature, state, reason in sources
    }


def record_look(
    database: Database,
    *,
    looks: Sequence[SourceLook],
    vanished: Sequence[str],
    gone: Sequence[str],
    shadowed: Mapping[str, str],
) -> None:
    """Record one look at a folder in one transaction: its sources, the sources that vanished, the chapters that are gone.

    Called while `storage.looking.looking_alone`.
    `shadowed` maps sources whose chapters a newer source holds too, read now or before, to the reason to keep with them.
    """
    with database.connection() as connection:
        for look in looks:
            _record_source(connection, look)
        connection.execute(
            "UPDATE drop_sources AS s SET reason = i.reason FROM unnest(%s::text[], %s::text[]) AS i (path, reason)"
            " WHERE s.source_path = i.path AND s.state = 'read' AND s.reason <> i.reason",
            (list(shadowed.keys()), list(shadowed.values())),
        )
        connection.execute(
            "UPDATE drop_chapters SET gone = true, attempts = 0, requested_at = NULL"
            " WHERE partition_key = ANY(%s) AND NOT gone",
            (list(gone),),
        )
        connection.execute("DELETE FROM quarantine WHERE source_path = ANY(%s)", (list(vanished),))
        # A vanished source stays until its last chapter is retired, then it is forgotten. Should it come back before, the
        # same files must be read again: its chapters are marked gone.
        connection.execute(
            "UPDATE drop_sources SET signature = '' WHERE source_path = ANY(%s) AND signature <> ''", (list(vanished),)
        )
        connection.execute(
            "DELETE FROM drop_sources AS s WHERE source_path = ANY(%s)"
            " AND NOT EXISTS (SELECT FROM drop_chapters AS d WHERE d.source_path = s.source_path)",
            (list(vanished),),
        )


def _record_source(connection: psycopg.Connection, look: SourceLook) -> None:
    connection.execute(
        "INSERT INTO drop_sources AS s (source_path, folder, signature, sha256, priority, state, reason, notes)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (source_path) DO UPDATE SET"
        " signature = excluded.signature, sha256 = coalesce(excluded.sha256, s.sha256), priority = excluded.priority,"
        " state = excluded.state, reason = excluded.reason, notes = excluded.notes, seen_at = now()"
        " WHERE (s.signature, s.priority, s.state, s.reason, s.notes)"
        " IS DISTINCT FROM (excluded.signature, excluded.priority, excluded.state, excluded.reason, excluded.notes)",
        (
            look.source_path,
            str(Path(look.source_path).parent),
            look.signature,
            look.sha256,
            look.priority,
            look.state,
            look.reason,
            list(look.notes),
        ),
    )
    if look.state != "waiting":
        _record_quarantine(connection, look.source_path, look.quarantined)
    if look.chapters:
        connection.execute(
            "INSERT INTO drop_chapters AS d (partition_key, source_path, content_hash)"
            " SELECT i.key, %s, i.hash FROM unnest(%s::text[], %s::bytea[]) AS i (key, hash) ORDER BY i.key"
            " ON CONFLICT (partition_key) DO UPDATE SET source_path = excluded.source_path,"
            " content_hash = excluded.content_hash, gone = false, attempts = 0, requested_at = NULL, failure = NULL"
            " WHERE d.gone"
            " OR (d.source_path, d.content_hash) IS DISTINCT FROM (excluded.source_path, excluded.content_hash)",
            (look.source_path, list(look.chapters.keys()), list(look.chapters.values())),
        )


def _record_quarantine(
    connection: psycopg.Connection, source_path: str, quarantined: Sequence[QuarantineRecord]
) -> None:
    files = [record.file for record in quarantined]
    locations = [record.location for record in quarantined]
    reasons = [record.reason for record in quarantined]
    connection.execute(
        "DELETE FROM quarantine AS q WHERE source_path = %s AND NOT EXISTS"
        " (SELECT FROM unnest(%s::text[], %s::text[], %s::text[]) AS i (file, location, reason)"
        " WHERE (i.file, i.location, i.reason) = (q.file, q.location, q.reason))",
        (source_path, files, locations, reasons),
    )
    connection.execute(
        "INSERT INTO quarantine (source_path, file, location, reason)"
        " SELECT %s, i.* FROM unnest(%s::text[], %s::text[], %s::text[]) AS i ON CONFLICT DO NOTHING",
        (source_path, files, locations, reasons),
    )


def source_troubles(database: Database, root: Path) -> list[QuarantineRecord]:
    """Everything under `root` that cannot be read, since when it could not."""
    with database.connection() as connection:
        return [
            QuarantineRecord(file=file, location=location, reason=reason)
            for file, location, reason in connection.execute(
                "SELECT q.file, q.location, q.reason FROM quarantine AS q JOIN drop_sources AS f USING (source_path)"
                " WHERE (f.folder = %(root)s OR f.source_path = %(root)s) ORDER BY 1, 2, 3",
                {"root": str(root)},
            )
        ]


def unreadable_sources(database: Database, keys: Sequence[str]) -> list[QuarantineRecord]:
    """Why the sources of these chapters could not be read when they were looked at last."""
    with database.connection() as connection:
        return [
            QuarantineRecord(file=file, location=location, reason=reason)
            for file, location, reason in connection.execute(
                "SELECT q.file, q.location, q.reason FROM quarantine AS q JOIN drop_sources AS f USING (source_path)"
                " WHERE f.state = 'unreadable' AND EXISTS (SELECT FROM drop_chapters AS d"
                " WHERE d.source_path = f.source_path AND d.partition_key = ANY(%s)) ORDER BY 1, 2, 3",
                (list(keys),),
            )
        ]


def find_chapters(database: Database, keys: Sequence[str]) -> list[KnownChapter]:
    """The registered chapters among `keys`, in no order."""
    with database.connection() as connection:
        return _chapters(connection, sql.SQL("d.partition_key = ANY(%(keys)s)"), {"keys": list(keys)})


def registered_chapters(database: Database) -> list[KnownChapter]:
    """Every chapter of the register, by partition key."""
    with database.connection() as connection:
        return _chapters(connection, sql.SQL("true"), {})


def count_chapters(database: Database, roots: Sequence[Path]) -> int:
    """How many chapters the register holds of sources in these folders, each once, wherever the folders overlap."""
    with database.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM drop_chapters AS d JOIN drop_sources AS f USING (source_path)"
            " WHERE NOT d.gone AND (f.folder = ANY(%(roots)s) OR f.source_path = ANY(%(roots)s))",
            {"roots": [str(root) for root in roots]},
        ).fetchone()
    return row[0] if row else 0


def source_paths(database: Database) -> list[Path]:
    """Where every recorded source lies, or lay."""
    with database.connection() as connection:
        return [Path(path) for (path,) in connection.execute("SELECT source_path FROM drop_sources ORDER BY 1")]


def sources_without_chapters(database: Database) -> list[Path]:
    """Where every recorded source lies, or lay, that has no chapter: it could not be read, or is not whole yet."""
    with database.connection() as connection:
        return [
            Path(path)
            for (path,) in connection.execute(
                # Of one that was read and has a reason newer drops hold the chapters: it is missed by nobody.
                "SELECT source_path FROM drop_sources AS s WHERE (state <> 'read' OR reason = '') AND NOT EXISTS"
                " (SELECT FROM drop_chapters AS d WHERE d.source_path = s.source_path) ORDER BY 1"
            )
        ]


def pending_chapters(
    database: Database,
    *,
    stages: Collection[Stage],
    suffixes: Mapping[Stage, str],
    root: Path | None,
    unrecorded: bool = False,
) -> list[KnownChapter]:
    """Chapters that are gone or have a stale stage among `stages`; `suffixes` as in `domain.stages.StampRules`.

    A stage without a suffix (its model is not known yet) is stale for every chapter. `root` limits the answer to
    sources found under that folder; `unrecorded` adds what a killed run stored and did not live to record in Dagster.
    """
    where, values = _is_pending(stages, suffixes, unrecorded=unrecorded)
    if root is not None:
        where = sql.SQL("{} AND (f.folder = %(root)s OR f.source_path = %(root)s)").format(where)
        values["root"] = str(root)
    with database.connection() as connection:
        return _chapters(connection, where, values)


def count_pending(connection: psycopg.Connection, *, stages: Collection[Stage], suffixes: Mapping[Stage, str]) -> int:
    """How many chapters `pending_chapters` would find in all folders."""
    where, values = _is_pending(stages, suffixes, unrecorded=False)
    row = connection.execute(
        sql.SQL(
            "SELECT count(*) FROM drop_chapters AS d LEFT JOIN doctrine_sources AS s USING (partition_key) WHERE {}"
        ).format(where),
        values,
    ).fetchone()
    return row[0] if row else 0


def _is_pending(
    stages: Collection[Stage], suffixes: Mapping[Stage, str], *, unrecorded: bool
) -> tuple[sql.Composable, dict[str, str]]:
    conditions: list[sql.Composable] = [sql.SQL("d.gone"), sql.SQL("s.partition_key IS NULL")]
    if unrecorded:
        conditions.append(sql.SQL("NOT s.recorded"))
    values: dict[str, str] = {}
    for stage in stages:
        if stage not in suffixes:
            conditions.append(sql.SQL("true"))
            continue
        values[stage] = suffixes[stage]
        conditions.append(
            sql.SQL("s.{column} IS DISTINCT FROM encode(d.content_hash, 'hex') || {suffix}").format(
                column=sql.Identifier(STAMP_COLUMNS[stage]), suffix=sql.Placeholder(stage)
            )
        )
    return sql.SQL("({})").format(sql.SQL(" OR ").join(conditions)), values


def _chapters(
    connection: psycopg.Connection, where: sql.Composable, values: Mapping[str, object]
) -> list[KnownChapter]:
    rows = connection.execute(
        sql.SQL(
            "SELECT {columns} FROM drop_chapters AS d JOIN drop_sources AS f USING (source_path)"
            " LEFT JOIN doctrine_sources AS s ON s.partition_key = d.partition_key WHERE {where} ORDER BY d.partition_key"
        ).format(columns=sql.SQL(_CHAPTER_COLUMNS), where=where),
        dict(values),
    ).fetchall()
    return [
        KnownChapter(
            partition_key=row[0],
            chapter=row[1],
            source_path=row[2],
            content_hash=bytes(row[3]),
            gone=row[4],
            attempts=row[5],
            requested_at=row[6],
            priority=row[7],
        )
        for row in rows
    ]
