"""The embedding space: which model's vectors the vector tables hold, and the tables themselves.

One space is live. Its tables stand in the schema "vectors" and are created when the first model's dimension is known;
vectors of another model are refused here, for every writer and every reader. Spaces beside it (being built, or retired)
are the business of `storage.space_register`; why it is built so: docs/adr/0014-embedding-spaces.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.space import Space, canonical_model_name
from era_dagster.storage.database import SEARCH_SETTINGS, Database, set_lock_timeout

LIVE_SCHEMA = "vectors"
# Who writes vectors holds this advisory lock shared, who switches spaces holds it alone.
SWITCH_LOCK = "embedding spaces"
# PostgreSQL keeps a row on one 8 kB page: beyond this many half-precision numbers the vector must live out of line.
_LARGEST_PLAIN_DIMENSION = 3000
LARGEST_DIMENSION = 4000
# A new domain waits so long for who uses the table of all domains, and who comes after it waits as long: less than a
# look-up waits for a lock.
_USERS_WAIT_MS = 2000
_FOR_OTHER_PROGRAMS: Mapping[str, sql.Composable] = {
    "search_path": sql.SQL("public, {}").format(sql.Identifier(LIVE_SCHEMA)),
    **{name: sql.Literal(value) for name, value in SEARCH_SETTINGS.items()},
}


def live_space(database: Database) -> Space | None:
    """The live space, or None while nothing was ever embedded."""
    with database.connection() as connection:
        return _live(connection)


def live_space_name(database: Database) -> str | None:
    """The live space for people: number, model, dimension."""
    with database.connection() as connection:
        live = _live_numbered(connection)
    return None if live is None else numbered_name(*live)


def live_space_in(connection: psycopg.Connection) -> Space | None:
    """As `live_space`, in this connection's transaction.

    From here to its end no other space is made live: who switches spaces waits for every transaction that has looked
    at this table. So a look-up that begins with this statement reads the tables of the space it was told.
    """
    return _live(connection)


def check_configured(live: Space | None, *, model: str | None) -> None:
    """Refuse settings that name another model than the live space's; None names nothing."""
    if live is not None and model is not None and canonical_model_name(model) != canonical_model_name(live.model):
        raise _other_model(live, model)


def _other_model(live: Space, configured: str) -> ConfigurationError:
    return ConfigurationError(
        f"The database holds vectors of {space_name(live)}, and {configured} is configured.",
        hint=(
            "`era spaces build` makes vectors of the configured model beside the live ones, and `era spaces promote` puts"
            f" them in their place; or go on with ERA_EMBEDDING_MODEL={live.model} and"
            f" ERA_EMBEDDING_PROVIDER={live.provider} (or unset both)."
        ),
    )


def ensure_space(database: Database, space: Space) -> None:
    """Create the live space from `space` when there is none; refuse it when another model's is live.

    Raises `ConfigurationError` naming both models.
    """
    with database.connection() as connection:
        live = _live(connection)
        if live is None:
            connection.execute("LOCK TABLE embedding_spaces IN EXCLUSIVE MODE")
            live = _live(connection)
        if live is None:
            _create(connection, space)
            return
    check_same_model(live, space)


def check_same_model(live: Space, space: Space) -> None:
    """Refuse a model whose vectors are not interchangeable with the live space's; `ConfigurationError` names both."""
    if not live.same_model(space):
        raise _other_model(live, space_name(space))


def check_still_live(connection: psycopg.Connection, space: Space) -> int:
    """The number of the live space, which must be `space`: said in the transaction that writes its vectors.

    Raises `ConfigurationError` when another space was promoted since the run began.
    """
    live = _live_numbered(connection)
    if live is None or live[1].stamp != space.stamp:
        now = space_name(live[1]) if live else "no model"
        raise ConfigurationError(
            f"While this run made vectors of {space_name(space)}, the database was switched to {now}.",
            hint="Nothing of the two was mixed. Unset ERA_EMBEDDING_MODEL or set it to that model, then run again.",
        )
    return live[0]


def numbered_name(space_id: int, space: Space) -> str:
    """A space for people, as every list and message names it."""
    return f"{space_id}: {space_name(space)}"


def space_name(space: Space) -> str:
    """A model for people: its name, dimension and, where known, the beginning of its digest."""
    digest = f", digest {space.digest[:12]}" if space.digest else ""
    return f"{space.model} ({space.dimension} dimensions{digest})"


def _live(connection: psycopg.Connection) -> Space | None:
    numbered = _live_numbered(connection)
    return None if numbered is None else numbered[1]


def _live_numbered(connection: psycopg.Connection) -> tuple[int, Space] | None:
    row = connection.execute(
        "SELECT space_id, provider, model, digest, dimension, document_prefix, query_prefix"
        " FROM embedding_spaces WHERE state = 'live'"
    ).fetchone()
    return None if row is None else (row[0], space_of_row(row[1:]))


def space_of_row(row: Sequence[Any]) -> Space:
    """A space from its columns in the order provider, model, digest, dimension, document_prefix, query_prefix."""
    return Space(
        provider=row[0], model=row[1], digest=row[2], dimension=row[3], document_prefix=row[4], query_prefix=row[5]
    )


