"""Vector indexes: none below the threshold, one above it, and what killed builds leave is cleared."""

import pytest

from era_dagster.domain.domains import slugify_domain
from era_dagster.storage.database import Database
from era_dagster.storage.indexes import build_vector_index, build_vector_indexes, drop_indexes_before_load
from era_dagster.storage.spaces import domain_table, ensure_domain_tables, ensure_space
from era_dagster_tests.storage.chapter_rows import SPACE

ROWS = 12_000


@pytest.fixture
def filled(database: Database) -> Database:
    """Chunks of 12,000 rows and a domain of 10."""
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [("risk", "risk")])
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO chunk_embeddings SELECT 'some-book/0001', n,"
            " ARRAY[sin(n), cos(n), sin(2 * n), 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n %% 7]::real[]::halfvec"
            " FROM generate_series(1, %s) AS n",
            (ROWS,),
        )
        add_entries(connection, "risk", 10)
    return database


def add_entries(connection, domain: str, count: int) -> None:
    connection.execute(
        "INSERT INTO doctrine_embeddings SELECT %s, gen_random_uuid(), 'rules', 'Wait for the tide to turn.', 'ferry', 1,"
        " 1, 'ferry/0001', ARRAY[sin(n), cos(n), 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n %% 5]::real[]::halfvec"
        " FROM generate_series(1, %s) AS n",
        (domain, count),
    )


def indexes(database: Database) -> list[tuple[str, bool]]:
    with database.connection() as connection:
        return connection.execute(
            "SELECT i.indrelid::regclass::text, i.indisvalid FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid"
            " JOIN pg_am AS m ON m.oid = x.relam WHERE m.amname = 'hnsw' ORDER BY 1"
        ).fetchall()


def test_a_table_below_the_threshold_stays_exact(filled: Database) -> None:
    assert build_vector_indexes(filled, least_rows=ROWS + 1) == []
    assert indexes(filled) == []


def test_a_table_at_the_threshold_gets_its_index_once(filled: Database) -> None:
    assert build_vector_indexes(filled, least_rows=ROWS) == ["chunk_embeddings"]
    assert indexes(filled) == [("chunk_embeddings", True)]
    assert build_vector_indexes(filled, least_rows=ROWS) == []


def test_an_index_that_a_killed_build_left_invalid_is_built_anew(filled: Database) -> None:
    build_vector_indexes(filled, least_rows=ROWS)
    with filled.connection() as connection:
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'chunk_embeddings_nn'::regclass")
    assert indexes(filled) == [("chunk_embeddings", False)]
    assert build_vector_indexes(filled, least_rows=ROWS) == ["chunk_embeddings"]
    assert indexes(filled) == [("chunk_embeddings", True)]


def test_a_large_load_pays_for_no_index_that_a_killed_build_left_invalid(database: Database) -> None:
    ensure_space(database, SPACE)
    build_vector_index(database, "chunk_embeddings")
    with database.connection() as connection:
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'chunk_embeddings_nn'::regclass")
    assert drop_indexes_before_load(database, chapters=1) == ["chunk_embeddings"]
    assert indexes(database) == []


def test_domains_whose_long_names_begin_alike_keep_their_own_indexes(database: Database) -> None:
    slugs = [slugify_domain(f"a domain with quite a long first part {end}") for end in ("one", "two")]
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [(slug, slug) for slug in slugs])
    with database.connection() as connection:
        for slug in slugs:
            add_entries(connection, slug, 10_000)
    tables = sorted(domain_table(slug) for slug in slugs)
    assert build_vector_indexes(database, least_rows=5_000) == tables
    assert indexes(database) == [(table, True) for table in tables]


def test_an_index_another_process_is_building_is_left_to_it(filled: Database) -> None:
    with filled.connection() as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('index vectors.chunk_embeddings', 0))")
        assert build_vector_indexes(filled, least_rows=ROWS) == []
        other.execute("SELECT pg_advisory_unlock_all()")
    assert indexes(filled) == []


def test_a_connection_is_fit_for_transactions_after_a_build(filled: Database) -> None:
    build_vector_indexes(filled, least_rows=ROWS)
    for _ in range(4):
        with filled.connection() as connection:
            assert not connection.autocommit
            changed = connection.execute("SELECT name FROM pg_settings WHERE source = 'session'").fetchall()
            assert changed == []
