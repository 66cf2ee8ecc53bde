"""Writes the minister files: the doctrine of each domain as JSON on disk, rendered from the database.

Files are whole and replaced atomically, one writer per domain at a time; a file that already holds the right bytes is
not touched. What a file says is `domain.ministers`; this module decides when and how it reaches the disk.
"""

import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from era_dagster.domain.doctrine import CATEGORIES, Category
from era_dagster.domain.domains import slugify_domain
from era_dagster.domain.errors import StorageError
from era_dagster.domain.ministers import MinisterEntry, render_category, render_combined_index, render_summary
from era_dagster.storage.atomic_files import file_errors, is_litter, replace_file, sync_folder
from era_dagster.storage.database import Database

COMBINED_INDEX = "combined_vector.index"
_SUMMARY = "doctrine.json"
DOMAIN_FILES = (*(f"{category}.json" for category in CATEGORIES), _SUMMARY)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderReport:
    """What `render_due` did: the domains it looked at, files it wrote or found right, domains it took off the disk."""

    domains: tuple[str, ...]
    files_written: int
    files_unchanged: int
    domains_removed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainContent:
    """What the database says of one domain: the bytes of its five files by name, none for a domain without entries."""

    files: dict[str, bytes]
    changed_at: datetime
    rendered_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Rendered:
    written: int = 0
    unchanged: int = 0
    removed: bool = False


def render_due(database: Database, ministers_dir: Path, domains: Iterable[str] | None) -> RenderReport:
    """Make the five files of each of `domains` (slugs) agree with the database; None means all whose entries changed since,
    or of whose files one is missing.

    A domain without entries loses its files, and its folder unless foreign files are in it. A domain the database does
    not know is left alone. Raises `StorageError` naming the file that cannot be written: no file is ever half-written, and
    the domains before that one are done.
    """
    names = sorted(set(domains)) if domains is not None else _due(database, ministers_dir)
    written = unchanged = 0
    removed: list[str] = []
    for domain in names:
        rendered = _render(database, ministers_dir, domain)
        written += rendered.written
        unchanged += rendered.unchanged
        if rendered.removed:
            removed.append(domain)
    return RenderReport(
        domains=tuple(names), files_written=written, files_unchanged=unchanged, domains_removed=tuple(removed)
    )


def write_combined_index(database: Database, data_dir: Path) -> bool:
    """Make `<data>/combined_vector.index` agree with the database; True when it was written.

    Its times are those of the last changes, so an unchanged database gives the same bytes. Before the first entry there
    is nothing to write. Raises `StorageError` naming the file.
    """
    with database.connection() as connection:
        _lock(connection, COMBINED_INDEX)
        content = combined_index_content(connection)
        if content is None:
            return False
        path = data_dir / COMBINED_INDEX
        with file_errors(path):
            data_dir.mkdir(parents=True, exist_ok=True)
            _clear_leftovers(data_dir, (COMBINED_INDEX,))
            written = _write_if_different(path, content)
            if written:
                sync_folder(data_dir)
    return written


def combined_index_content(connection: psycopg.Connection) -> bytes | None:
    """The bytes of the totals file as the database has it now; None before the first entry."""
    rows = connection.execute(
        "SELECT d.domain, d.changed_at, count(e.doctrine_id)"
        " FROM minister_domains AS d LEFT JOIN minister_entries AS e USING (domain)"
        " WHERE d.changed_at IS NOT NULL GROUP BY d.domain"
    ).fetchall()
    if not rows:
        return None
    return render_combined_index(
        {domain: (count, _iso(changed_at)) for domain, changed_at, count in rows if count},
        created=_iso(max(changed_at for _, changed_at, _ in rows)),
    )


