"""The register of embedding spaces: the live one, those being built beside it, and those kept for a way back.

Which spaces there are, how complete each is, and who may work on one. What is in them is `storage.space_rows`, which of
them is live `storage.space_switch`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import psycopg
from psycopg import sql

from era_dagster.domain.errors import ConfigurationError, TransientError
from era_dagster.domain.space import Space
from era_dagster.storage.database import Database
from era_dagster.storage.spaces import (
    LIVE_SCHEMA,
    create_vector_tables,
    live_space_in,
    numbered_name,
    record_space,
    space_name,
    space_of_row,
)

SpaceState = Literal["live", "building", "retired"]

# A killed build's connection is noticed by the server within moments.
_LOCK_PATIENCE_SECONDS = 2.0
_LOCK_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredSpace:
    """One space. `schema` holds its tables. Of `chapters_wanted` chapters `chapters` have the vectors of their present
    texts in it; `dead` of those texts could not be embedded. `left` chapters in it have left the knowledge base."""

    space_id: int
    state: SpaceState
    schema: str
    space: Space
    created_at: datetime
    chapters: int
    chapters_wanted: int
    dead: int
    left: int

    @property
    def name(self) -> str:
        """For people: number, model, dimension."""
        return numbered_name(self.space_id, self.space)

    @property
    def complete(self) -> bool:
        """Every chapter that has been chunked is in it, as it is now, and no other."""
        return self.chapters == self.chapters_wanted and not self.left


# The live space follows the texts by its stamps, the others by the fingerprints of what they were made from.
_SPACES = """
SELECT e.space_id, e.state, e.schema_name, e.created_at,
       CASE WHEN e.state = 'live'
            THEN (SELECT count(*) FROM doctrine_sources WHERE chunk_count IS NOT NULL AND vector_tables_stamp IS NOT NULL)
            ELSE (SELECT count(*) FROM space_chapters AS c JOIN chapter_fingerprints AS f USING (partition_key, fingerprint)
                  WHERE c.space_id = e.space_id) END,
       (SELECT count(*) FROM doctrine_sources WHERE chunk_count IS NOT NULL),
       CASE WHEN e.state = 'live' THEN (SELECT count(*) FROM dead_letters WHERE state <> 'resolved')
            ELSE (SELECT coalesce(sum(jsonb_array_length(c.dead)), 0) FROM space_chapters AS c
                  WHERE c.space_id = e.space_id) END,
       (SELECT count(*) FROM space_chapters AS c WHERE c.space_id = e.space_id AND e.state <> 'live'
        AND NOT EXISTS (SELECT FROM doctrine_sources AS s
                        WHERE s.partition_key = c.partition_key AND s.chunk_count IS NOT NULL)),
       e.provider, e.model, e.digest, e.dimension, e.document_prefix, e.query_prefix
FROM embedding_spaces AS e ORDER BY e.space_id
"""


def list_spaces(database: Database) -> list[RegisteredSpace]:
    """Every space, oldest first."""
    with database.connection() as connection:
        return spaces_in(connection)


def spaces_in(connection: psycopg.Connection) -> list[RegisteredSpace]:
    """As `list_spaces`, in this connection's transaction."""
    return [
        RegisteredSpace(
            space_id=row[0],
            state=row[1],
            schema=row[2],
            created_at=row[3],
            chapters=row[4],
            chapters_wanted=row[5],
            dead=int(row[6]),
            left=row[7],
            space=space_of_row(row[8:]),
        )
        for row in connection.execute(_SPACES)
    ]


def named_space(connection: psycopg.Connection, space_id: int) -> RegisteredSpace:
    """The space of that number. Raises `ConfigurationError` when there is none."""
    for found in spaces_in(connection):
        if found.space_id == space_id:
            return found
    raise ConfigurationError(
        f"There is no embedding space {space_id}.", hint="`era spaces list` shows those there are."
    )


def space_beside(database: Database, space: Space) -> RegisteredSpace:
    """The space of this model beside the live one, whatever it holds already; an empty one is made where there is none.

    Raises `ConfigurationError` when the model is the live one, when nothing is live yet, and for a dimension that
    cannot be stored.
    """
    with database.connection() as connection:
        # As in `ensure_space`: readers go on, two makers of one space do not.
        connection.execute("LOCK TABLE embedding_spaces IN EXCLUSIVE MODE")
        live = live_space_in(connection)
        if live is None:
            raise ConfigurationError(
                "There is no live space to build beside: nothing has been embedded yet.",
                hint="`era ingest` makes the first one.",
            )
        if live.same_model(space):
            raise ConfigurationError(
                f"{space_name(space)} is the live model already.",
                hint="Name another with --model (and --provider, --url), or by ERA_EMBEDDING_MODEL.",
            )
        # Of two that an earlier release took for two models because of their spelling, the one that is spelt the same.
        for found in sorted(spaces_in(connection), key=lambda each: each.space.stamp != space.stamp):
            if found.space.same_model(space):
                return found
        # The number is part of the schema's name and known only now.
        space_id = record_space(connection, space, state="building", schema="")
        schema = beside_schema(space_id)
        connection.execute("UPDATE embedding_spaces SET schema_name = %s WHERE space_id = %s", (schema, space_id))
        create_vector_tables(connection, schema=schema, dimension=space.dimension)
        return named_space(connection, space_id)


def beside_schema(space_id: int) -> str:
    """Where a space that is not live has its tables."""
    return f"{LIVE_SCHEMA}_{space_id}"


@contextmanager
def working_on(database: Database, space_id: int) -> Iterator[None]:
    """Be the only one who builds this space. Raises `TransientError` when somebody else is at it.

    The lock belongs to a connection, so that a killed build leaves none behind.
    """
    with database.connection() as connection:
        connection.commit()
        connection.autocommit = True
        until = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while not _try_lock(connection, "pg_try_advisory_lock", space_id):
            if time.monotonic() > until:
                raise _being_built(space_id)
            time.sleep(_LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            # A lost connection has lost its lock too.
            if not connection.broken:
                connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (_lock_name(space_id),))
                connection.autocommit = False


def claim(connection: psycopg.Connection, space_id: int) -> None:
    """Keep builders away from this space until the transaction ends. Raises `TransientError` when one is at it."""
    if not _try_lock(connection, "pg_try_advisory_xact_lock", space_id):
        raise _being_built(space_id)


def _try_lock(connection: psycopg.Connection, function: str, space_id: int) -> bool:
    statement = sql.SQL("SELECT {}(hashtextextended(%s, 0))").format(sql.Identifier(function))
    row = connection.execute(statement, (_lock_name(space_id),)).fetchone()
    return bool(row and row[0])


def _lock_name(space_id: int) -> str:
    return f"embedding space {space_id}"


def _being_built(space_id: int) -> TransientError:
    return TransientError(
        f"Embedding space {space_id} is being built by another process.",
        hint="Wait until it is done, or stop it; what it has done is kept.",
    )
