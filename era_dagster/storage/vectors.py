"""The rows of one chapter in the vector tables: each table's rows replaced by difference, in one statement.

Vectors travel as binary arrays of `halfvec`; see docs/adr/0007-binary-arrays.md. What is written when, and in which
transaction, is `storage.chapters`'s business.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql


@dataclass(frozen=True, slots=True)
class Difference:
    """What a write changed in one table: rows written (new or different), left as they were, and removed."""

    written: int = 0
    unchanged: int = 0
    removed: int = 0


class VectorTable:
    """How the rows of one chapter reach one vector table: its columns with their types, its key, and the statement."""

    def __init__(self, name: str, columns: Mapping[str, str], key: tuple[str, ...]) -> None:
        self.columns = columns
        names = {column: sql.Identifier(column) for column in columns}
        incoming = sql.SQL(", ").join(
            sql.SQL("ARRAY(SELECT jsonb_array_elements_text(i.{}::jsonb))").format(names[column])
            if kind == "text[]"
            else sql.SQL("i.{}").format(names[column])
            for column, kind in columns.items()
        )
        self.replace_statement = (
            sql.SQL(
                "WITH incoming AS MATERIALIZED (SELECT {incoming} FROM unnest({arrays}) AS i ({columns})),"
                " removed AS (DELETE FROM {table} AS t WHERE t.partition_key = %b AND NOT EXISTS"
                " (SELECT FROM incoming AS i WHERE {same_key}) RETURNING 1),"
                " written AS (INSERT INTO {table} AS t ({columns}) SELECT * FROM incoming ON CONFLICT ({key}) DO UPDATE"
                " SET {assigned} WHERE ({present}) IS DISTINCT FROM ({excluded}) RETURNING 1)"
                " SELECT (SELECT count(*) FROM removed), (SELECT count(*) FROM written)"
            )
            .format(
                incoming=incoming,
                arrays=sql.SQL(", ").join(_ARRAYS[kind] for kind in columns.values()),
                columns=sql.SQL(", ").join(names.values()),
                table=sql.Identifier(name),
                same_key=sql.SQL(" AND ").join(sql.SQL("i.{0} = t.{0}").format(names[column]) for column in key),
                key=sql.SQL(", ").join(names[column] for column in key),
                assigned=sql.SQL(", ").join(
                    sql.SQL("{0} = excluded.{0}").format(name) for column, name in names.items() if column not in key
                ),
                present=sql.SQL(", ").join(sql.SQL("t.{}").format(name) for name in names.values()),
                excluded=sql.SQL(", ").join(sql.SQL("excluded.{}").format(name) for name in names.values()),
            )
            .as_bytes()
        )


_ARRAYS = {
    "uuid": sql.SQL("%b::uuid[]"),
    "text": sql.SQL("%b::text[]"),
    "text[]": sql.SQL("%b::text[]"),
    "int4": sql.SQL("%b::int4[]"),
    "float4": sql.SQL("%b::float4[]"),
    "halfvec": sql.SQL("%b::halfvec[]"),
}
_ENTRY_COLUMNS = {
    "doctrine_id": "uuid",
    "category": "text",
    "text": "text",
    "source_book": "text",
    "source_chapter": "int4",
    "weight": "float4",
    "partition_key": "text",
    "embedding": "halfvec",
}
CHUNK_TABLE = VectorTable(
    "chunk_embeddings",
    {"partition_key": "text", "position": "int4", "embedding": "halfvec"},
    ("partition_key", "position"),
)
EVERY_TABLE = VectorTable("doctrine_embeddings_all", {"domains": "text[]", **_ENTRY_COLUMNS}, ("doctrine_id",))
DOMAIN_TABLE = VectorTable("doctrine_embeddings", {"domain": "text", **_ENTRY_COLUMNS}, ("domain", "doctrine_id"))


def replace_rows(
    connection: psycopg.Connection, table: VectorTable, key: str, rows: Sequence[tuple[Any, ...]]
) -> Difference:
    """Make the rows of chapter `key` in `table` exactly `rows`, in one statement with binary arrays."""
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in table.columns]
    if "domains" in table.columns:
        # unnest would flatten an array of arrays: the lists travel as JSON text.
        columns[0] = [json.dumps(domains) for domains in columns[0]]
    row = connection.execute(table.replace_statement, (*columns, key), binary=True).fetchone()
    removed, written = row or (0, 0)
    return Difference(written, len(rows) - written, removed)
