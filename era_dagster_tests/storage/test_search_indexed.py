"""Look-up through an HNSW index against exact distances by numpy: how much it finds, and in which order."""

import uuid
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from pgvector import HalfVector

from era_dagster.storage.database import Database
from era_dagster.storage.indexes import build_vector_index
from era_dagster.storage.search import search_chunks, search_entries
from era_dagster.storage.spaces import ensure_space
from era_dagster_tests.storage.chapter_rows import SPACE

DIMENSION = 64
ROWS = 5000
QUESTIONS = 20


def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def drawn() -> npt.NDArray[np.float64]:
    """Rows, and after them questions, around forty topics; as they are stored."""
    random = np.random.default_rng(1)
    topics = unit(random.normal(size=(40, DIMENSION)))
    near = topics[random.integers(0, 40, ROWS + QUESTIONS)] + 0.225 * random.normal(size=(ROWS + QUESTIONS, DIMENSION))
    return unit(near).astype(np.float16).astype(np.float64)


def store_indexed(database: Database, vectors: npt.NDArray[np.float64]) -> None:
    """Entries with the numbers of these rows as their ids."""
    ensure_space(database, replace(SPACE, dimension=vectors.shape[1]))
    with database.connection() as connection:
        connection.cursor().executemany(
            "INSERT INTO doctrine_embeddings_all (domains, doctrine_id, category, text, source_book, source_chapter, weight,"
            " partition_key, embedding) VALUES ('{wealth}', %s, 'rules', 'Wait.', 'Book', 1, 1, 'book/0001', %s)",
            [(uuid.UUID(int=number), HalfVector(vector)) for number, vector in enumerate(vectors)],
        )
    assert build_vector_index(database, "doctrine_embeddings_all")


@pytest.mark.parametrize("top_k", [10, 50, 100, 500])
def test_an_index_finds_nearly_all_of_the_nearest_however_many_are_asked_for(
    database: Database, drawn: npt.NDArray[np.float64], top_k: int
) -> None:
    """Of a hundred it missed five: it looked at a hundred rows whatever the number asked for."""
    store_indexed(database, drawn[:ROWS])
    lengths = np.linalg.norm(drawn, axis=1)
    shares: list[float] = []
    with database.connection() as connection:
        for question in range(ROWS, ROWS + QUESTIONS):
            cosines = drawn[:ROWS] @ drawn[question] / lengths[:ROWS] / lengths[question]
            hits = search_entries(connection, drawn[question], top_k=top_k)
            nearest = np.argsort(-cosines)[:top_k]
            shares.append(
                len({hit.doctrine_id for hit in hits} & {str(uuid.UUID(int=int(row))) for row in nearest}) / top_k
            )
    assert np.mean(shares) >= 0.98


def test_hits_through_an_index_are_best_first_to_the_last_digit(database: Database) -> None:
    """An index orders by distances that are rounded otherwise than those that are shown."""
    drawn = unit(np.random.default_rng(7).normal(size=(ROWS, 16)))
    store_indexed(database, drawn)
    with database.connection() as connection:
        connection.execute("SET LOCAL enable_seqscan = off")  # of so small a table a scan of 100 costs no more
        for question in drawn[::100]:
            scores = [hit.score for hit in search_entries(connection, question, top_k=100)]
            assert scores == sorted(scores, reverse=True)


def test_chunks_through_an_index_are_best_first_to_the_last_digit_too(database: Database) -> None:
    drawn = unit(np.random.default_rng(7).normal(size=(ROWS, 16)))
    ensure_space(database, replace(SPACE, dimension=drawn.shape[1]))
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO doctrine_sources (partition_key, book, book_slug, chapter, path, text, content_hash, entry_count,"
            " pair_count, run_id) VALUES ('book/0001', 'Book', 'book', 1, '/drop/book', '', '', 0, 0, 'run')"
        )
        connection.execute(
            "INSERT INTO chapter_chunks (partition_key, position, start_offset, end_offset, text, text_hash)"
            " SELECT 'book/0001', position, 0, 0, '', '' FROM generate_series(0, %s) AS position",
            (ROWS - 1,),
        )
        connection.cursor().executemany(
            "INSERT INTO chunk_embeddings (partition_key, position, embedding) VALUES ('book/0001', %s, %s)",
            [(position, HalfVector(vector)) for position, vector in enumerate(drawn)],
        )
        connection.execute("ANALYZE chapter_chunks")
    assert build_vector_index(database, "chunk_embeddings")
    with database.connection() as connection:
        connection.execute("SET LOCAL enable_seqscan = off")
        for question in drawn[::50]:
            scores = [hit.score for hit in search_chunks(connection, question, top_k=100)]
            assert scores == sorted(scores, reverse=True)
