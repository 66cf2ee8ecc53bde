"""Compares source, tables and files in both directions, names every difference, and says what mends it.

`inspect` only reads. `mend` does what needs no embedding and makes the rest pending, so that an ordinary run over the
pending chapters finishes it. What is compared is in `storage.table_audit` and `storage.minister_audit`; here the source is
read again and held against what is stored.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from era_dagster.domain.chunking import cut_chunks
from era_dagster.domain.cleaning import clean_chapter
from era_dagster.domain.doctrine import SourceChapter
from era_dagster.domain.errors import CorruptInput
from era_dagster.domain.stages import STAGES, StampRules
from era_dagster.intake.books import BookShelf
from era_dagster.intake.snapshot import is_source
from era_dagster.pipeline.drop import chapters_away, look_at_drop
from era_dagster.pipeline.ingest import refresh_combined_index, stamp_rules
from era_dagster.settings import Settings
from era_dagster.storage.chapters import retire_chapter
from era_dagster.storage.database import Database
from era_dagster.storage.drops import (
    KnownChapter,
    pending_chapters,
    record_look,
    registered_chapters,
    source_paths,
    sources_without_chapters,
)
from era_dagster.storage.looking import looking_alone
from era_dagster.storage.minister_audit import FileFault, compare_files, remove_orphans
from era_dagster.storage.minister_files import render_due
from era_dagster.storage.quality import unbalanced_receipts
from era_dagster.storage.stamps import redo_chapters
from era_dagster.storage.stored import StoredChapter, stored_chapters
from era_dagster.storage.table_audit import TableFault, damaged_cache_keys, forget_vectors, table_faults

Mend = Literal["ingest", "purge", "forget", "unlist", "render", "finish", "by hand"]
MENDS: dict[Mend, str] = {
    "ingest": "ingest the chapter again from its source",
    "purge": "remove the rows: their chapter is in no drop folder",
    "forget": "remove the vector from the cache; its text is embedded again when it is next wanted",
    "unlist": "forget the file that could not be read: nothing of it is stored",
    "render": "render the file again from the database, or remove it",
    "finish": "`era ingest` does the stages that are left, and renders the file",
    "by hand": "only you can know: move it out of the ministers folder",
}
_CHAPTERS_AT_ONCE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One difference. `subject` is a partition key, a path or a cache key; `said` what is wrong; `mend` what mends it."""

    kind: str
    subject: str
    said: str
    mend: Mend


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What `inspect` found. `unreadable`: chapters whose source cannot be read now, so that they could not be compared;
    `away`: the sources among them that are not there any more."""

    findings: tuple[Finding, ...]
    chapters: int
    unreadable: tuple[str, ...]
    away: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Source, tables and files agree."""
        return not self.findings


