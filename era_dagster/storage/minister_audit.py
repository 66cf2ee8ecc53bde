"""Compares the minister files on disk with what the database would render, byte by byte, and changes nothing.

Finds what `storage.minister_files` never makes: somebody else's edits, deletions, copies and leftovers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from era_dagster.domain.errors import StorageError
from era_dagster.storage.database import Database
from era_dagster.storage.minister_files import (
    COMBINED_INDEX,
    DOMAIN_FILES,
    combined_index_content,
    domain_content,
    remove_empty,
    strangers,
)

FileFaultKind = Literal["missing", "different", "orphan", "foreign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFault:
    """One file or folder that is not as the database has it; `domain` is its folder's name, None for the totals file.

    "orphan": one of our files for a domain without entries. "foreign": nothing of ours, so only its owner may remove it.
    `pending`: entries were stored since the domain was rendered last (of the totals file: any domain), so that the next
    ingest sees to it.
    """

    kind: FileFaultKind
    path: Path
    domain: str | None
    pending: bool = False


def compare_files(database: Database, data_dir: Path) -> list[FileFault]:
    """Every difference between `<data>/ministers`, `<data>/combined_vector.index` and the database, in order of path.

    The hidden temporary files of a killed writer are no difference: readers pass over them, the next writer clears them.
    Nor is what another run stored and rendered while we looked. Raises `StorageError` for a file or folder that cannot be
    read.
    """
    try:
        faults = _differences(database, data_dir)
        if not faults:
            return []
        # Files are compared with one snapshot of the database, and are newer than it where a run ended meanwhile. Such a file
        # agrees with a later snapshot; one that is at fault is so in both.
        suspected = {fault.path for fault in faults}
        return [fault for fault in _differences(database, data_dir) if fault.path in suspected]
    except OSError as error:
        raise StorageError(
            f"{error.filename or data_dir} cannot be read: {error.strerror or error}.",
            hint="Grant the rights, then try again.",
        ) from error


def _differences(database: Database, data_dir: Path) -> list[FileFault]:
    ministers = data_dir / "ministers"
    faults: list[FileFault] = []
    with database.connection() as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        domains = [name for (name,) in connection.execute("SELECT domain FROM minister_domains ORDER BY domain")]
        with_files: set[str] = set()
        pending: set[str] = set()
        for domain in domains:
            content = domain_content(connection, domain)
            if content is None:
                continue
            if content.rendered_at != content.changed_at:
                pending.add(domain)
            if content.files:
                with_files.add(domain)
            for name, wanted in content.files.items():
                faults += _compared(ministers / domain / name, wanted, domain, pending=domain in pending)
        index = combined_index_content(connection)
        if index is not None:
            faults += _compared(data_dir / COMBINED_INDEX, index, None, pending=bool(pending))
    faults += _others(ministers, with_files, pending)
    return sorted(faults, key=lambda fault: fault.path)


def remove_orphans(faults: list[FileFault]) -> None:
    """Delete the orphaned files among `faults`, and their folders where nothing else is in them."""
    for fault in faults:
        if fault.kind == "orphan":
            fault.path.unlink(missing_ok=True)
    for folder in {fault.path.parent for fault in faults if fault.kind == "orphan"}:
        if folder.is_dir():
            remove_empty(folder)


def _compared(path: Path, wanted: bytes, domain: str | None, *, pending: bool) -> Iterator[FileFault]:
    if not path.is_file():
        yield FileFault(kind="missing", path=path, domain=domain, pending=pending)
    elif path.read_bytes() != wanted:
        yield FileFault(kind="different", path=path, domain=domain, pending=pending)


def _others(ministers: Path, with_files: set[str], pending: set[str]) -> Iterator[FileFault]:
    for path in sorted(ministers.iterdir()) if ministers.is_dir() else ():
        if not path.is_dir():
            if not path.name.startswith("."):
                yield FileFault(kind="foreign", path=path, domain=None)
            continue
        for file in sorted(path.iterdir()):
            if file.name in DOMAIN_FILES and file.is_file():
                if path.name not in with_files:
                    yield FileFault(kind="orphan", path=file, domain=path.name, pending=path.name in pending)
            elif not file.name.startswith("."):
                yield FileFault(kind="foreign", path=file, domain=path.name)
        if path.name not in with_files and not strangers(path):
            yield FileFault(kind="foreign", path=path, domain=path.name)
