"""When vector indexes go and come: before a load, after it, and not while more is on its way."""

import psycopg
import pytest

from era_dagster.storage.database import Database
from era_dagster.storage.indexes import (
    build_vector_index,
    drop_indexes_before_load,
    exact_rows,
    indexed_tables,
    load_goes_on,
    tend_tables,
)
from era_dagster.storage.recall import LEAST_RECALL, measure_recall
from era_dagster.storage.spaces import create_vector_tables, ensure_space
from era_dagster_tests.storage.chapter_rows import DIMENSION, SPACE

STORED = 80


@pytest.fixture
def filled(database: Database) -> Database:
    """80 stored chapters, 5,000 chunks with their index, and 200 entries to ask with."""
    ensure_space(database, SPACE)
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO doctrine_sources (partition_key, book, book_slug, chapter, path, text, content_hash, entry_count,"
            " pair_count, run_id, vector_tables_stamp) SELECT 'stored/' || lpad(n::text, 4, '0'), 'stored', 'stored', n, '',"
            " '', '', 1, 1, 'run', 'stamp' FROM generate_series(1, %s) AS n",
            (STORED,),
        )
        connection.execute(
            "INSERT INTO drop_sources (source_path, folder, signature, state) VALUES ('/drop/b', '/drop', '', 'read')"
        )
        connection.execute("SELECT setseed(0.3)")
        add_chunks(connection, 5000)
        connection.execute(
            "INSERT INTO doctrine_embeddings_all SELECT gen_random_uuid(), ARRAY['risk'], 'rules', 'Wait.', 'b', 1, 1,"
            " 'stored/0001', v FROM (SELECT ARRAY(SELECT random() - 0.5 FROM generate_series(1, %s)"
            " WHERE n > 0)::real[]::halfvec AS v FROM generate_series(1, 200) AS n) AS t",
            (DIMENSION,),
        )
    assert build_vector_index(database, "chunk_embeddings")
    return database


def add_chunks(connection: psycopg.Connection, count: int) -> None:
    connection.execute(
        "INSERT INTO chunk_embeddings SELECT 'stored/0001', n, ARRAY(SELECT random() - 0.5 FROM generate_series(1, %s)"
        " WHERE n > 0)::real[]::halfvec FROM generate_series(1, %s) AS n ON CONFLICT DO NOTHING",
        (DIMENSION, count),
    )
    connection.execute("SELECT pg_stat_force_next_flush()")


def add_waiting(database: Database, count: int, *, failure: str | None = None) -> None:
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO drop_chapters (partition_key, source_path, content_hash, failure)"
            " SELECT 'waiting/' || lpad(n::text, 4, '0'), '/drop/b', '', %s FROM generate_series(1, %s) AS n",
            (failure, count),
        )


def test_the_threshold_is_a_size_and_not_a_count() -> None:
    assert (exact_rows(384), exact_rows(768), exact_rows(4000)) == (20_000, 10_000, 1_920)


@pytest.mark.parametrize(("chapters", "dropped"), [(STORED // 8 - 1, []), (STORED // 8, ["chunk_embeddings"])])
def test_a_load_of_an_eighth_of_what_is_stored_drops_the_index_first(
    filled: Database, chapters: int, dropped: list[str]
) -> None:
    assert drop_indexes_before_load(filled, chapters=chapters) == dropped
    assert indexed_tables(filled) == ([] if dropped else ["chunk_embeddings"])


def test_an_index_that_another_process_builds_is_not_dropped_under_it(filled: Database) -> None:
    with filled.connection() as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('index vectors.chunk_embeddings', 0))")
        assert drop_indexes_before_load(filled, chapters=STORED) == []
        other.execute("SELECT pg_advisory_unlock_all()")
    assert indexed_tables(filled) == ["chunk_embeddings"]


def test_no_index_is_built_while_as_many_chapters_wait_as_would_drop_it_again(filled: Database) -> None:
    assert not load_goes_on(filled)
    add_waiting(filled, STORED // 8 - 1)
    assert not load_goes_on(filled)
    with filled.connection() as connection:
        connection.execute("DELETE FROM drop_chapters")
    add_waiting(filled, STORED // 8)
    assert load_goes_on(filled)


def test_chapters_that_cannot_be_stored_do_not_keep_the_index_away(filled: Database) -> None:
    add_waiting(filled, STORED, failure="every text was refused")
    assert not load_goes_on(filled)


def test_a_load_is_followed_by_statistics_and_a_clean_up(filled: Database) -> None:
    with filled.connection() as connection:
        connection.execute("ALTER TABLE chunk_embeddings SET (autovacuum_enabled = false)")

    def when(column: str) -> object:
        with filled.connection() as connection:
            row = connection.execute(
                f"SELECT last_{column} FROM pg_stat_user_tables WHERE relname = 'chunk_embeddings'"
            ).fetchone()
        return row and row[0]

    first = when("analyze")
    with filled.connection() as connection:
        add_chunks(connection, 8000)
    tend_tables(filled)
    second = when("analyze")
    assert first != second
    assert when("vacuum") is None
    tend_tables(filled)
    assert when("analyze") == second
    with filled.connection() as connection:
        connection.execute("DELETE FROM chunk_embeddings WHERE position > 4000")
        connection.execute("SELECT pg_stat_force_next_flush()")
    tend_tables(filled)
    assert when("vacuum") is not None


def test_the_index_of_a_space_that_is_being_built_is_built_in_its_own_schema(filled: Database) -> None:
    with filled.connection() as connection:
        create_vector_tables(connection, schema="another", dimension=DIMENSION)
    assert build_vector_index(filled, "chunk_embeddings", schema="another")
    assert indexed_tables(filled, schema="another") == ["chunk_embeddings"]


def test_recall_is_one_without_an_index_and_tells_of_an_index_that_finds_too_little(filled: Database) -> None:
    before = {table.table: table for table in measure_recall(filled, questions=50)}
    assert before["doctrine_embeddings_all"].recall == 1.0
    assert before["doctrine_embeddings_all"].indexed_ms is None
    assert LEAST_RECALL <= before["chunk_embeddings"].recall <= 1.0
    with filled.connection() as connection:
        connection.commit()
        connection.autocommit = True
        # The thinnest graph there can be, over rows that came after its statistics: an index gone bad.
        connection.execute("DROP INDEX vectors.chunk_embeddings_nn")
        connection.execute(
            "CREATE INDEX chunk_embeddings_nn ON vectors.chunk_embeddings USING hnsw (embedding halfvec_cosine_ops)"
            " WITH (m = 2, ef_construction = 4)"
        )
        connection.autocommit = False
    after = {table.table: table for table in measure_recall(filled, questions=50)}
    assert after["chunk_embeddings"].recall < before["chunk_embeddings"].recall
