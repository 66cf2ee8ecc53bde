"""Makes another embedding space the live one in one transaction, forwards or back, and drops spaces that are not live.

The order of the locks is the whole matter (docs/adr/0014-embedding-spaces.md): first writers of vectors are kept out,
then completeness is judged and stamps are set at leisure while look-ups go on, and only the renaming itself, a few
milliseconds, excludes readers.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from era_dagster.domain.errors import ConfigurationError, PermanentError, TransientError
from era_dagster.domain.space import canonical_model_name
from era_dagster.domain.stages import Stage, vector_stamps
from era_dagster.storage.database import Database, set_lock_timeout
from era_dagster.storage.dead_letters import DeadText, write_letters
from era_dagster.storage.indexes import build_vector_indexes
from era_dagster.storage.space_register import (
    RegisteredSpace,
    beside_schema,
    claim,
    named_space,
    spaces_in,
    working_on,
)
from era_dagster.storage.spaces import LIVE_SCHEMA, SWITCH_LOCK

# A look-up takes milliseconds. One that waits behind our wait must not notice much of it.
_SWITCH_WAIT_MS = 250
_WRITERS_WAIT_MS = 30_000
_SWITCH_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.1
_ITS_LETTERS = sql.SQL(
    "coalesce((SELECT jsonb_agg(jsonb_build_object('text', d.payload, 'error_class', d.error_class, 'message', d.message,"
    " 'fingerprint', d.fingerprint, 'attempts', d.attempts, 'dropped', d.state = 'dropped')) FROM dead_letters AS d"
    " WHERE d.partition_key = f.partition_key AND d.stage = 'embeddings' AND d.state <> 'resolved'), '[]')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What was switched, as it is afterwards. `switch_seconds` is how long look-ups were kept waiting, at most; `indexes`
    are the tables whose vector index was missing and was built before."""

    promoted: RegisteredSpace
    retired: RegisteredSpace
    chapters: int
    dead: int
    switch_seconds: float
    indexes: list[str]


def check_promotable(space: RegisteredSpace, *, accept_dead: bool) -> None:
    """Refuse a space that cannot be made live as it is: `ConfigurationError` when it is live, `PermanentError` when a
    chapter or a text is missing in it, with the command that brings it up to date."""
    if space.state == "live":
        raise ConfigurationError(f"Embedding space {space.name} is live already.")
    build = f"`era spaces build --model {space.space.model} --provider {space.space.provider}`"
    if not space.complete:
        behind = space.chapters_wanted - space.chapters
        raise PermanentError(
            f"Embedding space {space.name} is not complete: {behind:,} of {space.chapters_wanted:,} chapters are missing"
            f" or changed since{f', and {space.left:,} have left' if space.left else ''}.",
            hint=f"{build} brings it up to date.",
        )
    if space.dead and not accept_dead:
        raise PermanentError(
            f"{space.dead:,} texts have no vector in embedding space {space.name}.",
            hint=f"{build} tries them again; --accept-dead promotes without them, as dead letters.",
        )


def promote_space(database: Database, space_id: int, *, accept_dead: bool = False) -> Promotion:
    """Make space `space_id` live and keep the live one beside it, in one transaction; look-ups go on.

    Before that, vector indexes that are due in it and missing (its build was killed while it made them, or a load dropped
    them while it was live) are built, so that look-ups are as fast after the switch as before.

    Raises as `check_promotable`, `ConfigurationError` for an unknown space, `TransientError` when it is being built or
    when somebody holds the tables for longer than a minute: then nothing was changed.
    """
    indexes = _build_missing_indexes(database, space_id, accept_dead=accept_dead)
    with database.connection() as connection:
        _keep_writers_out(connection)
        promoted = named_space(connection, space_id)
        claim(connection, space_id)
        check_promotable(promoted, accept_dead=accept_dead)
        retired = next(space for space in spaces_in(connection) if space.state == "live")
        # Who sets stamps of stages without vectors, or asks for a redrive, waits too.
        connection.execute("LOCK TABLE doctrine_sources IN SHARE ROW EXCLUSIVE MODE")
        _note_what_is_left_behind(connection, retired)
        _take_over_letters(connection, promoted)
        chapters = _take_over_stamps(connection, promoted)
        _let_the_same_read(connection, promoted)
        started = _keep_readers_out(connection)
        _rename(connection, promoted, retired)
    return Promotion(
        promoted=replace(promoted, state="live", schema=LIVE_SCHEMA),
        retired=replace(retired, state="retired", schema=beside_schema(retired.space_id)),
        chapters=chapters,
        dead=promoted.dead,
        switch_seconds=time.monotonic() - started,
        indexes=indexes,
    )


