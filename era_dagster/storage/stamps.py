"""What is done of each chapter: a stamp for each stage, and whether Dagster shows it. `chapters` sets those of a write itself."""

from collections.abc import Mapping, Sequence

from psycopg import sql

from era_dagster.domain.stages import Stage
from era_dagster.storage.database import Database

STAMP_COLUMNS: Mapping[Stage, str] = {
    "chapters": "chapters_stamp",
    "chunks": "chunks_stamp",
    "embeddings": "embeddings_stamp",
    "vector_tables": "vector_tables_stamp",
    "minister_files": "minister_files_stamp",
}


def stored_stamps(database: Database, keys: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """The stamps of the chapters among `keys` that are stored: key -> stage -> stamp."""
    columns = sql.SQL(", ").join(sql.Identifier(column) for column in STAMP_COLUMNS.values())
    with database.connection() as connection:
        rows = connection.execute(
            sql.SQL("SELECT partition_key, {} FROM doctrine_sources WHERE partition_key = ANY(%s)").format(columns),
            (list(keys),),
        ).fetchall()
    return {row[0]: dict(zip(STAMP_COLUMNS, row[1:], strict=True)) for row in rows}


def set_stamp(database: Database, stage: Stage, stamps: Mapping[str, str]) -> None:
    """Record that `stage` is complete for the chapters in `stamps` (key -> stamp); equal stamps write nothing."""
    with database.connection() as connection:
        connection.execute(
            sql.SQL(
                "UPDATE doctrine_sources AS s SET {column} = incoming.stamp"
                " FROM (SELECT unnest(%s::text[]) AS key, unnest(%s::text[]) AS stamp ORDER BY 1) AS incoming"
                " WHERE s.partition_key = incoming.key AND s.{column} IS DISTINCT FROM incoming.stamp"
            ).format(column=sql.Identifier(STAMP_COLUMNS[stage])),
            (list(stamps.keys()), list(stamps.values())),
        )


def set_recorded(database: Database, keys: Sequence[str]) -> None:
    """Note that Dagster shows what is stored of these chapters; a killed run leaves the others unrecorded."""
    with database.connection() as connection:
        connection.execute(
            "UPDATE doctrine_sources SET recorded = true WHERE partition_key = ANY(%s) AND NOT recorded",
            (sorted(keys),),
        )


def redo_chapters(database: Database, keys: Sequence[str]) -> None:
    """Make every stage of these chapters pending: the next run compares each row with what the source says."""
    with database.connection() as connection:
        connection.execute(
            sql.SQL("UPDATE doctrine_sources SET {} WHERE partition_key = ANY(%s)").format(
                sql.SQL(", ").join(sql.SQL("{} = NULL").format(sql.Identifier(name)) for name in STAMP_COLUMNS.values())
            ),
            (sorted(keys),),
        )
