"""Files and folders that appear whole or not at all: written beside their place, then renamed into it.

Knows paths and bytes, not what is in them.
"""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from era_dagster.domain.errors import ConfigurationError, StorageError


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
    temporary = _beside(path)
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
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
    files = [file.relative_to(path) for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else []
    if files and not overwrite:
        raise ConfigurationError(f"{path} is not empty.", hint="Name another folder, or add --overwrite.")
    foreign = sorted(file.as_posix() for file in files if not is_ours(file))
    if foreign:
        raise ConfigurationError(
            f"{path} holds what no export has written: {', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}.",
            hint="Name another folder.",
        )
    path = path.resolve()
    temporary, former = _beside(path), _beside(path)
    with file_errors(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if path.is_dir():
                path.replace(former)
            temporary.replace(path)
        finally:
            if former.is_dir() and not path.exists():
                former.replace(path)
            for left in (temporary, former):
                shutil.rmtree(left, ignore_errors=True)
        sync_folder(path.parent)


def _beside(path: Path) -> Path:
    """In the same folder, so that the renaming is one step of the file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


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
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.",
            hint="Free space or grant the rights, then run again.",
        ) from error