def _build_missing_indexes(database: Database, space_id: int, *, accept_dead: bool) -> list[str]:
    with database.connection() as connection:
        space = named_space(connection, space_id)
    check_promotable(space, accept_dead=accept_dead)
    with working_on(database, space_id):
        return build_vector_indexes(database, schema=space.schema)


def droppable_space(database: Database, space_id: int) -> RegisteredSpace:
    """The space of that number. Raises `ConfigurationError` when there is none, or it is the live one."""
    with database.connection() as connection:
        return _droppable(connection, space_id)


def _droppable(connection: psycopg.Connection, space_id: int) -> RegisteredSpace:
    space = named_space(connection, space_id)
    if space.state == "live":
        raise ConfigurationError(
            f"Embedding space {space.name} is live: look-ups read it.", hint="Promote another one first."
        )
    return space


def drop_space(database: Database, space_id: int) -> RegisteredSpace:
    """Remove a space that is not live, with its tables; returns what it was. Cached vectors of its model stay, unless no
    digest tells the model from another one of its name, and no other space is of it.

    Raises `ConfigurationError` for an unknown or the live space, `TransientError` when it is being built.
    """
    with database.connection() as connection:
        _keep_writers_out(connection)
        space = _droppable(connection, space_id)
        claim(connection, space_id)
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(space.schema)))
        connection.execute("DELETE FROM embedding_spaces WHERE space_id = %s", (space_id,))
        model = canonical_model_name(space.space.model)
        if space.space.digest is None and not any(
            canonical_model_name(other.space.model) == model for other in spaces_in(connection)
        ):
            connection.execute("DELETE FROM embedding_cache WHERE model IN (%s, %s)", (model, f"{model}:latest"))
    return space


def _keep_writers_out(connection: psycopg.Connection) -> None:
    """Wait for the chapters that are being written, and let no other be written until the transaction ends."""
    set_lock_timeout(connection, _WRITERS_WAIT_MS)
    try:
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (SWITCH_LOCK,))
    except psycopg.errors.LockNotAvailable as error:
        raise TransientError(
            f"Somebody has been writing vectors for {_WRITERS_WAIT_MS // 1000} s without an end.",
            hint="Look for a stuck run (`era status`), then try again; nothing was changed.",
        ) from error


def _keep_readers_out(connection: psycopg.Connection) -> float:
    """Wait until no look-up is under way; returns since when new ones wait.

    Every look-up reads this table first and holds it to its end. In short tries: while we wait for one that takes long,
    all that come after wait behind us.
    """
    set_lock_timeout(connection, _SWITCH_WAIT_MS)
    until = time.monotonic() + _SWITCH_PATIENCE_SECONDS
    while True:
        started = time.monotonic()
        try:
            with connection.transaction():
                connection.execute("LOCK TABLE embedding_spaces IN ACCESS EXCLUSIVE MODE")
            return started
        except psycopg.errors.LockNotAvailable as error:
            if time.monotonic() > until:
                raise TransientError(
                    f"Somebody has been reading the vector tables for {_SWITCH_PATIENCE_SECONDS:g} s without an end.",
                    hint="Wait for a backup or a long query to end, then try again; nothing was changed.",
                ) from error
            time.sleep(_PAUSE_SECONDS)


def _note_what_is_left_behind(connection: psycopg.Connection, retired: RegisteredSpace) -> None:
    """Record which chapters the space that was live holds as they are now, so that it can be told whether it still may
    be gone back to."""
    connection.execute("DELETE FROM space_chapters WHERE space_id = %s", (retired.space_id,))
    current = [
        key
        for key, stamp, stamps in _stamps(connection, retired)
        if stamp is not None and stamp == stamps["vector_tables"]
    ]
    connection.execute(
        sql.SQL(
            "INSERT INTO space_chapters (space_id, partition_key, fingerprint, dead)"
            " SELECT %s, f.partition_key, f.fingerprint, {} FROM chapter_fingerprints AS f WHERE f.partition_key = ANY(%s)"
        ).format(_ITS_LETTERS),
        (retired.space_id, current),
    )
    # What it holds of chapters that are stale in it is noted under no fingerprint, so that a build makes it anew.
    connection.execute(
        sql.SQL(
            "INSERT INTO space_chapters (space_id, partition_key, fingerprint, dead)"
            " SELECT %s, f.partition_key, ''::bytea, {} FROM (SELECT partition_key FROM chunk_embeddings UNION"
            " SELECT partition_key FROM doctrine_embeddings_all UNION"
            " SELECT partition_key FROM dead_letters WHERE stage = 'embeddings' AND state <> 'resolved') AS f"
            " ON CONFLICT DO NOTHING"
        ).format(_ITS_LETTERS),
        (retired.space_id,),
    )


