"""Files and folders that appear whole or not at all: written beside their place, then renamed into it.

Whoever writes holds a lock on what it writes, so that the next one for the same place can tell, and remove, what a killed
process left. Knows paths and bytes, not what is in them.
"""

import errno
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from era_dagster.domain.errors import ConfigurationError, StorageError

if sys.platform != "win32":
    import fcntl

# Others take a folder for moments only; a stranger who keeps it locked must not stop an export.
_LONGEST_WAIT_SECONDS = 5.0
_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def is_litter(path: Path) -> bool:
    """Is it a file that the file browsers of macOS and Windows leave in a folder that somebody looked at?"""
    return path.name in _LITTER and path.is_file()


@contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write; it takes its place at the end, and leaves nothing when the writing fails. A link stays one.

    Raises `ConfigurationError` when something is there and `overwrite` is not set, `StorageError` when it cannot be
    written.
    """
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder.", hint="Name a file.")
    if path.exists() and not path.is_file():
        raise ConfigurationError(f"{path} is a device or a pipe, and a file is put in its place.", hint="Name a file.")
    if path.exists() and not overwrite:
        raise ConfigurationError(f"{path} is there already.", hint="Name another file, or add --overwrite.")
    path = path.resolve()
    with file_errors(path), _beside(path, Path.touch, is_left=_is_file) as temporary:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            replace_file(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def new_folder(path: Path, *, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder to fill; it takes its place at the end, and leaves nothing when the filling fails. A link stays one.

    What is at its place is replaced only with `overwrite`, and only when every file in it is one that `is_ours` knows by
    its path below the folder. Raises `ConfigurationError` otherwise, `StorageError` when it cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"{path} is a file.", hint="Name a folder.")
    found = [file for file in path.rglob("*") if not file.is_dir() and not is_litter(file)] if path.is_dir() else []
    files = [file.relative_to(path) for file in found]
    if files and not overwrite:
        raise ConfigurationError(f"{path} is not empty.", hint="Name another folder, or add --overwrite.")
    foreign = sorted(file.as_posix() for file in files if not is_ours(file))
    if foreign:
        raise ConfigurationError(
            f"{path} holds what no export has written: {', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}.",
            hint="Name another folder.",
        )
    path = path.resolve()

    def is_left(left: Path) -> bool:
        return left.is_dir() and all(
            file.is_dir() or is_litter(file) or is_ours(file.relative_to(left)) for file in left.rglob("*")
        )

    with file_errors(path), _beside(path, Path.mkdir, is_left=is_left) as temporary:
        former = temporary.with_suffix(".old")
        try:
            yield temporary
            with _locked(path.parent, wait_seconds=_LONGEST_WAIT_SECONDS):
                if path.is_dir():
                    path.replace(former)
                temporary.replace(path)
        finally:
            if former.is_dir() and not path.exists():
                former.replace(path)
            for left in (temporary, former):
                shutil.rmtree(left, ignore_errors=True)
        sync_folder(path.parent)


@contextmanager
def _beside(path: Path, make: Callable[[Path], None], *, is_left: Callable[[Path], bool]) -> Iterator[Path]:
    """A new name in the same folder, so that the renaming is one step of the file system, made and held until the end.

    Removes first what killed processes left there for `path`, if it `is_left`; never what another one holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    left_by_name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    with ExitStack() as held:
        # So that nobody finds a name that is made and not held yet, nor the halves of a replacement.
        with _locked(path.parent, wait_seconds=_LONGEST_WAIT_SECONDS) as alone:
            for left in list(path.parent.iterdir()) if alone else []:
                # What was replaced may be the only one there is.
                if left_by_name.fullmatch(left.name) and (left.suffix == ".tmp" or path.exists()):
                    # Another user's stays.
                    with _locked(left) as free, suppress(OSError):
                        if free and is_left(left):
                            shutil.rmtree(left) if left.is_dir() else left.unlink()
            make(temporary)
            held.enter_context(_locked(temporary))
        yield temporary


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@contextmanager
def _locked(path: Path, *, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Whether it is locked for us until the end: no while another process has it, and where there are no such locks (Windows,
    some network drives)."""
    if sys.platform == "win32":
        yield False
        return
    until = time.monotonic() + wait_seconds
    with ExitStack() as opened:
        locked = False
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            opened.callback(os.close, descriptor)
            while not locked:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    locked = True
                except BlockingIOError:
                    if time.monotonic() >= until:
                        break
                    time.sleep(0.05)
        yield locked


def replace_file(temporary: Path, path: Path) -> None:
    """Put a finished file in its place."""
    # On Windows a file that somebody is reading cannot be replaced; readers of small files are gone in a moment.
    for _ in range(20 if os.name == "nt" else 0):
        try:
            temporary.replace(path)
        except PermissionError:
            time.sleep(0.05)
        else:
            return
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        hint = "Free space or grant the rights, then run again."
        if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
            there = next(each for each in (path, *path.parents) if os.path.lexists(each))
            kind = "a" if there.is_dir() else "no"
            hint = f"{there} is {kind} folder: move it out of the way, or name another folder, then run again."
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.", hint=hint) from error
