"""One look at drop folders at a time: what a look decides stands on what the register (`storage.drops`) held at its beginning.

Of two at once the slower would record as gone what the other had just found somewhere else, and nothing would read it again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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