def _create(connection: psycopg.Connection, space: Space) -> None:
    record_space(connection, space, state="live", schema=LIVE_SCHEMA)
    create_vector_tables(connection, schema=LIVE_SCHEMA, dimension=space.dimension)
    _show_to_other_programs(connection)


def record_space(connection: psycopg.Connection, space: Space, *, state: str, schema: str) -> int:
    """Note a new space and return its number. Raises `ConfigurationError` for a dimension that cannot be stored."""
    if not 0 < space.dimension <= LARGEST_DIMENSION:
        raise ConfigurationError(
            f"{space.model} makes vectors of {space.dimension} dimensions; 1 to {LARGEST_DIMENSION} can be stored.",
            hint="Choose another model.",
        )
    row = connection.execute(
        "INSERT INTO embedding_spaces"
        " (state, schema_name, provider, model, digest, dimension, document_prefix, query_prefix)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING space_id",
        (
            state,
            schema,
            space.provider,
            space.model,
            space.digest,
            space.dimension,
            space.document_prefix,
            space.query_prefix,
        ),
    ).fetchone()
    return row[0] if row else 0


def _show_to_other_programs(connection: psycopg.Connection) -> tuple[str, ...]:
    """Let programs that know only the URL say `doctrine_embeddings` without a schema, and get as many rows from a vector
    index as they ask for: left to itself pgvector ends after 40. Only the database's owner can. Returns what was set."""
    row = connection.execute("SELECT current_database()").fetchone()
    database = sql.Identifier(row[0] if row else "")
    lacking = lacking_settings(connection)
    try:
        with connection.transaction():
            # The server knows the settings of pgvector when that is loaded, which its first vector does.
            connection.execute("SELECT '[1]'::vector")
            for setting in lacking:
                value = _FOR_OTHER_PROGRAMS[setting]
                # Two parts in a name that is one to PostgreSQL; quoted as a whole it would be another.
                name = sql.Identifier(*setting.split("."))
                connection.execute(sql.SQL("ALTER DATABASE {} SET {} = {}").format(database, name, value))
    except psycopg.errors.InsufficientPrivilege:
        # Our own connections say all of it themselves; docs/output.md tells others what to set.
        return ()
    return lacking


def lacking_settings(connection: psycopg.Connection) -> tuple[str, ...]:
    """Which settings for other programs this database does not have: one made by an early release, or restored from a dump,
    which does not hold them."""
    rows = connection.execute(
        "SELECT unnest(setconfig) FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase"
        " WHERE d.datname = current_database() AND s.setrole = 0"
    ).fetchall()
    found = dict(setting.split("=", 1) for (setting,) in rows)
    return tuple(
        name
        for name in _FOR_OTHER_PROGRAMS
        if name not in found or (name == "search_path" and LIVE_SCHEMA not in found[name])
    )


def complete_settings(database: Database) -> tuple[str, ...]:
    """Set what `lacking_settings` names, where a space is live and this user may; returns what was set."""
    with database.connection() as connection:
        return () if _live(connection) is None else _show_to_other_programs(connection)


def create_vector_tables(connection: psycopg.Connection, *, schema: str, dimension: int) -> None:
    """Create the empty vector tables of one space in `schema`.

    Vectors are half precision and stored in the row (PLAIN) where they fit: exact scans read a quarter of the bytes,
    and recall changes by less than 0.001. Full float32 stays in `embedding_cache`.
    """
    storage = "PLAIN" if dimension <= _LARGEST_PLAIN_DIMENSION else "EXTERNAL"
    names = {
        "schema": sql.Identifier(schema),
        "chunks": sql.Identifier(schema, "chunk_embeddings"),
        "every": sql.Identifier(schema, "doctrine_embeddings_all"),
        "parent": sql.Identifier(schema, "doctrine_embeddings"),
        "vector": sql.SQL("halfvec({}) STORAGE {}").format(sql.Literal(dimension), sql.SQL(storage)),
    }
    connection.execute(
        sql.SQL(
            """
            CREATE SCHEMA {schema};
            CREATE TABLE {chunks} (
                partition_key text NOT NULL,
                position integer NOT NULL,
                embedding {vector} NOT NULL,
                PRIMARY KEY (partition_key, position)
            );
            CREATE TABLE {every} (
                doctrine_id uuid PRIMARY KEY,
                domains text[] NOT NULL,
                category text NOT NULL,
                text text NOT NULL,
                source_book text NOT NULL,
                source_chapter integer NOT NULL,
                weight real NOT NULL,
                partition_key text NOT NULL,
                embedding {vector} NOT NULL
            );
            CREATE INDEX ON {every} (partition_key);
            CREATE TABLE {parent} (
                domain text NOT NULL,
                doctrine_id uuid NOT NULL,
                category text NOT NULL,
                text text NOT NULL,
                source_book text NOT NULL,
                source_chapter integer NOT NULL,
                weight real NOT NULL,
                partition_key text NOT NULL,
                embedding {vector} NOT NULL,
                PRIMARY KEY (domain, doctrine_id)
            ) PARTITION BY LIST (domain);
            CREATE INDEX ON {parent} (partition_key);
            """
        ).format(**names)
    )


