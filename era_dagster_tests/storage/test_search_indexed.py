"""Look-up through an HNSW index."""

import uuid
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from pgvector import HalfVector

from era_dagster.storage.database import Database
from era_dagster.storage.indexes import build_vector_index
from era_dagster.storage.search import search_entries
from era_dagster.storage.spaces import ensure_space
from era_dagster_tests.storage.chapter_rows import SPACE

ROWS = 5000


def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


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


def test_hits_through_an_index_are_best_first_to_the_last_digit(database: Database) -> None:
    """An index orders by distances that are rounded otherwise than those that are shown."""
    drawn = unit(np.random.default_rng(7).normal(size=(ROWS, 16)))
    store_indexed(database, drawn)
    with database.connection() as connection:
        connection.execute("SET LOCAL enable_seqscan = off")  # of so small a table a scan of 100 costs no more
        for question in drawn[::100]:
            scores = [hit.score for hit in search_entries(connection, question, top_k=100)]
            assert scores == sorted(scores, reverse=True)
