"""Looks at the drop folder: which books lie there, with the sizes and times of their input files, and nothing more.

Only names and `stat`; no file is opened (`intake.reader` does that), and nothing is decided (`intake.plan`). What is not
input (raw text, checkpoints, logs, minister folders) is not in the snapshot, so a change of it starts nothing.
"""

import errno
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Literal

from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.identity import safe_name
from era_dagster.intake.reader import CHAPTERS_FILE, DOCTRINE_FILE, PRIORITY_FILE
from era_dagster.settings import absolute

INPUTS = (CHAPTERS_FILE, DOCTRINE_FILE)
_OF_THE_SYSTEM = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN", "desktop.ini", "Thumbs.db"})
_NOT_BOOKS = _OF_THE_SYSTEM | {"ministers", "__MACOSX"}
_TEMPORARY = re.compile(r"^\.|^~\$|~$|\.(?:part|partial|tmp|temp|crdownload|download|swp|filepart)$", re.IGNORECASE)
# What the extractor writes beside its two output files; in a folder of single-file drops it is not a book.
_BY_PRODUCTS = re.compile(r"^0[0-9]_|^progress\.json$")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """One input file: size in bytes, time of the last change in nanoseconds since 1970."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStat:
    """One source: a book folder or a file of chapters.

    `path` is absolute, `name` relative to the scanned root with `/` ("." for the root itself). `obstacle` is empty when
    the source can be read; else it says what is missing or wrong, and the source waits. `priority` is the file that holds
    only that; no age of the source, for it changes no chapter.
    """

    path: str
    name: str
    kind: Literal["folder", "file"]
    files: tuple[FileStat, ...]
    obstacle: str = ""
    priority: FileStat | None = None


def scan_drop(root: Path) -> tuple[SourceStat, ...]:
    """The sources under `root`, by name: its sub-folders and its `.json` files; `root` itself when it is a book or file.

    One level deep. Hidden and temporary names, by-products and links that lead back above themselves are passed over;
    one that leads nowhere waits, for what it leads to may be away for a while.
    Raises `ConfigurationError` naming a root that is not there or cannot be listed: never an empty answer for it. The same
    where this process would see other names than those that were recorded, and take every book for another.
    """
    if sys.getfilesystemencoding() != "utf-8":
        raise ConfigurationError(
            f"File names are read as {sys.getfilesystemencoding()} here, not as UTF-8.",
            hint="Set PYTHONUTF8=1, or a UTF-8 locale such as LC_ALL=C.UTF-8.",
        )
    root = absolute(root)
    try:
        if root.is_file():
            return (_file(root, "."),)
        paths = sorted(
            path for path in root.iterdir() if path.name not in _NOT_BOOKS and not _TEMPORARY.search(path.name)
        )
    except OSError as error:
        first = "Let this user read it" if isinstance(error, PermissionError) else "Make it"
        raise ConfigurationError(
            f"The drop folder {root} cannot be read: {error.strerror or error}.",
            hint=f"{first}, or set ERA_DROP_DIR to the folder the books are dropped into.",
        ) from error
    found = [stat for stat in (_child(root, path) for path in paths) if stat is not None]
    if any((root / name).is_file() for name in INPUTS):
        holds_books = any(stat.kind == "folder" and stat.files for stat in found)
        own = _folder(root, ".")
        if not holds_books:
            return (own,)
        found.append(
            SourceStat(
                path=own.path,
                name=".",
                kind="folder",
                files=own.files,
                obstacle="input files lie among book folders; move them into a folder with the book's name",
            )
        )
    return tuple(sorted(found, key=lambda stat: stat.name))


def directory_of(folder: Path) -> str | None:
    """Device and inode of a folder, None for what is none: another answer under the same name is another directory, such as
    the one under a disk that is not mounted."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return f"{status.st_dev}:{status.st_ino}" if S_ISDIR(status.st_mode) else None


def is_bare(folder: Path) -> bool:
    """Is it a folder with nothing in it that somebody put there? Hidden names are not looked at, nor what systems make."""
    try:
        return all(path.name.startswith(".") or path.name in _OF_THE_SYSTEM for path in folder.iterdir())
    except OSError:
        return False


def is_source(path: Path) -> bool:
    """Is this a file, or a folder with a book's input in it?"""
    return path.is_file() or any((path / name).is_file() for name in INPUTS)


def _child(root: Path, path: Path) -> SourceStat | None:
    name = safe_name(path.name)
    try:
        if path.is_dir():
            if path.is_symlink() and root.is_relative_to(path.resolve()):
                return None
            stat = _folder(path, name)
        elif path.is_file() and path.suffix.lower() == ".json" and not _BY_PRODUCTS.search(path.name):
            stat = _file(path, name)
        elif path.is_symlink() and not path.exists() and not _BY_PRODUCTS.search(path.name):
            # What it leads to may lie on a disk that is away: a book that shall go takes its link along.
            kind: Literal["folder", "file"] = "file" if path.suffix.lower() == ".json" else "folder"
            obstacle = f"it is a link to {safe_name(str(path.readlink()))}, which is not there"
            stat = SourceStat(path=str(path), name=name, kind=kind, files=(), obstacle=obstacle)
        else:
            return None
    except (FileNotFoundError, RuntimeError):
        # It vanished meanwhile, or is a link in a circle (`resolve` says that with a RuntimeError): no book.
        return None
    except OSError as error:
        obstacle = f"it cannot be looked at: {error.strerror or error}"
        return SourceStat(path=str(path.parent / name), name=name, kind="folder", files=(), obstacle=obstacle)
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        safe = str(path.parent / name)
        return SourceStat(
            path=safe, name=name, kind=stat.kind, files=(), obstacle="its name is not valid Unicode; rename it"
        )
    return stat


def _file(path: Path, name: str) -> SourceStat:
    return SourceStat(path=str(path), name=name, kind="file", files=(_stat(path),))


def _folder(path: Path, name: str) -> SourceStat:
    files: list[FileStat] = []
    missing: list[str] = []
    for wanted in INPUTS:
        try:
            files.append(_stat(path / wanted))
        except FileNotFoundError:
            missing.append(wanted)
        except OSError as error:
            return SourceStat(
                path=str(path),
                name=name,
                kind="folder",
                files=(),
                obstacle=f"it cannot be looked into: {error.strerror or error}",
            )
    obstacle = f"{' and '.join(missing)} not there yet" if missing else ""
    return SourceStat(
        path=str(path), name=name, kind="folder", files=tuple(files), obstacle=obstacle, priority=_priority(path)
    )


def _priority(folder: Path) -> FileStat | None:
    try:
        status = (folder / PRIORITY_FILE).stat()
    except OSError:
        # None, or none that the reader could read: the book is read without.
        return None
    return FileStat(name=PRIORITY_FILE, size=status.st_size, mtime_ns=status.st_mtime_ns)


def _stat(path: Path) -> FileStat:
    status = path.stat()
    # Here and not while reading: a change of rights changes no time, so an unreadable file would never be tried again.
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, "no right to read it", str(path))
    return FileStat(name=path.name, size=status.st_size, mtime_ns=status.st_mtime_ns)
