"""One look at a drop folder: scan, read what changed, plan, and record it in the register.

The decisions are `intake.plan`'s; this module does the I/O between them. Sensor, commands and the everything-pending mode
all look through here, so that they agree on what there is.
"""

import time
from collections.abc import Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from era_dagster.domain.errors import ConfigurationError, CorruptInput, TransientError
from era_dagster.domain.identity import partition_key
from era_dagster.intake.plan import ChapterPlan, DropPlan, Look, plan_chapters, plan_drop, signature
from era_dagster.intake.reader import BookRead, read_source
from era_dagster.intake.snapshot import INPUTS, SourceStat, directory_of, is_bare, scan_drop
from era_dagster.settings import Settings
from era_dagster.storage.atomic_files import file_errors
from era_dagster.storage.database import Database
from era_dagster.storage.drops import (
    KnownSource,
    QuarantineRecord,
    SourceLook,
    hidden_elsewhere,
    known_sources,
    owners_elsewhere,
    record_look,
    source_troubles,
)
from era_dagster.storage.looking import directory_seen, looking_alone, note_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class DropLook:
    """What one look found. `chapters`: how many the folder holds now; keys of `new`, `changed` and `gone` ones.

    `troubles` are sources and records that cannot be read (now or since an earlier look), `waiting` those not ready yet;
    `settling` is to be handed to the next look.
    """

    root: Path
    chapters: int
    new: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    troubles: tuple[QuarantineRecord, ...]
    waiting: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    settling: Mapping[str, tuple[str, int]]

    def problems(self) -> list[str]:
        """One sentence for each thing that cannot be read."""
        return [trouble.sentence() for trouble in self.troubles]

    def notices(self) -> list[str]:
        """One sentence for each thing that is not ready or odd."""
        return [*self.left_waiting({path for path, _ in self.waiting}), *self.notes]

    def left_waiting(self, sources: Set[str]) -> list[str]:
        """One sentence for each of these sources, by path, that is not ready."""
        return [f"Waiting: {path}: {reason}" for path, reason in self.waiting if path in sources]

    def nothing_there(self) -> list[str]:
        """One sentence when the folder holds no book, which may be the wrong folder; for whoever asked, not for each tick."""
        if self.chapters or self.gone or self.troubles or self.waiting:
            return []
        return [f"No book lies in {self.root}: no folder with {' and '.join(INPUTS)}, and no other JSON file."]

    def messages(self) -> list[str]:
        """Problems and notices."""
        return [*self.problems(), *self.notices()]

    def summary(self) -> str:
        """One line for a log."""
        return (
            f"{self.root}: {self.chapters} chapters, {len(self.new)} new, {len(self.changed)} changed,"
            f" {len(self.gone)} gone, {len(self.waiting)} waiting, {len(self.troubles)} unreadable"
        )


def look_at_drop(
    settings: Settings,
    database: Database,
    root: Path,
    *,
    settling: Mapping[str, tuple[str, int]] | None = None,
    patient: bool = True,
    record: bool = True,
    afresh: bool = False,
) -> DropLook:
    """Look at `root` and record what is there; `record=False` only tells, `afresh` reads unchanged sources too.

    `patient` leaves files alone that changed less than `settle_seconds` ago; `settling` is that of the previous look.
    The default drop folder is made when nothing was ever dropped into it, or `StorageError` raised. `ConfigurationError`: a
    folder that is not there or cannot be listed, or is another directory than before with nothing in it; none of them is taken
    for one that the books have left.
    """
    with looking_alone(database) if record else nullcontext():
        return _look(settings, database, root, settling or {}, patient=patient, record=record, afresh=afresh)


def chapters_away(database: Database, root: Path) -> int:
    """How many chapters lay in `root` when it was another directory, if nothing lies in it now; else 0."""
    if not is_bare(root) or directory_seen(database, root) == directory_of(root):
        return 0
    return sum(len(source.chapters) for source in known_sources(database, root).values())