def inspect(
    settings: Settings, database: Database, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Inspection:
    """Compare everything; `progress` hears how many of how many chapters were read again. Changes nothing."""
    rules = stamp_rules(settings, database)
    waiting = {finding.subject: finding for finding in _new_in_the_drop(settings, database)}
    pending = {**_pending(settings, database, rules), **waiting}
    known = [chapter for chapter in registered_chapters(database) if not chapter.gone]
    known.sort(key=lambda chapter: (chapter.source_path, chapter.partition_key))
    findings = list(pending.values())
    unreadable: list[str] = []
    away: set[str] = set()
    shelf = BookShelf()
    for start in range(0, len(known), _CHAPTERS_AT_ONCE):
        batch = [c for c in known[start : start + _CHAPTERS_AT_ONCE] if c.partition_key not in pending]
        stored = stored_chapters(database, [chapter.partition_key for chapter in batch])
        for chapter in batch:
            try:
                source, _ = shelf.chapter(chapter.source_path, chapter.partition_key)
            except CorruptInput:
                # It is in quarantine, or the look above told of it; what an earlier version stored stays.
                unreadable.append(chapter.partition_key)
                if not Path(chapter.source_path).exists():
                    away.add(chapter.source_path)
                continue
            found = stored.get(chapter.partition_key)
            if found is not None:
                findings += _compared(source, found, rules)
        progress(min(start + _CHAPTERS_AT_ONCE, len(known)), len(known))
    findings += (_table_finding(fault) for fault in table_faults(database) if fault.chapter not in pending)
    findings += (
        Finding(kind="unbalanced_receipt", subject=row["chapter"], said="its receipt does not add up", mend="ingest")
        for row in unbalanced_receipts(database)
        if row["chapter"] not in pending
    )
    findings += (
        Finding(kind="damaged_cached_vector", subject=key.hex(), said="the cached vector is no vector", mend="forget")
        for key in damaged_cache_keys(database)
    )
    findings += (_file_finding(fault) for fault in compare_files(database, settings.data_dir))
    findings += (
        Finding(kind="vanished_file", subject=str(path), said="it is listed as unread, and not there", mend="unlist")
        for path in sources_without_chapters(database)
        # Of the drop folder the next look forgets it, unless the whole folder is away.
        if path.parent != settings.drop_dir and not path.exists()
    )
    return Inspection(
        findings=tuple(dict.fromkeys(findings)),
        chapters=len(known),
        unreadable=tuple(sorted(unreadable)),
        away=tuple(sorted(away)),
    )


def mend(settings: Settings, database: Database, findings: Sequence[Finding]) -> list[KnownChapter]:
    """Mend what needs no run; returns the chapters that are pending now, for an ordinary run. Then call `finish`."""
    for key in _subjects(findings, "purge"):
        retire_chapter(database, key)
    forget_vectors(database, [bytes.fromhex(key) for key in _subjects(findings, "forget")])
    with looking_alone(database):
        record_look(database, looks=[], vanished=_subjects(findings, "unlist"), gone=[], shadowed={})
    redo_chapters(database, _subjects(findings, "ingest"))
    for root in _roots(settings, database):
        look_at_drop(settings, database, root, patient=False, afresh=True)
    return pending_chapters(database, stages=STAGES, suffixes=stamp_rules(settings, database).suffixes, root=None)


def finish(settings: Settings, database: Database) -> None:
    """Make the minister files and the totals agree with the database, after the run over what `mend` returned."""
    faults = compare_files(database, settings.data_dir)
    remove_orphans(faults)
    render_due(
        database,
        settings.ministers_dir,
        {fault.domain for fault in faults if fault.domain is not None and fault.kind in ("missing", "different")},
    )
    render_due(database, settings.ministers_dir, None)
    refresh_combined_index(settings, database)


def _subjects(findings: Sequence[Finding], mend: Mend) -> list[str]:
    return sorted({finding.subject for finding in findings if finding.mend == mend})


def _roots(settings: Settings, database: Database) -> list[Path]:
    """What to look at: the drop folder, and sources from elsewhere one by one, for their neighbours were never dropped.

    What is not there is not looked at: a folder that is away says nothing about its books. Nor is a folder that is no book
    itself, for looked at alone it would be a drop folder, and what lies in it books.
    """
    drop = settings.drop_dir
    elsewhere = [path for path in source_paths(database) if drop not in (path, path.parent) and is_source(path)]
    return [*([drop] if drop.is_dir() and not chapters_away(database, drop) else []), *elsewhere]


def _new_in_the_drop(settings: Settings, database: Database) -> Iterable[Finding]:
    for root in _roots(settings, database):
        look = look_at_drop(settings, database, root, patient=False, record=False, afresh=True)
        for said, keys in (
            ("it is in the drop folder and not in the register", look.new),
            ("its source has changed since", look.changed),
            ("it left the drop folder", look.gone),
        ):
            yield from (Finding(kind="not_ingested_yet", subject=key, said=said, mend="ingest") for key in keys)


def _pending(settings: Settings, database: Database, rules: StampRules) -> dict[str, Finding]:
    found = pending_chapters(database, stages=STAGES, suffixes=rules.suffixes, root=None)
    return {
        chapter.partition_key: Finding(
            kind="not_ingested_yet",
            subject=chapter.partition_key,
            said="it left the drop folder"
            if chapter.gone
            else "not every stage of it is done; `era ingest` does the rest",
            mend="ingest",
        )
        for chapter in found
    }


def _compared(source: SourceChapter, stored: StoredChapter, rules: StampRules) -> Iterable[Finding]:
    """What the source says, cleaned and cut anew, against what is stored."""
    chapter = clean_chapter(source, rules.aliases)
    wanted = {
        (str(entry.doctrine_id), domain, entry.category, entry.text)
        for entry in chapter.entries
        for domain in entry.domains
    }
    chunks = [(chunk.start, chunk.end, chunk.text) for chunk in cut_chunks(chapter.text, rules.chunk_rules)]
    differences: dict[str, tuple[bool, str]] = {
        "missing_entry": (bool(wanted - stored.entries), f"{len(wanted - stored.entries)} entry rows are missing"),
        "extra_entry": (
            bool(stored.entries - wanted),
            f"{len(stored.entries - wanted)} entry rows are not in the source",
        ),
        "different_text": (chapter.text != stored.text, "the stored text is not the source's, cleaned"),
        "different_chunks": (chunks != stored.chunks, "the chunks are not those of the text"),
    }
    for kind, (differs, said) in differences.items():
        if differs:
            yield Finding(kind=kind, subject=chapter.partition_key, said=said, mend="ingest")


def _table_finding(fault: TableFault) -> Finding:
    purge = not fault.stored or fault.kind == "chapter_without_source"
    what = f"{fault.rows} rows of {fault.table}" if fault.rows > 1 else f"a row of {fault.table}"
    return Finding(kind=fault.kind, subject=fault.chapter, said=what, mend="purge" if purge else "ingest")


def _file_finding(fault: FileFault) -> Finding:
    said = {
        "missing": "the file is missing",
        "different": "the file is not what the database would render",
        "orphan": "the domain has no entries, but this file is there",
        "foreign": "this is no minister file, and readers may take it for one",
    }[fault.kind]
    if fault.pending:
        said = "its domain has changed since it was rendered"
    mend: Mend = "by hand" if fault.kind == "foreign" else "finish" if fault.pending else "render"
    return Finding(kind=f"{fault.kind}_file", subject=str(fault.path), said=said, mend=mend)


def as_json(inspection: Inspection) -> dict[str, Any]:
    """JSON-ready, for `--json`."""
    return {
        "clean": inspection.clean,
        "chapters": inspection.chapters,
        "unreadable": list(inspection.unreadable),
        "away": list(inspection.away),
        "findings": [
            {"kind": f.kind, "subject": f.subject, "said": f.said, "mend": f.mend} for f in inspection.findings
        ],
    }
