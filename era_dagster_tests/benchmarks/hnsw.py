"""What an HNSW index costs and finds on realistic vectors: the figures behind docs/adr/0011-index-policy.md.

    python -m era_dagster_tests.benchmarks.hnsw [--rows 26000] [--dimension 384] [--m 16] [--ef-construction 64]

One table of half-precision vectors on an embedded server of its own, single statements on one connection: the ten nearest to
200 questions by a scan, then by the index at several `hnsw.ef_search`; and 500 more rows inserted while the index stands.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg import sql

from era_dagster.bench.search_corpus import make_corpus
from era_dagster.settings import load_settings
from era_dagster.storage.server import EmbeddedServer

_QUESTIONS = 200
_MORE = 500
_NEAREST = sql.SQL("SELECT id FROM vectors ORDER BY embedding <=> %s LIMIT 10")


def insert(connection: psycopg.Connection, vectors: np.ndarray, *, first: int) -> float:
    """COPY rows numbered from `first`; returns the seconds."""
    started = time.perf_counter()
    with (
        connection.transaction(),
        connection.cursor() as cursor,
        cursor.copy("COPY vectors FROM STDIN (FORMAT binary)") as copy,
    ):
        copy.set_types(["int4", "halfvec"])
        for number, vector in enumerate(vectors, first):
            copy.write_row((number, HalfVector(vector)))
    return time.perf_counter() - started


def ask(connection: psycopg.Connection, questions: np.ndarray) -> tuple[list[set[int]], float, float]:
    """The ids found for each question, and the P50 and P95 of the times in milliseconds."""
    found, times = [], []
    for question in questions:
        started = time.perf_counter()
        rows = connection.execute(_NEAREST, (HalfVector(question),), prepare=False).fetchall()
        times.append((time.perf_counter() - started) * 1000)
        found.append({identifier for (identifier,) in rows})
    return found, float(np.percentile(times, 50)), float(np.percentile(times, 95))


def recall(found: Sequence[set[int]], truth: Sequence[set[int]]) -> float:
    return float(np.mean([len(some & right) / len(right) for some, right in zip(found, truth, strict=True)]))


def measure(connection: psycopg.Connection, given: Any) -> None:
    corpus = make_corpus(
        model_dir=load_settings({}).model_dir,
        entries=100,
        chunks=given.rows + _MORE,
        domains=1,
        dimension=given.dimension,
        questions=_QUESTIONS,
    )
    vectors = corpus.chunks.vectors
    connection.execute("CREATE EXTENSION vector")
    register_vector(connection)
    connection.execute(
        sql.SQL("CREATE TABLE vectors (id int PRIMARY KEY, embedding halfvec({}) STORAGE PLAIN NOT NULL)").format(
            sql.Literal(given.dimension)
        )
    )
    insert(connection, vectors[: given.rows], first=0)
    connection.execute("VACUUM (ANALYZE) vectors")
    connection.execute("SET hnsw.iterative_scan = strict_order; SET maintenance_work_mem = '512MB'")
    truth, p50, p95 = ask(connection, corpus.questions)
    print(f"{given.rows} rows of {given.dimension}: exact P50 {p50:.1f} ms, P95 {p95:.1f} ms")
    started = time.perf_counter()
    connection.execute(
        sql.SQL(
            "CREATE INDEX vectors_nn ON vectors USING hnsw (embedding halfvec_cosine_ops)"
            " WITH (m = {}, ef_construction = {})"
        ).format(sql.Literal(given.m), sql.Literal(given.ef_construction))
    )
    seconds = time.perf_counter() - started
    row = connection.execute("SELECT pg_relation_size('vectors_nn')").fetchone()
    print(
        f"m {given.m}, ef_construction {given.ef_construction}: built in {seconds:.1f} s"
        f" ({seconds / given.rows * 1000:.2f} ms a row), {row[0] / 1e6 if row else 0:.0f} MB"
    )
    for breadth in (40, 100, 200):
        connection.execute(sql.SQL("SET hnsw.ef_search = {}").format(sql.Literal(breadth)))
        found, p50, p95 = ask(connection, corpus.questions)
        print(f"ef_search {breadth}: recall {recall(found, truth):.4f}, P50 {p50:.1f} ms, P95 {p95:.1f} ms")
    seconds = insert(connection, vectors[given.rows :], first=given.rows)
    print(f"insert with the index: {seconds / _MORE * 1000:.2f} ms a row")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=26_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--ef-construction", type=int, default=64)
    with TemporaryDirectory(prefix="era-bench-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedServer(Path(folder))
        try:
            with psycopg.connect(server.ensure_running(), autocommit=True) as connection:
                measure(connection, parser.parse_args())
        finally:
            server.stop()


if __name__ == "__main__":
    main()
