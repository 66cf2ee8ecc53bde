"""Loads a corpus as a run stores it, builds the indexes as the end of a run does, and times look-ups as a persona makes them."""

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from era_dagster.bench.search_corpus import Array, Corpus, Rows
from era_dagster.domain.errors import ConfigurationError
from era_dagster.knowledge import AsyncKnowledgeBase, KnowledgeBase
from era_dagster.settings import Settings
from era_dagster.storage.chapters import write_chapter
from era_dagster.storage.database import Database, with_database
from era_dagster.storage.indexes import build_vector_indexes, tend_tables
from era_dagster.storage.search import search_chunks, search_entries
from era_dagster.storage.spaces import ensure_domain_tables, ensure_space

TOP_K = 10
_WARM_UP = 20
_AT_ONCE = 8
# Never imported: it needs packages that exclude ours, and the Python of another environment runs it.
_RIVALS = Path(__file__).with_name("rivals.py")
_STORES = ("langchain_postgres", "llama_index.vector_stores.postgres")


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One way of looking up, timed one after the other with a warm pool. `recall` (at 10) is None where nothing is true."""

    search: str
    how: str
    p50_ms: float
    p95_ms: float
    recall: float | None


DOMAIN_TABLES = "a table for each domain"


def load(database: Database, corpus: Corpus) -> dict[str, Any]:
    """Store every chapter with one writer; the seconds are those of the writes."""
    ensure_space(database, corpus.space)
    names = {name for write in corpus.writes for name in write.chapter.domains}
    started = time.perf_counter()
    ensure_domain_tables(database, sorted((name.slug, name.spelling) for name in names))
    domains_seconds = time.perf_counter() - started
    started = time.perf_counter()
    for write in corpus.writes:
        write_chapter(database, write)
    seconds = time.perf_counter() - started
    texts = len(corpus.entries.ids) + len(corpus.chunks.ids)
    with database.connection() as connection:
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM (ANALYZE)")
        connection.autocommit = False
    return {
        "domain_tables": len(names),
        "domain_tables_seconds": domains_seconds,
        "texts": texts,
        "texts_per_second": texts / seconds,
        "bytes": _sizes(database),
    }


def build(database: Database) -> dict[str, Any]:
    """Build the indexes that the policy asks for."""
    started = time.perf_counter()
    tend_tables(database)
    built = build_vector_indexes(database)
    return {"tables": built, "seconds": time.perf_counter() - started, "bytes": _index_sizes(database)}


def look_up(settings: Settings, url: str, corpus: Corpus, *, how: Callable[[str], str]) -> list[Search]:
    """Time the three look-ups by vector and the two hybrid ones; `how` says how a table, or `DOMAIN_TABLES`, is searched."""
    questions, domains = corpus.questions, corpus.question_domains
    with KnowledgeBase.open(settings, url=url) as base:
        searches = [
            _timed(
                "entries of a domain",
                how(DOMAIN_TABLES),
                lambda number: base.lookup(questions[number], domains[number], TOP_K),
                nearest(corpus.entries, questions, domains),
            ),
            _timed(
                "entries, all",
                how("doctrine_embeddings_all"),
                lambda number: base.lookup(questions[number], None, TOP_K),
                nearest(corpus.entries, questions),
            ),
            _timed(
                "chunks, all",
                how("chunk_embeddings"),
                lambda number: base.lookup(questions[number], None, TOP_K, within="chunks"),
                nearest(corpus.chunks, questions),
            ),
        ]
    with Database(url, pool_size=2) as database:
        for name, search in (("entries, hybrid", search_entries), ("chunks, hybrid", search_chunks)):

            def hybrid(number: int, search: Callable[..., Any] = search) -> Any:
                with database.connection() as connection:
                    return search(connection, questions[number], top_k=TOP_K, words=corpus.question_texts[number])

            table = "doctrine_embeddings_all" if search is search_entries else "chunk_embeddings"
            searches.append(_timed(name, how(table), hybrid, [None] * len(questions)))
    return searches


async def look_up_at_once(settings: Settings, url: str, corpus: Corpus) -> dict[str, float]:
    """Look-ups in domains by eight tasks at a time: look-ups a second, and the P95 of one in milliseconds."""
    times: list[float] = []
    async with AsyncKnowledgeBase.open(settings, url=url) as base:

        async def ask(first: int) -> None:
            for number in range(first, len(corpus.questions), _AT_ONCE):
                started = time.perf_counter()
                await base.lookup(corpus.questions[number], corpus.question_domains[number], TOP_K)
                times.append((time.perf_counter() - started) * 1000)

        await asyncio.gather(*(ask(first) for first in range(_AT_ONCE)))
        times.clear()
        started = time.perf_counter()
        await asyncio.gather(*(ask(first) for first in range(_AT_ONCE)))
        seconds = time.perf_counter() - started
    return {"per_second": len(times) / seconds, "p95_ms": float(np.percentile(times, 95))}


def run_rival(python: str, name: str, server_url: str, corpus: Corpus) -> dict[str, Any]:
    """Measure one of the other stores on the entries, in a database of its own on the same server.

    Raises `ConfigurationError` when that Python cannot run it.
    """
    database = f"bench_{name}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    url = with_database(server_url, database)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    with TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npz"
        _write_rows(rows, corpus)
        said = _run(python, f"measure {name}", "-W", "ignore", str(_RIVALS), url, str(rows), name)
    return json.loads(said.splitlines()[-1])


def check_rivals(python: str) -> None:
    """Raises `ConfigurationError` when that Python is not there or lacks the packages of the other stores."""
    _run(python, "import the other stores", "-W", "ignore", "-c", f"import {', '.join(_STORES)}")


def _run(python: str, what: str, *words: str) -> str:
    hint = "Give --rivals a Python with the dependency group bench-search installed (docs/search.md)."
    try:
        done = subprocess.run([python, *words], capture_output=True, text=True, encoding="utf-8", check=False)
    except OSError as error:
        raise ConfigurationError(f"{python} cannot be started: {error.strerror or error}.", hint=hint) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise ConfigurationError(f"{python} could not {what}: {last[:300]}.", hint=hint)
    return done.stdout


def nearest(rows: Rows, questions: Array, domains: Sequence[str] | None = None) -> list[set[str]]:
    """The ids of the ten rows truly nearest to each question, by brute force in half precision, as stored."""
    stored = rows.vectors.astype(np.float16).astype(np.float32)
    lengths = np.linalg.norm(stored, axis=1)
    of_row = np.array(rows.domains)
    truth: list[set[str]] = []
    for number, question in enumerate(questions):
        similarities = stored @ question.astype(np.float16).astype(np.float32) / lengths
        if domains is not None:
            similarities[of_row != domains[number]] = -np.inf
        count = min(TOP_K, int(np.isfinite(similarities).sum()))
        truth.append({rows.ids[row] for row in np.argpartition(-similarities, range(count))[:count]})
    return truth


def _timed(name: str, how: str, search: Callable[[int], Any], truth: Sequence[set[str] | None]) -> Search:
    for number in range(min(_WARM_UP, len(truth))):
        search(number)
    times, shares = [], []
    for number, right in enumerate(truth):
        started = time.perf_counter()
        hits = search(number)
        times.append((time.perf_counter() - started) * 1000)
        if right:
            shares.append(len(right.intersection(hit.doctrine_id for hit in hits)) / len(right))
    return Search(
        search=name,
        how=how,
        p50_ms=float(np.percentile(times, 50)),
        p95_ms=float(np.percentile(times, 95)),
        recall=float(np.mean(shares)) if shares else None,
    )


def _write_rows(path: Path, corpus: Corpus) -> None:
    rows = corpus.entries

    def padded(truth: list[set[str]]) -> np.ndarray:
        return np.array([[*sorted(ids), *[""] * (TOP_K - len(ids))] for ids in truth])

    np.savez(
        path,
        ids=np.array(rows.ids),
        texts=np.array(rows.texts),
        vectors=rows.vectors,
        domains=np.array(rows.domains),
        queries=corpus.questions,
        query_domains=np.array(corpus.question_domains),
        truth_domain=padded(nearest(rows, corpus.questions, corpus.question_domains)),
        truth_all=padded(nearest(rows, corpus.questions)),
    )


def _sizes(database: Database) -> int:
    with database.connection() as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return row[0] if row else 0


def _index_sizes(database: Database) -> dict[str, int]:
    with database.connection() as connection:
        return dict(
            connection.execute(
                "SELECT c.relname, pg_relation_size(x.oid) FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid"
                " JOIN pg_class AS c ON c.oid = i.indrelid JOIN pg_am AS m ON m.oid = x.relam WHERE m.amname = 'hnsw'"
            ).fetchall()
        )
