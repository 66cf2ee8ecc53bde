"""What a look at a drop folder may rely on: that nobody else looks, and that the folder is the one that held the books.

What a look decides stands on what the register (`storage.drops`) held at its beginning. Of two at once the slower would record as
gone what the other had just found somewhere else, and nothing would read it again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import errors as pg_errors

from era_dagster.domain.errors import TransientError
from era_dagster.storage.database import Database, driver_errors

_PATIENCE_SECONDS = 30
"""Half of what a tick of the sensor may take."""
_LONGEST_SECONDS = 120
"""A look that asks nothing for so long is taken for gone: the network may have lost it without a word."""


@contextmanager
def looking_alone(database: Database) -> Iterator[None]:
    """Be the only one who looks, until the block ends.

    Raises `TransientError` when somebody else is at it for too long. The lock belongs to a connection of its own, so that a
    killed look leaves none behind, and a pool of one connection is enough.
    """
    with driver_errors():
        connection = psycopg.connect(database.url, autocommit=True, connect_timeout=10, application_name="era_dagster")
    try:
        with driver_errors():
            connection.execute(
                "SELECT set_config('idle_session_timeout', %s, false), set_config('lock_timeout', %s, false)",
                (f"{_LONGEST_SECONDS}s", f"{_PATIENCE_SECONDS}s"),
            )
            try:
                connection.execute("SELECT pg_advisory_lock(hashtextextended('drop register', 0))")
            except pg_errors.LockNotAvailable as error:
                raise TransientError(
                    f"Another process has been looking at a drop folder for {_PATIENCE_SECONDS} s.",
                    hint="Try again when it has ended.",
                ) from error
        yield
    finally:
        connection.close()


def directory_seen(database: Database, folder: Path) -> str | None:
    """Which directory `folder` was when books were last seen in it, as `note_directory` was told."""
    with database.connection() as connection:
        row = connection.execute("SELECT directory FROM drop_folders WHERE folder = %s", (str(folder),)).fetchone()
    return None if row is None else row[0]


def note_directory(database: Database, folder: Path, directory: str) -> None:
    """Books were seen in `folder`, which is this directory."""
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO drop_folders AS f (folder, directory) VALUES (%s, %s) ON CONFLICT (folder) DO UPDATE"
            " SET directory = excluded.directory WHERE f.directory <> excluded.directory",
            (str(folder), directory),
        )
