"""How many of the truly nearest texts a look-up finds: the tables with an index against an exact scan of the same rows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

import numpy as np
import psycopg
from psycopg import sql

from era_dagster.storage.database import Database
from era_dagster.storage.indexes import indexed_tables
from era_dagster.storage.spaces import LIVE_SCHEMA

NEAREST = 10
LEAST_RECALL = 0.98
_QUESTIONS = 200
# The rows' own vectors find themselves, which any index manages; the other kind of text asks as a user would.
_ASKED_BY = {"chunk_embeddings": "doctrine_embeddings_all"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRecall:
    """One table's recall@10 (1.0 by definition where it has no index), and its look-ups in milliseconds at the P95.

    `exact_ms` is that of a scan; `indexed_ms` is None without an index.
    """

    table: str
    rows: int
    questions: int
    recall: float
    exact_ms: float
    indexed_ms: float | None


def measure_recall(database: Database, *, questions: int = _QUESTIONS) -> list[TableRecall]:
    """The recall of every table with an index, and of the two large tables in any case; empty ones are left out.

    Asks with up to `questions` stored vectors drawn at random (with a fixed seed): chunks are asked for by entries and
    entries by chunks. Two rows as near as each other count as the same answer. Read-only.
    """
    indexed = set(indexed_tables(database))
    with database.connection() as connection:
        tables = sorted({"chunk_embeddings", "doctrine_embeddings_all", *indexed} & _vector_tables(connection))
        return [
            found
            for table in tables
            if (found := _of_table(connection, table, questions, table in indexed)) is not None
        ]


def _vector_tables(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (LIVE_SCHEMA,))
    return {name for (name,) in rows}


def _of_table(connection: psycopg.Connection, table: str, questions: int, indexed: bool) -> TableRecall | None:
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(_named(table))).fetchone()
    asked = _draw(connection, _ASKED_BY.get(table, "chunk_embeddings"), questions) or _draw(
        connection, table, questions
    )
    if row is None or row[0] == 0 or not asked:
        return None
    # A sum is no expression an index is sorted by.
    truth, exact_ms = _ask(connection, table, asked, "(embedding <=> {}) + 0")
    if not indexed:
        return TableRecall(
            table=table, rows=row[0], questions=len(asked), recall=1.0, exact_ms=exact_ms, indexed_ms=None
        )
    found, indexed_ms = _ask(connection, table, asked, "embedding <=> {}")
    # An answer counts when it is as near as the true one of its place: ties may come in any order.
    shares = [
        sum(distance <= true[-1] + 1e-9 for distance in nearest) / len(true)
        for nearest, true in zip(found, truth, strict=True)
    ]
    return TableRecall(
        table=table,
        rows=row[0],
        questions=len(asked),
        recall=float(np.mean(shares)),
        exact_ms=exact_ms,
        indexed_ms=indexed_ms,
    )


def _draw(connection: psycopg.Connection, table: str, count: int) -> list[str]:
    connection.execute("SELECT setseed(0.5)")
    return [
        vector
        for (vector,) in connection.execute(
            sql.SQL("SELECT embedding::text FROM (SELECT embedding FROM {} ORDER BY random() LIMIT %s) AS t").format(
                _named(table)
            ),
            (count,),
        )
    ]


def _ask(
    connection: psycopg.Connection, table: str, asked: Sequence[str], distance: LiteralString
) -> tuple[list[list[float]], float]:
    """The ten smallest distances to each vector, and the P95 of the times in milliseconds."""
    statement = sql.SQL("SELECT {distance} AS distance FROM {table} ORDER BY distance LIMIT {nearest}").format(
        distance=sql.SQL(distance).format(sql.SQL("%s::halfvec")), table=_named(table), nearest=sql.Literal(NEAREST)
    )
    answers, times = [], []
    for vector in asked:
        started = time.perf_counter()
        answers.append([found for (found,) in connection.execute(statement, (vector,), prepare=False)])
        times.append((time.perf_counter() - started) * 1000)
    return answers, float(np.percentile(times, 95))


def _named(table: str) -> sql.Identifier:
    return sql.Identifier(LIVE_SCHEMA, table)