def check_not_away(database: Database, root: Path) -> None:
    """Raises `ConfigurationError` where `root` seems to be what lies under a disk that is not mounted."""
    if chapters := chapters_away(database, root):
        raise ConfigurationError(
            f"{root} is empty, and not the directory in which {chapters:,} chapters lay: its disk or volume may not"
            " be mounted. They are kept.",
            hint="Mount it. If the books shall go, put any file that is not hidden into the folder.",
        )


def _look(
    settings: Settings,
    database: Database,
    root: Path,
    settling: Mapping[str, tuple[str, int]],
    *,
    patient: bool,
    record: bool,
    afresh: bool,
) -> DropLook:
    known = known_sources(database, root)
    if not known and root == settings.drop_dir and settings.sources["drop_dir"] == "default":
        with file_errors(root):
            root.mkdir(parents=True, exist_ok=True)
    if root == settings.drop_dir and root.is_file():
        # A source of its own to whoever names it, and to nobody who drops books.
        raise ConfigurationError(
            f"The drop folder {root} is a file.",
            hint="Set ERA_DROP_DIR to the folder the books are dropped into; `era ingest FILE` brings in a single one.",
        )
    directory = directory_of(root)
    snapshot = scan_drop(root)
    check_not_away(database, root)
    if directory_of(root) != directory:
        raise TransientError(f"{root} became another directory while it was looked at. Nothing is changed; look again.")
    plan = plan_drop(
        snapshot,
        {path: replace(source, signature="") for path, source in known.items()} if afresh else known,
        now_ns=time.time_ns(),
        settle_seconds=settings.settle_seconds if patient else 0.0,
        unsettled={path: Look(signature=seen, since_ns=since) for path, (seen, since) in settling.items()},
    )
    books, unreadable = _read(plan.read)
    elsewhere = _elsewhere(database, root, books, plan) if plan.read or plan.gone else _NOWHERE
    books += elsewhere.books
    chapters = plan_chapters((*snapshot, *elsewhere.stats), books, {**known, **elsewhere.known})
    looks = _looks((*plan.read, *elsewhere.read), plan.waiting, books, unreadable, chapters)
    if record:
        if directory is not None and any(source.files for source in snapshot):
            note_directory(database, root, directory)
        record_look(
            database,
            looks=looks,
            vanished=(*plan.gone, *elsewhere.vanished),
            gone=chapters.gone,
            shadowed=chapters.shadowed,
        )
    troubles = source_troubles(database, root) if record else _troubles(looks)
    owned = {path: held for path, held in chapters.owned.items() if path not in elsewhere.known}
    held = sum(len(source.chapters) for path, source in known.items() if path not in owned)
    own_paths = {source.path for source in snapshot}
    return DropLook(
        root=root,
        chapters=held + sum(len(keys) for keys in owned.values()) - _retired(known, owned, chapters),
        new=tuple(chapter.partition_key for chapter in chapters.new),
        changed=tuple(chapter.partition_key for chapter in chapters.changed),
        gone=chapters.gone,
        troubles=tuple(troubles),
        waiting=tuple((source.path, reason) for source, reason in plan.waiting)
        + tuple((path, "still being written") for path in plan.unsettled),
        notes=tuple(f"{book.book}: {note.message}" for book in books for note in book.notes)
        + tuple(f"{path}: {reason}" for path, reason in chapters.shadowed.items() if path in own_paths),
        settling={path: (look.signature, look.since_ns) for path, look in plan.unsettled.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Elsewhere:
    """Sources of other folders that hold chapters of this look too.

    `stats` and `known` are those that are there, `read` those read again because a newer drop had hidden them, `vanished`
    those that are away, and hidden or about to lose chapters: they are forgotten, so that they are read when they return.
    """

    stats: tuple[SourceStat, ...] = ()
    known: Mapping[str, KnownSource]
    read: tuple[SourceStat, ...] = ()
    books: tuple[BookRead, ...] = ()
    vanished: tuple[str, ...] = ()


_NOWHERE = _Elsewhere(known={})


def _elsewhere(database: Database, root: Path, books: list[BookRead], plan: DropPlan) -> _Elsewhere:
    hidden = hidden_elsewhere(database, root)
    again = [
        stat for path in hidden if (stat := _source_at(path)) is not None and signature(stat) == hidden[path].signature
    ]
    found, _ = _read(again)
    # Also who owns the chapters of those: a newer drop in a third folder, or beside them, still counts.
    keys = [partition_key(book.slug, chapter.chapter) for book in (*books, *found) for chapter in book.chapters]
    owners = owners_elsewhere(database, root, keys)
    known = {**hidden, **owners}
    stats = {path: stat for path in known if (stat := _source_at(path)) is not None}
    readable = {str(book.path) for book in found}
    return _Elsewhere(
        stats=tuple(stats.values()),
        known={path: known[path] for path in stats},
        read=tuple(stat for stat in again if stat.path in readable),
        books=tuple(found),
        vanished=tuple(sorted((known.keys() if plan.gone else owners.keys()) - stats.keys())),
    )


def _source_at(path: str) -> SourceStat | None:
    """The source at `path`, when it is there and whole."""
    try:
        found = scan_drop(Path(path))
    except ConfigurationError:
        return None
    return next((stat for stat in found if stat.path == path and not stat.obstacle), None)


def _read(sources: Sequence[SourceStat]) -> tuple[list[BookRead], dict[str, CorruptInput]]:
    """The books of these sources, and by path why a source cannot be read."""
    books: list[BookRead] = []
    unreadable: dict[str, CorruptInput] = {}
    for source in sources:
        try:
            books.extend(read_source(Path(source.path)))
        except CorruptInput as error:
            unreadable[source.path] = error
    return books, unreadable


def _retired(known: Mapping[str, KnownSource], owned: Mapping[str, Mapping[str, bytes]], chapters: ChapterPlan) -> int:
    """Chapters still counted with a vanished or superseded source."""
    kept = {key for path, source in known.items() if path not in owned for key in source.chapters}
    return len(kept & {*chapters.gone, *(key for held in chapters.owned.values() for key in held)})


def _looks(
    read: Sequence[SourceStat],
    waiting: Sequence[tuple[SourceStat, str]],
    books: list[BookRead],
    unreadable: Mapping[str, CorruptInput],
    chapters: ChapterPlan,
) -> list[SourceLook]:
    by_path: dict[str, list[BookRead]] = {}
    for book in books:
        by_path.setdefault(str(book.path), []).append(book)
    looks = [_read_look(source, by_path[source.path], chapters) for source in read if source.path in by_path]
    for source in read:
        error = unreadable.get(source.path)
        if error is not None:
            looks.append(
                SourceLook(
                    source_path=source.path,
                    signature=signature(source),
                    state="unreadable",
                    reason=error.message,
                    quarantined=(
                        QuarantineRecord(file=str(error.path), location=error.location, reason=error.message),
                    ),
                )
            )
    looks += [
        SourceLook(source_path=source.path, signature="", state="waiting", reason=reason) for source, reason in waiting
    ]
    return looks


def _read_look(source: SourceStat, books: list[BookRead], chapters: ChapterPlan) -> SourceLook:
    return SourceLook(
        source_path=source.path,
        signature=signature(source),
        state="read",
        reason=chapters.shadowed.get(source.path, ""),
        sha256=books[0].sha256,
        priority=max((book.priority for book in books if book.priority is not None), default=None),
        chapters=chapters.owned.get(source.path, {}),
        quarantined=tuple(
            QuarantineRecord(file=str(problem.path), location=problem.location, reason=problem.reason)
            for book in books
            for problem in book.problems
        ),
        notes=tuple(note.message for book in books for note in book.notes),
    )


def _troubles(looks: list[SourceLook]) -> list[QuarantineRecord]:
    return [
        QuarantineRecord(file=record.file, location=record.location, reason=record.reason)
        for look in looks
        for record in look.quarantined
    ]
