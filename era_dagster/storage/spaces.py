"""The embedding space: which model's vectors the vector tables hold, and the tables themselves.

One space is live. Its tables stand in the schema "vectors" and are created when the first model's dimension is known;
vectors of another model are refused here, for every writer and every reader.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from era_dagster.domain.errors import ConfigurationError
from era_dagster.storage.database import Database

LIVE_SCHEMA = "vectors"
# PostgreSQL keeps a row on one 8 kB page: beyond this many half-precision numbers the vector must live out of line.
_LARGEST_PLAIN_DIMENSION = 3000
LARGEST_DIMENSION = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A model as the database records it. `dimension` is the length of its vectors; prefixes precede every text."""

    provider: str
    model: str
    digest: str | None
    dimension: int
    document_prefix: str
    query_prefix: str

    @property
    def stamp(self) -> str:
        """What a stage's stamp says of the model: equal stamps mean interchangeable vectors."""
        return f"{self.model}@{self.digest or '-'}/{self.dimension}/{self.document_prefix}"


def live_space(database: Database) -> Space | None:
    """The live space, or None while nothing was ever embedded."""
    with database.connection() as connection:
        return _live(connection)


def live_space_in(connection: psycopg.Connection) -> Space | None:
    """As `live_space`, in this connection's transaction."""
    return _live(connection)


def check_configured(live: Space | None, *, model: str | None) -> None:
    """Refuse settings that name another model than the live space's; None names nothing."""
    if live is not None and model is not None and model.removesuffix(":latest") != live.model.removesuffix(":latest"):
        raise _other_model(live, model)


def _other_model(live: Space, configured: str) -> ConfigurationError:
    return ConfigurationError(
        f"The database holds vectors of {_named(live)}, and {configured} is configured.",
        hint=(
            f"Set ERA_EMBEDDING_MODEL={live.model} and ERA_EMBEDDING_PROVIDER={live.provider} (or unset both),"
            " or give the new model a database of its own with ERA_HOME or ERA_DATABASE_URL."
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
    if live.stamp != space.stamp:
        raise _other_model(live, _named(space))


def _named(space: Space) -> str:
    digest = f", digest {space.digest[:12]}" if space.digest else ""
    return f"{space.model} ({space.dimension} dimensions{digest})"


def _live(connection: psycopg.Connection) -> Space | None:
    row = connection.execute(
        "SELECT provider, model, digest, dimension, document_prefix, query_prefix"
        " FROM embedding_spaces WHERE state = 'live'"
    ).fetchone()
    if row is None:
        return None
    return Space(
        provider=row[0], model=row[1], digest=row[2], dimension=row[3], document_prefix=row[4], query_prefix=row[5]
    )


def _create(connection: psycopg.Connection, space: Space) -> None:
    if not 0 < space.dimension <= LARGEST_DIMENSION:
        raise ConfigurationError(
            f"{space.model} makes vectors of {space.dimension} dimensions; 1 to {LARGEST_DIMENSION} can be stored.",
            hint="Choose another model.",
        )
    connection.execute(
        "INSERT INTO embedding_spaces"
        " (state, schema_name, provider, model, digest, dimension, document_prefix, query_prefix)"
        " VALUES ('live', %s, %s, %s, %s, %s, %s, %s)",
        (
            LIVE_SCHEMA,
            space.provider,
            space.model,
            space.digest,
            space.dimension,
            space.document_prefix,
            space.query_prefix,
        ),
    )
    create_vector_tables(connection, schema=LIVE_SCHEMA, dimension=space.dimension)
    _show_to_other_programs(connection)


def _show_to_other_programs(connection: psycopg.Connection) -> None:
    """Let programs that know only the URL say `doctrine_embeddings` without a schema. Only the database's owner can."""
    row = connection.execute("SELECT current_database()").fetchone()
    try:
        with connection.transaction():
            connection.execute(
                sql.SQL("ALTER DATABASE {} SET search_path = public, {}").format(
                    sql.Identifier(row[0] if row else ""), sql.Identifier(LIVE_SCHEMA)
                )
            )
    except psycopg.errors.InsufficientPrivilege:
        # Our own connections name the path themselves; docs/output.md tells others what to set.
        pass


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
        known = dict(
            connection.execute(
                "SELECT domain, spellings FROM minister_domains WHERE domain = ANY(%s)", (slugs,)
            ).fetchall()
        )
        tables = {
            name
            for (name,) in connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename = ANY(%s)",
                (LIVE_SCHEMA, [domain_table(slug) for slug in slugs]),
            )
        }
        has_space = _live(connection) is not None
    for slug, spelling in sorted(names):
        if spelling not in known.get(slug, []):
            with database.connection() as connection:
                connection.execute(
                    "INSERT INTO minister_domains AS d (domain, spellings, table_name) VALUES (%s, ARRAY[%s], %s)"
                    " ON CONFLICT (domain) DO UPDATE SET spellings ="
                    " (SELECT array_agg(DISTINCT s ORDER BY s) FROM unnest(d.spellings || excluded.spellings) AS s)"
                    " WHERE NOT d.spellings @> excluded.spellings",
                    (slug, spelling, domain_table(slug)),
                )
    for slug in slugs:
        if has_space and domain_table(slug) not in tables:
            with database.connection() as connection:
                _attach_domain_table(connection, slug)


def domain_table(slug: str) -> str:
    """The name of a domain's table; 20 + at most 40 characters, below PostgreSQL's 63 bytes."""
    return f"doctrine_embeddings_{slug}"


def _attach_domain_table(connection: psycopg.Connection, slug: str) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"domain table {slug}",))
    name = domain_table(slug)
    exists = connection.execute("SELECT to_regclass(%s)", (f'"{LIVE_SCHEMA}"."{name}"',)).fetchone()
    if exists is not None and exists[0] is not None:
        return
    parts = {
        "child": sql.Identifier(LIVE_SCHEMA, name),
        "parent": sql.Identifier(LIVE_SCHEMA, "doctrine_embeddings"),
        "slug": sql.Literal(slug),
    }
    # CREATE + ATTACH lets readers of the parent go on; CREATE ... PARTITION OF waits for all of them.
    connection.execute(sql.SQL("CREATE TABLE {child} (LIKE {parent} INCLUDING ALL)").format(**parts))
    connection.execute(
        sql.SQL("ALTER TABLE {child} ADD CONSTRAINT only_this_domain CHECK (domain = {slug})").format(**parts)
    )
    connection.execute(sql.SQL("ALTER TABLE {parent} ATTACH PARTITION {child} FOR VALUES IN ({slug})").format(**parts))
    connection.execute(sql.SQL("ALTER TABLE {child} SET (autovacuum_vacuum_scale_factor = 0.05)").format(**parts))
