"""LangChain's and LlamaIndex's pgvector stores on the rows of a search benchmark, in a process and an environment of their own.

    python rivals.py URL ROWS.npz NAME      # langchain or llamaindex; prints one JSON object

Run as a file, by the Python that has the packages of the dependency group `bench-search`; it imports nothing of this project,
because their versions of pgvector exclude ours. Each store is used as its own quickstart does, with its defaults.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sqlalchemy

_BATCH = 500
_EF_SEARCH = 100


class Store(Protocol):
    """What is asked of a store. `domain` None is all of them."""

    package: str
    table: str

    def add(self, ids: Sequence[str], texts: Sequence[str], vectors: np.ndarray, domains: Sequence[str]) -> None:
        """Store rows."""
        ...

    def search(self, vector: list[float], domain: str | None, top_k: int) -> list[str]:
        """The ids of the nearest rows."""
        ...

    def build_index(self) -> None:
        """Build the HNSW index it offers."""
        ...


class LangChain:
    """`langchain_postgres.PGVectorStore`, the one its documentation recommends."""

    package = "langchain-postgres"
    table = "langchain_rows"

    def __init__(self, url: str, dimension: int) -> None:
        from langchain_core.embeddings import Embeddings
        from langchain_postgres import Column, PGEngine, PGVectorStore

        class Given(Embeddings):
            """Vectors come with the rows."""

            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                raise NotImplementedError

            def embed_query(self, text: str) -> list[float]:
                raise NotImplementedError

        engine = PGEngine.from_connection_string(url=url.replace("postgresql://", "postgresql+psycopg://", 1))
        columns = [Column("domain", "TEXT")]
        engine.init_vectorstore_table(table_name=self.table, vector_size=dimension, metadata_columns=columns)

        def open_store(**options: Any) -> Any:
            return PGVectorStore.create_sync(
                engine=engine,
                table_name=self.table,
                embedding_service=Given(),
                metadata_columns=["domain"],
                **options,
            )

        self._open = open_store
        self._store = open_store()

    def add(self, ids: Sequence[str], texts: Sequence[str], vectors: np.ndarray, domains: Sequence[str]) -> None:
        self._store.add_embeddings(
            texts=list(texts),
            embeddings=vectors.tolist(),
            metadatas=[{"domain": domain} for domain in domains],
            ids=list(ids),
        )

    def search(self, vector: list[float], domain: str | None, top_k: int) -> list[str]:
        found = self._store.similarity_search_with_score_by_vector(
            vector, k=top_k, filter=None if domain is None else {"domain": domain}
        )
        return [str(document.id) for document, _ in found]

    def build_index(self) -> None:
        from langchain_postgres.v2.indexes import HNSWIndex, HNSWQueryOptions

        self._store.apply_vector_index(HNSWIndex())
        self._store = self._open(index_query_options=HNSWQueryOptions(ef_search=_EF_SEARCH))


class LlamaIndex:
    """`llama_index.vector_stores.postgres.PGVectorStore`."""

    package = "llama-index-vector-stores-postgres"
    table = "data_llamaindex_rows"

    def __init__(self, url: str, dimension: int) -> None:
        self._url = url
        self._dimension = dimension
        self._store = self._opened()

    def _opened(self, **options: Any) -> Any:
        from llama_index.vector_stores.postgres import PGVectorStore

        return PGVectorStore.from_params(
            connection_string=self._url.replace("postgresql://", "postgresql+psycopg2://", 1),
            async_connection_string=self._url.replace("postgresql://", "postgresql+asyncpg://", 1),
            table_name="llamaindex_rows",
            embed_dim=self._dimension,
            **options,
        )

    def add(self, ids: Sequence[str], texts: Sequence[str], vectors: np.ndarray, domains: Sequence[str]) -> None:
        from llama_index.core.schema import TextNode

        self._store.add(
            [
                TextNode(id_=identifier, text=text, embedding=vector, metadata={"domain": domain})
                for identifier, text, vector, domain in zip(ids, texts, vectors.tolist(), domains, strict=True)
            ]
        )

    def search(self, vector: list[float], domain: str | None, top_k: int) -> list[str]:
        from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, VectorStoreQuery

        filters = None if domain is None else MetadataFilters(filters=[MetadataFilter(key="domain", value=domain)])
        found = self._store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=top_k, filters=filters))
        return list(found.ids or [])

    def build_index(self) -> None:
        self._store = self._opened(hnsw_kwargs={"hnsw_m": 16, "hnsw_ef_construction": 64, "hnsw_ef_search": _EF_SEARCH})
        # It builds the index when it is first used.
        self._store.query(_any_query(self._dimension))


def _any_query(dimension: int) -> Any:
    from llama_index.core.vector_stores import VectorStoreQuery

    return VectorStoreQuery(query_embedding=[1.0] * dimension, similarity_top_k=1)


STORES: dict[str, Callable[[str, int], Store]] = {"langchain": LangChain, "llamaindex": LlamaIndex}


def measure(name: str, url: str, rows: Any) -> dict[str, Any]:
    """Insert all rows through the store's own interface, look up without an index, build it, look up again."""
    store = STORES[name](url, rows["vectors"].shape[1])
    count = len(rows["ids"])
    started = time.perf_counter()
    for first in range(0, count, _BATCH):
        part = slice(first, first + _BATCH)
        store.add(
            rows["ids"][part].tolist(),
            rows["texts"][part].tolist(),
            rows["vectors"][part],
            rows["domains"][part].tolist(),
        )
    insert_seconds = time.perf_counter() - started
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text(f'VACUUM ANALYZE "{store.table}"'))
        searches = [_look_up(store, rows, "exact")]
        started = time.perf_counter()
        store.build_index()
        build_seconds = time.perf_counter() - started
        searches.append(_look_up(store, rows, "HNSW"))
        size = connection.execute(sqlalchemy.text(f"SELECT pg_total_relation_size('\"{store.table}\"')")).scalar_one()
    engine.dispose()
    return {
        "store": f"{name} {importlib.metadata.version(store.package)}",
        "rows": count,
        "rows_per_second": count / insert_seconds,
        "index_build_seconds": build_seconds,
        "bytes": size,
        "searches": [search for pair in searches for search in pair],
    }


def _look_up(store: Store, rows: Any, how: str) -> list[dict[str, Any]]:
    """P50 and P95 in milliseconds and recall@10, in one domain and across all; after a warm-up."""
    results: list[dict[str, Any]] = []
    for what, truth in (("domain", rows["truth_domain"]), ("all", rows["truth_all"])):
        times, shares = [], []
        for number, (vector, domain) in enumerate(
            zip(rows["queries"].tolist(), rows["query_domains"].tolist(), strict=True)
        ):
            asked = domain if what == "domain" else None
            if number < 10:
                store.search(vector, asked, 10)
            started = time.perf_counter()
            found = store.search(vector, asked, 10)
            times.append((time.perf_counter() - started) * 1000)
            right = {identifier for identifier in truth[number].tolist() if identifier}
            shares.append(len(right.intersection(found)) / max(1, len(right)))
        results.append(
            {
                "search": what,
                "how": how,
                "p50_ms": float(np.percentile(times, 50)),
                "p95_ms": float(np.percentile(times, 95)),
                "recall": float(np.mean(shares)),
            }
        )
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("rows", type=Path)
    parser.add_argument("name", choices=sorted(STORES))
    given = parser.parse_args()
    with np.load(given.rows) as stored:
        sys.stdout.write(json.dumps(measure(given.name, given.url, dict(stored))) + "\n")