def ensure_domain_tables(database: Database, names: Sequence[tuple[str, str]]) -> None:
    """Register domains, given as (slug, spelling), and give each its table `doctrine_embeddings_<domain>`.

    Runs in its own short transactions before the chapters that need them, because attaching a partition takes a lock
    that a long transaction must not hold. Idempotent; safe from several processes at once.
    """
    slugs = sorted({slug for slug, _ in names})
    with database.connection() as connection:
        # A commit can be seen a moment before the server tells other connections of a new partition, and a row stored in
        # that moment finds none. Whoever made a table holds this lock until after that.
        connection.execute(
            "SELECT pg_advisory_xact_lock_shared(hashtextextended(l.name, 0)) FROM unnest(%s::text[]) AS l (name)",
            ([_table_lock(LIVE_SCHEMA, slug) for slug in slugs],),
        )
        tables = {
            name
            for (name,) in connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename = ANY(%s)",
                (LIVE_SCHEMA, [domain_table(slug) for slug in slugs]),
            )
        }
        known = dict(
            connection.execute(
                "SELECT domain, spellings FROM minister_domains WHERE domain = ANY(%s)", (slugs,)
            ).fetchall()
        )
        has_space = _live(connection) is not None
    for slug, spelling in sorted(names):
        if spelling not in known.get(slug, []):
            _register_domain(database, slug, spelling)
    for slug in slugs:
        if has_space and domain_table(slug) not in tables:
            attach_domain_table(database, LIVE_SCHEMA, slug)


def _register_domain(database: Database, slug: str, spelling: str) -> None:
    with database.connection() as connection:
        # Two columns are unique: a conflict of two writers may show at either, and with a target only one is looked at.
        connection.execute(
            "INSERT INTO minister_domains (domain, table_name) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (slug, domain_table(slug)),
        )
        connection.execute(
            "UPDATE minister_domains SET spellings ="
            " (SELECT array_agg(DISTINCT s ORDER BY s) FROM unnest(spellings || %(spelling)s::text) AS s)"
            " WHERE domain = %(slug)s AND NOT spellings @> ARRAY[%(spelling)s::text]",
            {"slug": slug, "spelling": spelling},
        )


def domain_table(slug: str) -> str:
    """The name of a domain's table; 20 + at most 40 characters, below PostgreSQL's 63 bytes."""
    return f"doctrine_embeddings_{slug}"


def _table_lock(schema: str, slug: str) -> str:
    return f"domain table {schema} {slug}"


def attach_domain_table(database: Database, schema: str, slug: str) -> None:
    """Give one domain its table in the space that stands in `schema`, in a transaction of its own. Idempotent."""
    with database.connection() as connection:
        _attach_domain_table(connection, schema, slug)


def _attach_domain_table(connection: psycopg.Connection, schema: str, slug: str) -> None:
    # The first lock in a statement of its own: a switch that was waited for must have happened for all that follows.
    connection.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))", (SWITCH_LOCK,))
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (_table_lock(schema, slug),))
    name = domain_table(slug)
    exists = connection.execute("SELECT to_regclass(%s)", (f'"{schema}"."{name}"',)).fetchone()
    if exists is not None and exists[0] is not None:
        return
    parts = {
        "child": sql.Identifier(schema, name),
        "parent": sql.Identifier(schema, "doctrine_embeddings"),
        "slug": sql.Literal(slug),
    }
    # First of all: no lock that CREATE TABLE takes may have to become more.
    _wait_for_users(connection, parts["parent"])
    connection.execute(sql.SQL("CREATE TABLE {child} (LIKE {parent} INCLUDING ALL)").format(**parts))
    connection.execute(
        sql.SQL("ALTER TABLE {child} ADD CONSTRAINT only_this_domain CHECK (domain = {slug})").format(**parts)
    )
    connection.execute(sql.SQL("ALTER TABLE {parent} ATTACH PARTITION {child} FOR VALUES IN ({slug})").format(**parts))
    connection.execute(sql.SQL("ALTER TABLE {child} SET (autovacuum_vacuum_scale_factor = 0.05)").format(**parts))


def _wait_for_users(connection: psycopg.Connection, parent: sql.Identifier) -> None:
    """Have nobody else use `parent` until this transaction ends, unless somebody keeps it for long.

    ATTACH PARTITION alone lets readers go on, and one that collects the list of partitions just then may lose the message
    that there is a new one: its session misses the domain for as long as it is open (seen with PostgreSQL 18.4). A dump or
    an idle transaction had its list long before, so it need not hold up an ingest. The tables of other domains are no matter:
    a vector index is built on one of them for minutes.
    """
    try:
        with connection.transaction():
            set_lock_timeout(connection, _USERS_WAIT_MS)
            connection.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(parent))
    except psycopg.errors.LockNotAvailable:
        pass  # and with it goes the shorter time-out