def chapter_domains(database: Database, keys: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many entries of each of these chapters stand in the files of which domains, most first; none: absent."""
    found: dict[str, dict[str, int]] = {}
    with database.connection() as connection:
        for key, domain, number in connection.execute(
            "SELECT partition_key, domain, count(*) FROM minister_entries WHERE partition_key = ANY(%s)"
            " GROUP BY 1, 2 ORDER BY 3 DESC, 2",
            (list(keys),),
        ):
            found.setdefault(key, {})[domain] = number
    return found


def domain_content(connection: psycopg.Connection, domain: str) -> DomainContent | None:
    """What the files of a domain (a slug) have to say now; None for a domain that never had an entry."""
    rows = connection.execute(
        "SELECT d.changed_at, d.rendered_at, e.category, e.doctrine_id::text, e.text, e.book, e.chapter, e.weight,"
        " e.embedding_id::text"
        " FROM minister_domains AS d LEFT JOIN minister_entries AS e USING (domain)"
        " WHERE d.domain = %s AND d.changed_at IS NOT NULL"
        ' ORDER BY e.book COLLATE "C", e.chapter, e.position, e.doctrine_id',
        (domain,),
    ).fetchall()
    if not rows:
        return None
    changed_at: datetime = rows[0][0]
    entries: dict[Category, list[MinisterEntry]] = {category: [] for category in CATEGORIES}
    for _, _, category, doctrine_id, text, book, chapter, weight, embedding_id in rows:
        if category is not None:
            entries[category].append(
                MinisterEntry(
                    id=doctrine_id, text=text, book=book, chapter=chapter, weight=weight, embedding_id=embedding_id
                )
            )
    files: dict[str, bytes] = {}
    if rows[0][2] is not None:
        last_updated = _iso(changed_at)
        files = {
            f"{category}.json": render_category(domain, category, entries[category], last_updated)
            for category in CATEGORIES
        }
        files[_SUMMARY] = render_summary(domain, entries, last_updated)
    return DomainContent(files=files, changed_at=changed_at, rendered_at=rows[0][1])


def _due(database: Database, ministers_dir: Path) -> list[str]:
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT domain, rendered_at IS DISTINCT FROM changed_at,"
            " EXISTS (SELECT FROM minister_entries AS e WHERE e.domain = d.domain)"
            " FROM minister_domains AS d WHERE changed_at IS NOT NULL ORDER BY domain"
        ).fetchall()
    return [
        domain
        for domain, changed, has_entries in rows
        if changed
        or (has_entries and not all((_folder(ministers_dir, domain) / name).is_file() for name in DOMAIN_FILES))
    ]


def _render(database: Database, ministers_dir: Path, domain: str) -> _Rendered:
    folder = _folder(ministers_dir, domain)
    with database.connection() as connection:
        _lock(connection, domain)
        # One statement is one snapshot, taken after the lock is held: never the state before the last writer's.
        content = domain_content(connection, domain)
        if content is None:
            return _Rendered()
        rendered = _write_files(folder, content.files) if content.files else _remove_files(folder)
        if content.rendered_at != content.changed_at:
            connection.execute(
                "UPDATE minister_domains SET rendered_at = %s WHERE domain = %s", (content.changed_at, domain)
            )
    return rendered


def _lock(connection: psycopg.Connection, name: str) -> None:
    # Not per data folder: two paths may be one folder, and `rendered_at` is one per domain anyhow.
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"minister files {name}",))


def _folder(ministers_dir: Path, domain: str) -> Path:
    if not domain or slugify_domain(domain) != domain:
        raise StorageError(
            f"The domain {domain!r} cannot be the name of a folder.",
            hint="Remove that row from minister_domains, then ingest its books again.",
        )
    return ministers_dir / domain


def _write_files(folder: Path, contents: dict[str, bytes]) -> _Rendered:
    with file_errors(folder):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        _clear_leftovers(folder, DOMAIN_FILES)
    written = 0
    for name, content in contents.items():
        with file_errors(folder / name):
            written += _write_if_different(folder / name, content)
    if written:
        with file_errors(folder):
            sync_folder(folder)
    return _Rendered(written=written, unchanged=len(contents) - written)


def _remove_files(folder: Path) -> _Rendered:
    with file_errors(folder):
        if not folder.is_dir():
            return _Rendered()
        _clear_leftovers(folder, DOMAIN_FILES)
        removed = False
        for name in DOMAIN_FILES:
            if (folder / name).is_file():
                (folder / name).unlink()
                removed = True
        foreign = remove_empty(folder)
        sync_folder(folder if foreign else folder.parent)
    return _Rendered(removed=removed or not foreign)


def strangers(folder: Path) -> tuple[str, ...]:
    """The names of what lies in a folder, but for what file browsers leave behind."""
    return tuple(sorted(path.name for path in folder.iterdir() if not is_litter(path)))


def remove_empty(folder: Path) -> tuple[str, ...]:
    """Remove a folder without `strangers`; else their names."""
    found = strangers(folder)
    if not found:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    return found


def _write_if_different(path: Path, content: bytes) -> bool:
    if path.exists() and path.read_bytes() == content:
        return False
    # No reader takes this name for JSON; the same folder, so that the replacement is one step of the file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _clear_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed writer left: whoever holds the lock is the only living one."""
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
