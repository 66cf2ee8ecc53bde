"""Holds a space beside the live one against it before anyone relies on it: counts, recall of its indexes, and how the
same questions are answered by both. Read-only.

The questions are stored entries: their vectors are in both spaces, so no model is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from era_dagster.domain.errors import ConfigurationError
from era_dagster.storage.database import Database
from era_dagster.storage.space_register import RegisteredSpace, named_space
from era_dagster.storage.spaces import LIVE_SCHEMA

QUESTIONS = 20
TOP_K = 10
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCount:
    """Rows of one table: in the live space, in the other, and how many the other must have by the stored texts."""

    table: str
    live: int
    beside: int
    wanted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One entry, and what is nearest to it in each space; `shared` of its ten nearest are the same in both."""

    question: str
    live: tuple[str, ...]
    beside: tuple[str, ...]
    shared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceCheck:
    """`recall`: the share of the ten truly nearest entries that a look-up in the space finds, mean of the questions;
    None without entries. `shared`: mean share of the ten nearest that both models agree on, which says how much the
    answers will change, not which are better."""

    counts: tuple[TableCount, ...]
    recall: float | None
    shared: float | None
    comparisons: tuple[Comparison, ...]

    @property
    def sound(self) -> bool:
        """The space has exactly the rows that the stored texts ask for."""
        return all(count.beside == count.wanted for count in self.counts)


def check_space(database: Database, space_id: int) -> SpaceCheck:
    """Compare space `space_id` with the live one. Raises `ConfigurationError` for an unknown or the live space."""
    with database.connection() as connection:
        space = named_space(connection, space_id)
        if space.state == "live":
            raise ConfigurationError(
                f"Embedding space {space.name} is live already.", hint="`era spaces list` shows the others."
            )
        counts = _counts(connection, space)
        found = [_asked(connection, space, question) for question in _questions(connection, space.schema)]
    shared = [len({*live} & {*beside}) for _, live, beside, _ in found]
    return SpaceCheck(
        counts=counts,
        recall=_mean([recall for *_, recall in found]),
        shared=_mean([number / TOP_K for number in shared]),
        comparisons=tuple(
            Comparison(
                question=question,
                live=tuple(list(live.values())[:_SHOWN]),
                beside=tuple(list(beside.values())[:_SHOWN]),
                shared=number,
            )
            for (question, live, beside, _), number in zip(found, shared, strict=True)
        ),
    )


def _counts(connection: psycopg.Connection, space: RegisteredSpace) -> tuple[TableCount, ...]:
    """A text in the space's own dead letters is not wanted."""
    wanted = {
        "chunk_embeddings": "SELECT count(*) FROM chapter_chunks AS t WHERE NOT {dead}",
        "doctrine_embeddings_all": "SELECT count(DISTINCT t.doctrine_id) FROM minister_entries AS t JOIN doctrine_sources AS s"
        " USING (partition_key) WHERE s.chunk_count IS NOT NULL AND NOT {dead}",
        "doctrine_embeddings": "SELECT count(*) FROM minister_entries AS t JOIN doctrine_sources AS s"
        " USING (partition_key) WHERE s.chunk_count IS NOT NULL AND NOT {dead}",
    }
    dead = sql.SQL(
        "EXISTS (SELECT FROM space_chapters AS c, jsonb_array_elements(c.dead) AS d WHERE c.space_id = {}"
        " AND c.partition_key = t.partition_key AND d ->> 'text' = t.text)"
    ).format(sql.Literal(space.space_id))
    counts: list[TableCount] = []
    for table, query in wanted.items():
        numbers = [
            _number(connection, sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, table)))
            for schema in (LIVE_SCHEMA, space.schema)
        ]
        counts.append(
            TableCount(
                table=table,
                live=numbers[0],
                beside=numbers[1],
                wanted=_number(connection, sql.SQL(query).format(dead=dead)),  # pyright: ignore[reportArgumentType]
            )
        )
    return tuple(counts)


def _number(connection: psycopg.Connection, query: sql.Composed) -> int:
    row = connection.execute(query).fetchone()
    return row[0] if row else 0


def _questions(connection: psycopg.Connection, schema: str) -> Sequence[tuple[Any, str]]:
    """Entries both spaces hold, picked by the hash of their ids: the same ones each time, from everywhere."""
    return connection.execute(
        sql.SQL(
            "SELECT b.doctrine_id, b.text FROM {beside} AS b JOIN {live} AS l USING (doctrine_id)"
            " ORDER BY md5(b.doctrine_id::text) LIMIT %s"
        ).format(
            beside=sql.Identifier(schema, "doctrine_embeddings_all"),
            live=sql.Identifier(LIVE_SCHEMA, "doctrine_embeddings_all"),
        ),
        (QUESTIONS,),
    ).fetchall()


def _asked(
    connection: psycopg.Connection, space: RegisteredSpace, question: tuple[Any, str]
) -> tuple[str, dict[Any, str], dict[Any, str], float]:
    identifier, text = question
    live = _nearest(connection, LIVE_SCHEMA, identifier, exact=False)
    beside = _nearest(connection, space.schema, identifier, exact=False)
    exact = _nearest(connection, space.schema, identifier, exact=True)
    return text, live, beside, len({*beside} & {*exact}) / len(exact) if exact else 1.0


def _nearest(connection: psycopg.Connection, schema: str, identifier: Any, *, exact: bool) -> dict[Any, str]:
    """The ids and texts of the nearest entries but itself; a sum is no expression that an index is sorted by."""
    return dict(
        connection.execute(
            sql.SQL(
                "SELECT doctrine_id, text FROM {table} WHERE doctrine_id <> %s"
                " ORDER BY (embedding <=> (SELECT embedding FROM {table} WHERE doctrine_id = %s)){exact} LIMIT %s"
            ).format(table=sql.Identifier(schema, "doctrine_embeddings_all"), exact=sql.SQL(" + 0" if exact else "")),
            (identifier, identifier, TOP_K),
        ).fetchall()
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