def _take_over_letters(connection: psycopg.Connection, promoted: RegisteredSpace) -> None:
    """Dead letters are of the live model: those of the promoted space are open, or dropped where they were when it was
    live, and the others are resolved."""
    dead = dict(
        connection.execute(
            "SELECT partition_key, dead FROM space_chapters WHERE space_id = %s AND dead <> '[]' UNION"
            " SELECT partition_key, '[]' FROM dead_letters WHERE state <> 'resolved' AND stage = 'embeddings'"
            " AND partition_key NOT IN"
            " (SELECT partition_key FROM space_chapters WHERE space_id = %s AND dead <> '[]')",
            (promoted.space_id, promoted.space_id),
        ).fetchall()
    )
    for key in sorted(dead):
        write_letters(connection, key, [DeadText(**text) for text in dead[key]], as_noted=True)


def _take_over_stamps(connection: psycopg.Connection, promoted: RegisteredSpace) -> int:
    """Say of each chapter that its vectors are of the promoted space's model; returns how many there are."""
    found = _stamps(connection, promoted)
    connection.execute(
        "UPDATE doctrine_sources AS s SET embeddings_stamp = i.embeddings, vector_tables_stamp = i.tables, model = %s,"
        " dead_count = (SELECT jsonb_array_length(c.dead) FROM space_chapters AS c"
        " WHERE c.space_id = %s AND c.partition_key = s.partition_key)"
        " FROM unnest(%s::text[], %s::text[], %s::text[]) AS i (key, embeddings, tables) WHERE s.partition_key = i.key",
        (
            promoted.space.model,
            promoted.space_id,
            [key for key, _, _ in found],
            [stamps["embeddings"] for _, _, stamps in found],
            [stamps["vector_tables"] for _, _, stamps in found],
        ),
    )
    connection.execute("DELETE FROM space_chapters WHERE space_id = %s", (promoted.space_id,))
    return len(found)


def _stamps(
    connection: psycopg.Connection, space: RegisteredSpace
) -> list[tuple[str, str | None, Mapping[Stage, str | None]]]:
    """Of each chapter that has been chunked: its key, its stamp of the vector tables, and those it has in `space`."""
    found: list[tuple[str, str | None, Mapping[Stage, str | None]]] = [
        (key, stamp, vector_stamps(chapters=chapters, chunks=chunks, model_stamp=space.space.stamp))
        for key, stamp, chapters, chunks in connection.execute(
            "SELECT partition_key, vector_tables_stamp, chapters_stamp, chunks_stamp FROM doctrine_sources"
            " WHERE chunk_count IS NOT NULL"
        )
    ]
    return found


# Who else may read the live schema and the tables in it; no name of a role: everybody.
_READERS = """
SELECT NULL, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END
FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
WHERE n.nspname = %(live)s AND a.privilege_type = 'USAGE' AND a.grantee <> n.nspowner
UNION ALL
SELECT c.relname, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END
FROM pg_class AS c, aclexplode(c.relacl) AS a
WHERE c.relnamespace = %(live)s::regnamespace AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner
AND EXISTS (SELECT FROM pg_class AS p WHERE p.relnamespace = %(promoted)s::regnamespace AND p.relname = c.relname)
"""


def _let_the_same_read(connection: psycopg.Connection, promoted: RegisteredSpace) -> None:
    """Accounts of other programs, which may read the live tables and no more, must not lose them by the renaming."""
    readers = connection.execute(_READERS, {"live": LIVE_SCHEMA, "promoted": promoted.schema}).fetchall()
    for table, role in readers:
        what = (
            sql.SQL("USAGE ON SCHEMA {}").format(sql.Identifier(promoted.schema))
            if table is None
            else sql.SQL("SELECT ON TABLE {}").format(sql.Identifier(promoted.schema, table))
        )
        whom = sql.SQL("PUBLIC") if role is None else sql.Identifier(role)
        connection.execute(sql.SQL("GRANT {} TO {}").format(what, whom))


def _rename(connection: psycopg.Connection, promoted: RegisteredSpace, retired: RegisteredSpace) -> None:
    aside = beside_schema(retired.space_id)
    for schema, name in ((LIVE_SCHEMA, aside), (promoted.schema, LIVE_SCHEMA)):
        connection.execute(sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(schema), sql.Identifier(name)))
    # Retired first: two spaces are never live, and no two have one schema.
    for space_id, state, schema in (
        (retired.space_id, "retired", aside),
        (promoted.space_id, "live", LIVE_SCHEMA),
    ):
        connection.execute(
            "UPDATE embedding_spaces SET state = %s, schema_name = %s WHERE space_id = %s", (state, schema, space_id)
        )
